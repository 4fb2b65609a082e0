"""What `train` takes besides: first weights, the user's losses and optimisers, warm-up, steps.jsonl, more epochs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError, MismatchError
from pipeline.networks import build_network, save_weights
from tests.journeys.world import SIDE, VIEWS, World, draw_images
from tests.trainer.interrupting import interrupted_after
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.losses import LossSpec, make_loss
from trainer.optimisers import OPTIMISERS, OptimiserSpec, defaults_of, optimiser_of
from trainer.schedules import ScheduleSpec, lr_factor


def mean_square(x: Tensor, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
    return (x - t).square().mean()


def vector(x: Tensor, t: Tensor, *_: object) -> Tensor:
    return (x - t).square().mean(1)


def scaled_square(x: Tensor, t: Tensor, *_: object, scale: float) -> Tensor:
    return scale * (x - t).square().mean()


def short(x: Tensor) -> Tensor:
    return x.sum()


class Plain(torch.optim.SGD):
    """SGD whose rate has to be given."""

    def __init__(self, params: Any, lr: float, *, weight_decay: float = 0.25) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay)


def free(params: Any, **_: Any) -> object:
    return object()


HERE = "tests.trainer.test_additions"


@pytest.fixture
def config(world: World, tmp_path: Path) -> TrainConfig:
    return from_flags(
        TrainConfig,
        store=world.store, images=world.images, student="convnet-d1", student_args='{"width": 8}', epochs=2,
        batch_size=8, run_folder=tmp_path / "run", schedule="constant", threads=1,
    )  # fmt: skip


def train(config: TrainConfig, **changes: Any) -> Any:
    return loop.train(changed(config, **changes), Console(as_json=True))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize(("per", "rise"), [("epoch", 2), ("step", 6)])
def test_the_rate_rises_and_then_the_schedule_begins(per: Any, rise: int) -> None:
    spec = ScheduleSpec(name="step", per=per, milestones=(0.5,), drop=0.1, warmup=2)
    rates = [lr_factor(spec, step, 30, steps_per_epoch=3) for step in range(30)]
    units = rates[::3] if per == "epoch" else rates
    expected = [(k + 1) / (rise + 1) for k in range(rise)]
    rest = len(units) - rise
    assert units == pytest.approx([*expected, *[1.0] * (rest // 2), *[0.1] * (rest - rest // 2)])
    assert lr_factor(ScheduleSpec(name="cosine", warmup=0), 0, 30, steps_per_epoch=3) == 1


def test_a_warm_up_ends_before_the_run(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="--warmup-epochs: expected 0 to 1, fewer than --epochs, found 2"):
        changed(config, warmup_epochs=2)


def test_a_run_begins_with_the_weights_of_another(config: TrainConfig, tmp_path: Path) -> None:
    train(config)
    train(
        config,
        run_folder=tmp_path / "second",
        student_weights=str(config.run / "last.safetensors"),
        lr=0.0,
        weight_decay=0.0,
    )
    first, second = (load_file(run / "last.safetensors") for run in (config.run, tmp_path / "second"))
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = tmp_path / "other.safetensors"
    save_weights({name: value + 1 for name, value in first.items()}, other)
    with pytest.raises(MismatchError, match=r"different run \(student\.begins\)"):
        train(config, run_folder=tmp_path / "second", student_weights=str(other), lr=0.0, weight_decay=0.0)


def test_a_classifier_of_another_width_is_replaced_only_when_told(config: TrainConfig, tmp_path: Path) -> None:
    wide = build_network("convnet-d1", {"width": 8}, 10, size=SIDE).state_dict()
    save_weights(wide, tmp_path / "wide.safetensors")
    given: dict[str, Any] = {"student_weights": str(tmp_path / "wide.safetensors"), "lr": 0.0, "weight_decay": 0.0}
    with pytest.raises(InputError, match=r"expected a classifier of 3 columns.*found 10; --new-head"):
        train(config, **given)
    train(config, **given, new_head=True)
    found = load_file(config.run / "last.safetensors")
    assert found["classifier.weight"].shape[0] == 3
    assert all(torch.equal(found[name], wide[name]) for name in wide if not name.startswith("classifier"))
    with pytest.raises(InputError, match=r"--new-head: the classifier of .* has 3 columns, as the labels have"):
        train(config, run_folder=tmp_path / "r", student_weights=str(config.run / "last.safetensors"), new_head=True)
    save_weights(build_network("convnet-d1", {"width": 4}, 10, size=SIDE).state_dict(), tmp_path / "thin.safetensors")
    for head in (True, False):
        with pytest.raises(InputError, match=r"--new-head: .*more than the classifier|do not fit"):
            train(config, run_folder=tmp_path / "r", student_weights=str(tmp_path / "thin.safetensors"), new_head=head)
    with pytest.raises(InputError, match="--new-head: has an effect only with --student-weights"):
        changed(config, new_head=True)


def test_a_loss_of_the_users(config: TrainConfig, tmp_path: Path) -> None:
    train(config, loss=f"{HERE}:mean_square")
    train(config, loss="mse", run_folder=tmp_path / "ours")
    assert [line["loss"] for line in lines(config.run / "log.jsonl")] == pytest.approx(
        [line["loss"] for line in lines(tmp_path / "ours" / "log.jsonl")], rel=1e-5
    )
    assert HERE in json.loads((config.run / "config.json").read_text())["made_of"]["code"]
    for name, why in (("vector", "expected the mean loss"), ("short", "fails when called as"), ("none", "imported")):
        with pytest.raises(InputError, match=f"--loss {HERE}:{name}: .*{why}"):
            make_loss(LossSpec(name=f"{HERE}:{name}"))
    with pytest.raises(InputError, match="does not use --gamma"):
        changed(config, loss=f"{HERE}:mean_square", gamma=0.3)


def test_a_loss_of_the_users_with_a_number_of_its_own(config: TrainConfig, tmp_path: Path) -> None:
    options: dict[str, Any] = {"loss": f"{HERE}:scaled_square", "loss_args": '{"scale": 1}'}
    train(config, **options)
    train(config, loss="mse", run_folder=tmp_path / "ours")
    assert [line["loss"] for line in lines(config.run / "log.jsonl")] == pytest.approx(
        [line["loss"] for line in lines(tmp_path / "ours" / "log.jsonl")], rel=1e-5
    )
    assert json.loads((config.run / "config.json").read_text())["made_of"]["loss"]["scale"] == 1
    with pytest.raises(MismatchError, match=r"different run \(.*scale"):
        train(config, loss=options["loss"], loss_args='{"scale": 2}')
    with pytest.raises(InputError, match="--loss-args: --loss kl takes none, found scale; leave it out"):
        changed(config, loss="kl", loss_args='{"scale": 2}')
    with pytest.raises(InputError, match="--loss-args: expected a JSON object"):
        changed(config, loss="kl", loss_args="2")


def test_an_optimiser_of_the_users(config: TrainConfig) -> None:
    with pytest.raises(InputError, match="has no default learning rate; give --lr"):
        train(config, optimizer=f"{HERE}:Plain")
    train(config, optimizer=f"{HERE}:Plain", lr=0.01)
    made = json.loads((config.run / "config.json").read_text())["made_of"]["optimizer"]
    assert (made["lr"], made["weight_decay"]) == (0.01, 0.25)
    with pytest.raises(InputError, match=r"expected a torch\.optim\.Optimizer, found object"):
        OptimiserSpec(name=f"{HERE}:free", lr=0.1, weight_decay=0.0)


def test_an_optimiser_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(OPTIMISERS, "Plain", f"{HERE}:Plain")
    made = OptimiserSpec(name="Plain", lr=0.1, weight_decay=0.0).make([("w", nn.Parameter(torch.ones(2)))])
    assert isinstance(made, Plain)
    with pytest.raises(InputError, match=r"expected one of .*SGD, Plain, or module:attribute, .*did you mean Plain"):
        OptimiserSpec(name="plain", lr=0.1, weight_decay=0.0)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_each_optimiser_has_defaults_of_its_own(
    name: str, config: TrainConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = optimiser_of(changed(config, optimizer=name).optimiser)
    make: Any = OPTIMISERS[name]
    theirs = make([nn.Parameter(torch.zeros(1, 1))]).defaults
    ours = {"AdamW": (1e-3, 1e-4), "SGD": (0.01, 5e-4)}.get(name, (theirs["lr"], theirs.get("weight_decay", 0.0)))
    assert (spec.lr, spec.weight_decay) == ours
    assert defaults_of(name).args == ({"momentum": 0.9} if name == "SGD" else {})
    if name == "SGD":
        loop.train(changed(config, optimizer=name), Console())
        said = capsys.readouterr().out
        assert all(part in said for part in ("trains by gift", "momentum 0.9", "lr 0.01", "weight_decay 0.0005"))
        assert f"2 epochs over {VIEWS} views: {VIEWS - 2} never, 2 once" in said


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"milestones": (0.3,)}, "--schedule constant does not use --milestones"),
        ({"schedule": "step", "horizon": 2.0}, "--schedule step does not use --horizon"),
        ({"schedule": "cosine", "drop": 0.5}, "--schedule cosine does not use --drop"),
        ({"follow": True, "view_order": "shuffle"}, "--view-order shuffle: --follow plays views in stored order"),
    ],
)
def test_what_has_no_effect_with_another_choice_is_refused(
    changes: dict[str, Any], message: str, config: TrainConfig
) -> None:
    with pytest.raises(InputError, match=message):
        changed(config, **changes)


def test_steps_are_logged_with_the_gradients_norm(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    norms: list[float] = []
    original = torch.optim.AdamW.step

    def noting(this: Any, *args: Any) -> Any:
        grads = [p.grad.double().flatten() for group in this.param_groups for p in group["params"]]
        norms.append(float(torch.cat(grads).norm()))
        return original(this, *args)

    with monkeypatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", noting)
        train(config, log_every=2)
    found = lines(config.run / "steps.jsonl")
    assert [line["step"] for line in found] == [2, 4, 6]
    assert [line["gradient_norm"] for line in found] == pytest.approx(
        norms[-6:][1::2], rel=1e-5
    )  # the trial before takes steps of its own
    clipped = tmp_path / "clipped"
    train(config, run_folder=clipped, log_every=2, clip_norm=1e-3)  # said as it is before it is bounded
    assert lines(clipped / "steps.jsonl")[0]["gradient_norm"] > 1e-3
    run = tmp_path / "stopped"
    for steps in (4, 2):
        with interrupted_after(steps):
            train(config, run_folder=run, log_every=2, checkpoint_steps=3)
    train(config, run_folder=run, log_every=2, checkpoint_steps=3)
    assert lines(run / "steps.jsonl") == found


def test_a_finished_run_is_lengthened(config: TrainConfig, tmp_path: Path) -> None:
    test: dict[str, Any] = {"test_images": draw_images(tmp_path / "test", per_class=2), "warmup_epochs": 1}
    train(config, **test, epochs=20)
    summary = train(config, **test, epochs=30)
    assert (summary["steps"], summary["steps_now"]) == (90, 30)
    assert summary["evaluations"] == 15  # every second epoch, as it began
    train(config, **test, epochs=30, eval_every=2, run_folder=tmp_path / "whole")
    for name in ("last.safetensors", "best.safetensors"):
        assert (config.run / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    (change,) = json.loads((config.run / "config.json").read_text())["changed"]
    assert change == {"step": 60, "at": "run.epochs", "was": 20, "is": 30}
    assert train(config, **test, epochs=30)["steps_now"] == 0
    with pytest.raises(MismatchError, match=r"\(--epochs\): the folder has 30, this run has 20"):
        train(config, **test, epochs=20, eval_every=2)


@pytest.mark.parametrize(
    ("changes", "flag"),
    [
        ({"schedule": "cosine"}, "--schedule cosine"),
        ({"schedule": "step"}, "--schedule step"),
        ({"eval_from": 0.5}, "--eval-from"),
    ],
)
def test_what_forbids_more_epochs_is_named(changes: dict[str, Any], flag: str, config: TrainConfig) -> None:
    train(config, **changes)
    with pytest.raises(InputError, match=f"--epochs 3: the run started with 2, and {flag}"):
        train(config, **changes, epochs=3)


def test_a_mean_longer_than_the_run_is_said(config: TrainConfig, capsys: pytest.CaptureFixture[str]) -> None:
    train(config, ema=0.9999)
    assert "--ema 0.9999: a mean over some 10,000 steps, of a run of 6" in capsys.readouterr().err
