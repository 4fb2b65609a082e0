"""The trainer's seams, each with an implementation that a user could have written: crops, labels, and what is trained.

Crops are cut from arrays, fresh for every view; labels are a function of the pixels, or there are none; an autoencoder
is trained beside a student. All of it by the loop that trains students from a store.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError, MismatchError
from labelstore.format.columns import CROP_COLUMNS, CUTMIX_COLUMNS, CropRows
from labelstore.spec import Json
from pipeline.networks.weights import read_weights
from pipeline.ranks import Ranks
from tests.trainer.interrupting import interrupted_after
from trainer import TrainBatch
from trainer import train as loop
from trainer.batch import TENSORS
from trainer.config import TrainConfig
from trainer.crops import Crops, CropSource, Int64Array
from trainer.labels import LabelSource, Request
from trainer.loader import READ_AHEAD, Loader
from trainer.objective import Objective, Score
from trainer.run import start_run
from trainer.run_folder import FORMAT
from trainer.run_lock import hold
from trainer.stopping import StopSignals
from trainer.summary import summarise

IMAGES, SIDE, SIZE, COLUMNS_OF_LABELS = 21, 12, 8, 5


class FreshCrops(CropSource):
    """A crop of each image of an array at a random place, another one in every view; pairs of neighbours may mix."""

    def __init__(self, seed: int = 0, *, mixed: bool = False) -> None:
        generator = np.random.default_rng(99)
        colours, noise = (
            generator.integers(0, 200, (IMAGES, 1, 1, 3)),
            generator.integers(0, 50, (IMAGES, SIDE, SIDE, 3)),
        )
        self._pixels = (colours + noise).astype(np.uint8)
        self._seed, self._mixed = seed, mixed
        self.images, self.group, self.views = IMAGES, 2 if mixed else 1, None
        self.size = self.drawn_size = SIZE
        self.mean, self.std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)
        self.targets = np.arange(IMAGES) % COLUMNS_OF_LABELS
        self.identity = {"crops": "fresh", "crops_seed": seed}

    def rows(self, view: int, positions: Int64Array) -> CropRows:
        draw = np.random.default_rng((self._seed, view))
        order = draw.permutation(IMAGES)
        drawn = draw.integers(0, SIDE - SIZE + 1, (2, IMAGES))
        names = CROP_COLUMNS + (CUTMIX_COLUMNS if self._mixed else ())
        values = np.zeros((len(names), len(positions)), np.uint16)
        values[0], values[2:4], values[4:6] = order[positions], drawn[:, positions], SIZE
        if self._mixed:
            values[7] = np.where(positions == IMAGES - 1, 0, 1 - positions % 2)  # the last one has no neighbour
            values[8:12] = np.array([[2], [0], [3], [SIZE]])
        return CropRows(names, values)

    def pixels(self, rows: CropRows) -> torch.Tensor:
        crops = [
            self._pixels[image, top : top + SIZE, left : left + SIZE]
            for image, (top, left, _, _) in zip(rows.image, rows.boxes(), strict=True)
        ]
        found = np.stack(crops)
        if self._mixed:
            found[:, 2:5] = found[rows.partners(2), 2:5]
        return torch.from_numpy(found)


class PixelLabels:
    """Labels that are made of the crops on their way, as a network's are."""

    identity: Mapping[str, Json] = {"labels": "of pixels", "seed": 0}

    def __init__(self) -> None:
        self._weights = torch.randn(3, COLUMNS_OF_LABELS, generator=torch.Generator().manual_seed(0))

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], torch.Tensor]:  # noqa: ARG002
        return self.of

    def of(self, crops: Crops) -> torch.Tensor:
        return (crops.pixels.float() / 255).mean((1, 2)) @ self._weights


class NoLabels:
    """Crops alone."""

    identity: Mapping[str, Json] = {"labels": None}

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], None]:  # noqa: ARG002
        return lambda _: None


class ReadAheadLabels:
    """Labels that are looked up ahead of the crops: their number is the position's."""

    identity: Mapping[str, Json] = {"labels": "positions"}

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], torch.Tensor]:
        found = iter([(view, positions) for view, positions in requests])

        def of(crops: Crops) -> torch.Tensor:
            view, positions = next(found)
            assert view == crops.view
            assert np.array_equal(positions, crops.positions)
            return torch.from_numpy(positions)[:, None].float()

        return of


def fresh(labels: LabelSource, *, batch: int = 6, mixed: bool = False, **place: Any) -> Loader:
    """A loader of fresh crops."""
    return Loader(FreshCrops(mixed=mixed), labels, batch_size=batch, view_order="cycle", **place)


