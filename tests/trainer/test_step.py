"""One step: pieces, clipping, precision, and what is refused before the first."""

from __future__ import annotations

import copy
import itertools
import math
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import GiftwrapError, InputError
from pipeline.networks.weights import read_weights
from pipeline.ranks import Ranks
from tests.journeys.world import World
from tests.trainer.interrupting import interrupted_after
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.ema import Average
from trainer.material import open_material
from trainer.stop_conditions import FINE, DivergedError, StopConditions
from trainer.stopping import StopRequested, StopSignals
from trainer.student import make_student


@pytest.fixture
def config(world: World, tmp_path: Path) -> TrainConfig:
    return from_flags(
        TrainConfig,
        store=world.store, images=world.images, student="convnet-d2", student_args='{"width": 8}', epochs=2,
        batch_size=7, run_folder=tmp_path / "run", optimizer="SGD", lr=0.1, weight_decay=0, seed=5, threads=1,
    )  # fmt: skip


def trained(config: TrainConfig, run: Path, **changes: Any) -> dict[str, torch.Tensor]:
    """The weights that come of a run."""
    again = changed(config, run_folder=run, **changes)
    loop.train(again, Console(as_json=True))
    return dict(read_weights(run / "last.safetensors").tensors)


@pytest.mark.parametrize("changes", [{"accumulate": 3}, {"accumulate": 50}, {"fused": True}, {"clip_norm": 1e9}])
def test_what_changes_nothing_but_rounding(changes: dict[str, Any], config: TrainConfig, tmp_path: Path) -> None:
    config = changed(config, lr=0.01)  # a rate that makes nothing of rounding
    plain, found = trained(config, tmp_path / "plain"), trained(config, tmp_path / "other", **changes)
    for name, value in plain.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_the_gradient_is_bounded(config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    norms: list[float] = []
    original = torch.optim.SGD.step

    def noting(self: torch.optim.SGD, *args: Any) -> Any:
        gradients = [weight.grad for group in self.param_groups for weight in group["params"]]
        norms.append(math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients)))
        return original(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", noting)
    trained(config, tmp_path / "run", clip_norm=1e-3)
    assert norms == pytest.approx([1e-3] * len(norms), rel=1e-3)


@pytest.mark.long
def test_a_compiled_student_is_the_same_and_goes_on_bit_for_bit(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = changed(config, student_args='{"width": 8, "norm": "batch"}', checkpoint_steps=1)
    plain, whole = trained(config, tmp_path / "plain"), trained(config, tmp_path / "whole", compile=True)
    for name, value in plain.items():
        torch.testing.assert_close(whole[name], value, rtol=1e-3, atol=1e-5)
    for steps in (3, 4):  # before and after the short batch at the end of an epoch
        run = tmp_path / f"stopped after {steps}"
        with interrupted_after(steps):
            trained(config, run, compile=True)
        torch.compiler.reset()  # as another process begins
        found = trained(config, run, compile=True)
        assert all(torch.equal(found[name], value) for name, value in whole.items())


class Constant(torch.nn.Module):
    """Has nothing to learn."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.classes = num_classes

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return pixels.new_ones(len(pixels), self.classes)


class Failing(torch.nn.Module):
    """Fails for reasons of its own."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.training:
            raise ValueError("inner trouble")
        output: torch.Tensor = self.head(pixels.mean((2, 3)))
        return output


def test_what_fails_inside_a_student_is_not_laid_on_the_batch(config: TrainConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"Failing: a step of 2 crops fails: ValueError: inner trouble$"):
        trained(config, tmp_path / "run", student=f"{__name__}:Failing", student_args="{}")


class Remembering(torch.nn.Module):
    """Keeps what its first forward made, as some position embeddings do."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = torch.nn.Linear(3, num_classes)
        self.first: torch.Tensor | None = None

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        if self.first is None:
            self.first = torch.ones(1, device=pixels.device)
        output: torch.Tensor = self.head(pixels.mean((2, 3))) * self.first
        return output


def test_a_student_may_keep_what_its_first_forward_made(config: TrainConfig, tmp_path: Path) -> None:
    trained(config, tmp_path / "run", student=f"{__name__}:Remembering", student_args="{}")


def test_autocast_is_bfloat16s(config: TrainConfig, tmp_path: Path) -> None:
    plain, short = trained(config, tmp_path / "plain"), trained(config, tmp_path / "short", dtype="bfloat16")
    apart = [float((short[name] - value).abs().max() / value.abs().max()) for name, value in plain.items()]
    assert 1e-4 < max(apart) < 0.3


def test_weights_that_are_no_numbers_are_not_saved(config: TrainConfig, tmp_path: Path) -> None:
    """The loss of the only step is finite; what comes of it is not."""
    with pytest.raises(GiftwrapError, match=r"step 1: expected finite weights.*there is no checkpoint yet"):
        trained(config, tmp_path / "run", epochs=1, batch_size=100, lr=1e38, weight_decay=1e6)
    assert not (tmp_path / "run" / "checkpoint.pt").exists()


def test_ranks_begin_alike_and_draw_apart(config: TrainConfig) -> None:
    material = open_material(config, Ranks(), None)
    with closing(material.loader):
        networks, drawn = [], []
        for rank in (0, 1, 0):
            networks.append(make_student(config, Ranks(rank, 2), material)[0].state_dict())
            drawn.append(torch.rand(4))
    for other in networks[1:]:
        torch.testing.assert_close(other, networks[0], rtol=0, atol=0)
    assert torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], drawn[1])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student_args": '{"width": 8, "num_classes": 10}'}, r"expected logits \[2, 3\].*found \[2, 10\]"),
        ({"student": "torch.nn:Identity", "student_args": "{}"}, r"expected logits \[2, 3\].*found \[2, 3, 16, 16\]"),
        ({"student": "torchvision:vit_b_16", "student_args": "{}"}, "does not take crops of 16 px"),
        ({"size": 2}, "2 blocks need at least 4 px, found 2 px"),
        ({"optimizer": "RMSprop", "fused": True}, "RMSprop"),
        ({"student": f"{__name__}:Constant", "student_args": "{}"}, "expected weights to train, found none"),
    ],
)
def test_a_student_that_does_not_fit_is_refused(
    changes: dict[str, Any], message: str, config: TrainConfig, tmp_path: Path
) -> None:
    with pytest.raises(InputError, match=message):
        trained(config, tmp_path / "run", **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"accumulate": 0},
        {"clip_norm": 0.0},
        {"clip_norm": math.nan},
        {"ema": 1.0},
        {"checkpoint_steps": 0},
        {"size": 0},
        {"views": 0},
        {"test_resize": 0},
        {"eval_from": 2.0},
        {"seed": 2**63},
    ],
)
def test_numbers_that_no_run_can_have_are_refused(changes: dict[str, Any], config: TrainConfig) -> None:
    (name,) = changes
    with pytest.raises(InputError, match=f"--{name.replace('_', '-')}: expected"):
        changed(config, **changes)


@pytest.mark.parametrize(
    "changes",
    [
        {"loss": "kl", "gamma": 0.5},
        {"loss": "gift", "w": 0.2},
        {"loss": "mse", "temperature": 4.0},
        {"t_squared": True},
    ],
)
def test_numbers_of_another_loss_are_refused(changes: dict[str, Any], config: TrainConfig) -> None:
    *_, name = changes
    with pytest.raises(InputError, match=f"does not use --{name.replace('_', '-')}"):
        changed(config, **changes)


def test_the_mean_takes_buffers_and_counts() -> None:
    torch.manual_seed(0)
    student = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    average = Average(copy.deepcopy(student), 0.75)
    wanted: dict[str, torch.Tensor] = {}
    for _ in range(4):
        student(torch.randn(5, 3))
        with torch.no_grad():
            student[0].weight += torch.randn(4, 3)
        average.update(student)
        for name, value in student.state_dict().items():
            decays = value.is_floating_point() and name in wanted
            wanted[name] = 0.75 * wanted[name] + 0.25 * value if decays else value.clone()
    torch.testing.assert_close(dict(average.network.state_dict()), wanted)
    assert not average.network.training


class Two(Ranks):
    """The second of two, whose first always says the same."""

    told = (2**62, 0)

    def all_reduce_min(self, values: Any) -> Any:
        least = [min(pair) for pair in zip(values, self.told, strict=True)]
        return lambda: least


def test_ranks_stop_together_a_step_later() -> None:
    stops = StopSignals()
    conditions = StopConditions(Two(1, 2), torch.device("cpu"), stops)
    conditions.between_steps()
    Two.told = (2**62, -15)
    try:
        conditions.between_steps()  # what was said after the step before
        with pytest.raises(StopRequested):
            conditions.between_steps()
        assert stops.number == 15
        Two.told = (7, 0)
        with pytest.raises(DivergedError, match="step 7: expected a finite loss"):
            conditions.settle()
    finally:
        Two.told = (2**62, 0)


def test_the_first_bad_step_is_named() -> None:
    conditions = StopConditions(Ranks(), torch.device("cpu"), StopSignals())
    for step, loss in enumerate([1.0, math.inf, 2.0, math.nan]):
        conditions.see(torch.tensor(loss), step)
    with pytest.raises(DivergedError, match="step 1: "):
        conditions.between_steps()
    with pytest.raises(DivergedError, match="step 3: expected finite weights"):
        StopConditions(Ranks(), torch.device("cpu"), StopSignals()).require_finite([torch.tensor([1.0, math.nan])], 3)


def test_looks_at_a_gpus_losses_wait_for_nothing_but_the_look_before(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[int] = []
    looks = itertools.count()

    def record() -> Any:
        number = next(looks)
        return SimpleNamespace(synchronize=lambda: waited.append(number))

    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda shape, dtype, **_: empty(shape, dtype=dtype))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda _: SimpleNamespace(record_event=record))
    conditions = StopConditions(Ranks(), torch.device("cpu"), StopSignals())
    conditions._look()
    conditions.see(torch.tensor(math.nan), 5)
    conditions._look()
    assert waited == [0]
    assert conditions._begin(read=False)()[0] == FINE  # what was copied before the loss
    conditions._look()
    assert waited == [0, 1]
    assert conditions._begin(read=False)()[0] == 5
    with pytest.raises(DivergedError, match="step 5: "):
        conditions.settle()