def joined(batches: list[TrainBatch]) -> dict[str, torch.Tensor]:
    """The columns of batches, end to end; without the crops that count for nothing."""
    own = [batch for batch in batches if batch.share]
    return {name: torch.cat([getattr(batch, name) for batch in own]) for name in TENSORS}


@settings(deadline=None, max_examples=12)
@given(world=st.integers(1, 4), batch=st.integers(4, 30), stop=st.integers(0, 12), mixed=st.booleans())
def test_fresh_crops_are_one_sequence_for_any_number_of_processes_from_any_place(
    world: int, batch: int, stop: int, mixed: bool
) -> None:
    whole = joined(list(fresh(PixelLabels(), batch=IMAGES, mixed=mixed).play(3)))
    ranks = [fresh(PixelLabels(), batch=batch, mixed=mixed, rank=rank, world=world) for rank in range(world)]
    parts: list[list[TrainBatch]] = []
    for loader in ranks:
        batches = loader.play(3)
        begun = list(islice(batches, min(stop, 3 * len(loader) - 1)))
        batches.close()
        again = fresh(PixelLabels(), batch=batch, mixed=mixed, rank=loader._rank, world=world)
        again.load_state_dict(loader.state_dict())
        parts.append([*begun, *again.play(3)])
    found = joined([piece for pieces in zip(*parts, strict=True) for piece in pieces])
    for name in TENSORS:
        assert torch.equal(found[name], whole[name]) or name == "logits", name
    torch.testing.assert_close(found["logits"], whole["logits"])  # a product of matrices, of other sizes
    views = whole["view"].reshape(3, IMAGES)
    assert torch.equal(views, torch.arange(3)[:, None].expand(3, IMAGES))  # epoch e plays view e
    assert all(sorted(images) == list(range(IMAGES)) for images in whole["index"].reshape(3, IMAGES).tolist())
    assert torch.equal(whole["targets"], whole["index"] % COLUMNS_OF_LABELS)
    assert bool((whole["lam"] < 1).all()) == mixed


def test_labels_are_made_of_the_pixels_that_the_batch_has() -> None:
    loader, labels = fresh(PixelLabels()), PixelLabels()
    for batch in loader:
        pixels = ((batch.images * 0.25 + 0.5) * 255).round().permute(0, 2, 3, 1)
        made = labels.of(Crops(0, batch.position.numpy(), CropRows((), np.zeros((0, 0), np.uint16)), pixels))
        torch.testing.assert_close(batch.logits, made)


def test_requests_come_ahead_in_the_order_of_the_crops() -> None:
    for mixed in (False, True):
        for batch in fresh(ReadAheadLabels(), batch=5, mixed=mixed, rank=1, world=2).play(2):
            assert batch.logits[:, 0].tolist() == batch.position.tolist()


def test_crops_without_labels() -> None:
    assert [tuple(batch.logits.shape) for batch in fresh(NoLabels(), batch=8)] == [(8, 0), (8, 0), (5, 0)]


def test_what_no_crop_source_can_play_is_refused() -> None:
    with pytest.raises(InputError, match="cannot be shuffled"):
        Loader(FreshCrops(), NoLabels(), batch_size=4)
    with pytest.raises(InputError, match="views: expected 1 to"):
        fresh(NoLabels(), views=0)
    other = Loader(FreshCrops(seed=1), NoLabels(), batch_size=6, view_order="cycle")
    with pytest.raises(InputError, match=r"crops_seed was 0 when it was saved and is 1 now"):
        other.load_state_dict(fresh(NoLabels()).state_dict())


def test_nothing_endless_waits_for_labels_that_ignore_what_is_ahead() -> None:
    loader = fresh(PixelLabels(), batch=IMAGES)
    with closing(loader.play(10**15)) as batches:
        for _ in range(3 * READ_AHEAD):
            next(batches)
    assert loader.epoch == 3 * READ_AHEAD


@dataclass(frozen=True)
class Error:
    """How an autoencoder does; less is better."""

    error: float

    @property
    def numbers(self) -> dict[str, float | None]:
        return {"error": self.error}


class Autoencoder(Objective):
    """Gives crops back from few numbers; needs no labels."""

    name = "autoencoder"
    numbers = ("error",)
    evaluates = True

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        pixels = 3 * SIZE * SIZE
        self.network = self.called = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(pixels, 6), torch.nn.Dropout(0.1), torch.nn.Linear(6, pixels)
        )
        self._held = next(iter(fresh(NoLabels(), batch=IMAGES, epoch=1000))).images
        self.made_of = made_of(config, self.name)

    def loss(self, called: torch.nn.Module, batch: TrainBatch) -> torch.Tensor:
        error: torch.Tensor = called(batch.images) - batch.images.flatten(1)
        return error.square().mean()

    def evaluate(self, network: torch.nn.Module) -> Error:
        network.eval()
        with torch.no_grad():
            return Error(float((network(self._held) - self._held.flatten(1)).square().mean()))

    def better(self, found: Score, best: Score) -> bool:
        assert isinstance(found, Error)
        assert isinstance(best, Error)
        return found.error < best.error

    def restored(self, fields: Mapping[str, Any]) -> Error:
        return Error(**fields)


class Regression(Objective):
    """A network that learns labels; nothing is evaluated."""

    name = "regression"

    def __init__(self, config: TrainConfig) -> None:
        torch.manual_seed(config.seed)
        self.network = self.called = torch.nn.Sequential(
            torch.nn.Flatten(), torch.nn.Linear(3 * SIZE * SIZE, COLUMNS_OF_LABELS)
        )
        self.made_of = made_of(config, self.name)

    def loss(self, called: torch.nn.Module, batch: TrainBatch) -> torch.Tensor:
        error: torch.Tensor = called(batch.images) - batch.logits
        return error.square().mean()


def made_of(config: TrainConfig, name: str) -> dict[str, Any]:
    """What the run of an objective is made of."""
    run = {"epochs": config.epochs, "schedule": "cosine", "eval_from": 0.0, "seed": config.seed, "processes": 1}
    return {"format": FORMAT, "objective": name, "run": run}


def trained(config: TrainConfig, objective: type[Autoencoder | Regression], labels: LabelSource) -> Mapping[str, Any]:
    """The summary of a run that is begun or continued."""
    with (
        hold(config.run),
        closing(start_run(config, Ranks(), StopSignals(), fresh(labels), objective(config))) as run,
    ):
        return loop.complete(run, Console(as_json=True))


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return from_flags(
        TrainConfig, store=tmp_path / "no store", images=tmp_path / "no images", student="none", epochs=5, batch_size=6,
        run_folder=tmp_path / "run", eval_every=2, seed=3, threads=1, lr=1e-3, checkpoint_every=1,
    )  # fmt: skip


CASES = [(Autoencoder, NoLabels), (Regression, PixelLabels)]


@pytest.mark.parametrize(("objective", "labels"), CASES, ids=["autoencoder", "regression"])
@pytest.mark.parametrize("ema", [None, 0.5])
def test_another_objective_is_trained_and_resumed_by_the_same_loop(
    objective: Any, labels: Any, ema: float | None, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, stopped = (replace(config, ema=ema, run=tmp_path / name) for name in ("whole", "stopped"))
    whole = trained(config, objective, labels())
    for steps in (6, 7):  # within the second and a later epoch
        with interrupted_after(steps):
            trained(stopped, objective, labels())
    resumed = trained(stopped, objective, labels())
    files = [file for file in ("last.safetensors", "best.safetensors") if (config.run / file).exists()]
    assert ("best.safetensors" in files) == (objective is Autoencoder)
    for file in files:
        assert (config.run / file).read_bytes() == (stopped.run / file).read_bytes()
    for name in ("steps", "last", "best", "evaluations"):
        assert resumed[name] == whole[name]
    losses = [json.loads(line)["loss"] for line in (stopped.run / "log.jsonl").read_text().splitlines()]
    assert len(losses) == config.epochs
    assert losses[-1] < losses[0]
    state = torch.load(stopped.run / "checkpoint.pt", weights_only=True)["state"]
    if ema is None:
        found = read_weights(stopped.run / "last.safetensors").tensors
        for name, value in state[objective.name].items():
            assert torch.equal(value, found[name])
    with pytest.raises(MismatchError, match=r"different run \(--seed\)"):
        trained(replace(stopped, seed=4), objective, labels())


def test_a_summary_states_the_objectives_first_number() -> None:
    values: dict[str, Any] = {"run": "r", "steps": 6, "steps_now": 6, "seconds": 1.0, "evaluations": 2}
    error = {"last": {"error": 0.25}, "best": {"error": 0.125, "epoch": 1}}
    assert summarise({**values, **error}).endswith(
        "; test error 0.25 at the last epoch, 0.125 at the best (epoch 2) of 2 evaluations"
    )
    top1 = {"last": {"top1": 50.0, "top5": 99.0}, "best": {"top1": 60.0, "epoch": 1}}
    assert summarise({**values, **top1}).endswith(
        "; test top-1 50.00 % at the last epoch, 60.00 % at the best (epoch 2) of 2 evaluations"
    )
    none = {"last": {"top1": None}, "best": {"top1": None, "epoch": None}, "evaluations": 0}
    assert summarise({**values, **none}).endswith("; no test images were given")
    assert summarise({**values, "last": {}, "best": {"epoch": None}}).endswith("; nothing was evaluated")
