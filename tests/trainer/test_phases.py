"""Phases and changing temperatures: what each epoch plays and is trained by, continued exactly, and what is refused."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError, MismatchError
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.ranks import Ranks
from tests.journeys.world import World, draw_images
from tests.trainer.interrupting import interrupted_after
from trainer import loss_plan
from trainer import train as loop
from trainer.batch import TrainBatch
from trainer.choices import LossSpec
from trainer.config import TrainConfig
from trainer.loss_plan import LossPlan
from trainer.losses import ce_loss
from trainer.material import open_material
from trainer.order import Order
from trainer.phased import with_phases
from trainer.phases import Phase, phases_of
from trainer.relabel import LabelColumns
from trainer.runs import read_run
from trainer.temperatures import TemperatureOptions

PHASES = "kl:2,ce:3,kl:2"
MIXED: dict[str, Any] = {"mix": "cutmix", "group": 4, "scale": (0.3, 0.9)}
SAMPLE: dict[str, Any] = {"epochs": 7, "phase": PHASES, "temperature": 4.0, "hard_smoothing": 0.3, **MIXED}
COLUMNS = LabelColumns(3, ("ant", "bee", "cat"), (0, 1, 2))
TIMES = ("seconds", "crops_per_second", "waiting_share")


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of seven epochs in three phases, of which the second plays fresh mixed crops."""
    folder = tmp_path_factory.mktemp("phases")
    return from_flags(
        TrainConfig,
        store=world.store,
        images=world.images,
        student="convnet-d2",
        student_args='{"width": 8}',
        batch_size=7,
        run_folder=folder / "run",
        test_images=draw_images(folder / "test", per_class=2),
        eval_every=3,
        seed=5,
        threads=1,
        **SAMPLE,
    )


def log_of(run: Path) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def batch_of(n: int = 6, seed: int = 0) -> tuple[Tensor, TrainBatch]:
    draw = torch.Generator().manual_seed(seed)
    x, t = (torch.randn(n, 3, generator=draw) * 3 for _ in range(2))
    y, y2 = (torch.randint(0, 3, (n,), generator=draw) for _ in range(2))
    empty = torch.zeros(n)
    return x.requires_grad_(), TrainBatch(empty, t, y, y2, torch.rand(n, generator=draw), empty, empty, empty)


def test_each_epoch_plays_the_crops_of_its_phase(config: TrainConfig, world: World) -> None:
    """Against the store and the plan themselves: rows, labels and targets, in whole epochs and continued within one."""
    store = LabelStore.open(world.store)
    order = Order(views=store.state.views_sealed, images=store.identity.images, seed=5)
    plan = Plan(PlanSpec(size=store.identity.size, seed=5, **MIXED), *sizes_of(config))
    soft = [0, 1, None, None, None, 2, 3]
    with closing(with_phases(open_material(config, Ranks(), None), config, Ranks()).loader) as loader:
        states, batches = [], []
        for batch in loader.play(7):
            batches.append(batch)
            states.append(loader.state_dict())
        assert len(batches) == 7 * len(loader)
        for epoch, count in enumerate(soft):
            whole = batches[epoch * len(loader) : (epoch + 1) * len(loader)]
            index = torch.cat([batch.index for batch in whole]).numpy()
            logits = torch.cat([batch.logits for batch in whole]).numpy()
            if count is None:
                rows = plan.rows_at(epoch, np.arange(store.identity.images))
                assert logits.shape[1] == 0
                np.testing.assert_array_equal(index, rows.image)
                weights = rows.weights(store.identity.size)
                np.testing.assert_array_equal(torch.cat([batch.lam for batch in whole]).numpy(), weights)
                assert (weights < 1).any()
            else:
                labels = store.read(order.view(count), slice(None))
                np.testing.assert_array_equal(index, labels.rows.image)
                np.testing.assert_array_equal(logits, labels.logits)
            np.testing.assert_array_equal(torch.cat([batch.targets for batch in whole]).numpy(), store.targets[index])
        for cut in (1, 7, 9, 18):  # within each phase, and between two
            loader.load_state_dict(states[cut])
            for ours, theirs in zip(loader.play(7), batches[cut + 1 :], strict=True):
                assert torch.equal(ours.images, theirs.images)
                assert torch.equal(ours.logits, theirs.logits)
                assert torch.equal(ours.lam, theirs.lam)


def sizes_of(config: TrainConfig) -> tuple[Any, Any]:
    with closing(open_material(config, Ranks(), None).loader) as loader:
        manifest = loader.crops.source.manifest  # type: ignore[attr-defined]
        return manifest.heights, manifest.widths


def test_processes_share_the_batches_of_each_phase(config: TrainConfig) -> None:
    def batches(ranks: Ranks) -> list[TrainBatch]:
        with closing(with_phases(open_material(config, ranks, None), config, ranks).loader) as loader:
            return list(loader.play(4))

    whole = batches(Ranks())
    parts = [batches(Ranks(rank=rank, world=2)) for rank in range(2)]
    for one, *both in zip(whole, *parts, strict=True):
        assert torch.equal(one.images, torch.cat([part.images for part in both]))
        assert torch.equal(one.lam, torch.cat([part.lam for part in both]))


STEPS = {"temperature_every": 2, "temperature_floor": 1.0, "calibrate_student": True}


def by_logits(x: Tensor, t: Tensor, teacher: float) -> list[float]:
    """Costs whose smallest is somewhere from 0.51 to 1, and elsewhere for other logits of the last batch."""
    del t, teacher
    place = 50 + int(x.abs().sum() * 1e4) % 50
    return [abs(number - place) for number in range(100)]


def test_a_run_that_is_killed_within_each_phase_comes_to_the_same_student(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loss_plan, "divergences", by_logits)
    whole = changed(config, run_folder=tmp_path / "whole", **STEPS)
    loop.train(whole, Console(as_json=True))
    run = changed(config, run_folder=tmp_path / "run", checkpoint_steps=1, **STEPS)
    for steps in (3, 6, 16):  # within the first, the second and the third phase
        with interrupted_after(steps):
            loop.train(run, Console(as_json=True))
    loop.train(run, Console(as_json=True))
    for name in ("last.safetensors", "best.safetensors"):
        assert (run.run / name).read_bytes() == (whole.run / name).read_bytes()
    entries = log_of(run.run)
    assert entries == log_of(whole.run)
    assert [entry["phase"] for entry in entries] == [1, 1, 2, 2, 2, 3, 3]
    assert len({entry["view"] for entry in entries if entry["phase"] != 2}) == 4
    soft = [entry for entry in entries if entry["phase"] != 2]
    assert [entry["temperature"] for entry in soft] == pytest.approx([4, 4 * 0.7, 4 * 0.7**3, 4 * 0.7**3])
    assert soft[0]["student_temperature"] == 1
    assert len({entry["student_temperature"] for entry in soft}) > 2
    assert not any("temperature" in entry for entry in entries if entry["phase"] == 2)


def test_other_phases_are_another_run(config: TrainConfig, tmp_path: Path) -> None:
    run = changed(config, run_folder=tmp_path / "run", epochs=2, phase="kl:1,ce:1")
    text = json.dumps(loop.train(run, Console(as_json=True)))
    assert "nan" not in text.lower()
    made = json.loads((run.run / "config.json").read_text())["made_of"]
    assert made["loss"] == {"name": "kl:1,ce:1", "temperature": 4.0, "t_squared": False, "hard_smoothing": 0.3}
    assert made["crops"]["plan"]["mix"] == "cutmix"
    assert read_run(run.run).flags["loss"] == "kl:1,ce:1"  # in the column of --loss of a table
    for other in ({"phase": "ce:1,kl:1"}, {"group": 6}, {"hard_smoothing": 0.2}):
        with pytest.raises(MismatchError):
            loop.train(changed(run, **other), Console(as_json=True))


@pytest.mark.parametrize("source", ["online", "image"])
def test_phases_of_fresh_crops_make_no_labels_for_hard_epochs(source: str, world: World, tmp_path: Path) -> None:
    teacher = {"teacher": ("convnet-d2",), "weights": (str(world.weights),), "size": 16}
    of = (
        {**teacher, "teacher_args": ('{"width": 16, "norm": "batch"}',)}
        if source == "online"
        else {"store": world.store, "label_view": 0}
    )
    run = from_flags(
        TrainConfig, images=world.images, labels=source, student="convnet-d2", run_folder=tmp_path / "run", threads=1,
        epochs=3, phase="kl:1,ce:1,soft_ce:1", **of,
    )  # fmt: skip
    with closing(with_phases(open_material(run, Ranks(), None), run, Ranks()).loader) as loader:
        batches = list(loader.play(3))
        assert [batch.logits.shape[1] for batch in batches] == [3, 0, 3]
        assert [int(batch.view[0]) for batch in batches] == [0, 1, 2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"phase": "kl:3,ce:3"}, r"--phase kl:3,ce:3: has 6 epochs in all, and --epochs 7; give as many"),
        ({"phase": "kl:7"}, "expected several phases, found one; give --loss kl"),
        ({"phase": "kl:3,kl:4"}, "kl follows itself, which is one phase; give kl:7"),
        ({"phase": "kl:3,cee:4"}, r"--phase: expected LOSS:EPOCHS.*found 'cee:4'; did you mean ce"),
        ({"phase": "kl:3,ce:0"}, "found 'ce:0'"),
        ({"phase": "kl,ce:4"}, "found 'kl'"),
        ({"loss": "mse"}, "--loss mse: has no effect with --phase"),
        ({"gamma": 0.2}, "--phase kl:2,ce:3,kl:2 does not use --gamma"),
        ({"follow": True}, "--follow: waits for views.*leave it out"),
        ({"class_order": "bytes"}, "--class-order: has no effect"),
        ({"phase": None, "loss": "kl", "hard_smoothing": 0.0}, "--scale: has no effect with --labels stored"),
        ({"phase": "kl:4,gift:3", "hard_smoothing": 0.0}, "--scale: has no effect with --labels stored"),
        ({"relabel": ("soften",)}, "--loss kl: is a loss of logits"),
        ({"temperature_drop": 0.5}, "--temperature-drop: has an effect only with --temperature-every"),
        ({"temperature_every": 0}, "--temperature-every: expected at least 1"),
        ({"temperature_every": 2, "temperature_drop": 1.0}, "--temperature-drop: expected a number between 0 and 1"),
        ({"temperature_every": 2, "temperature_floor": 4.0}, "--temperature-floor: expected less than --temperature 4"),
        ({"phase": "mse:4,ce:3", "temperature": 20.0, "calibrate_student": True}, "effect only with --loss kl"),
        ({"calibrate_student": True, "relabel": ("temperature=2",)}, "--calibrate-student: compares.*--relabel temp"),
    ],
)  # fmt: skip
def test_what_has_no_effect_is_refused(words: dict[str, Any], message: str, config: TrainConfig) -> None:
    with pytest.raises(InputError, match=message):
        changed(config, **words)


def test_phases_take_losses_of_the_user() -> None:
    phases = phases_of("my.losses:mine:3, ce:2", LossSpec(hard_smoothing=0.1))
    assert [(phase.loss.name, phase.epochs) for phase in phases] == [("my.losses:mine", 3), ("ce", 2)]
    assert phases[1].loss.numbers == {"hard_smoothing": 0.1}


def test_smoothed_hard_labels_are_torchs() -> None:
    x, batch = batch_of()
    y, y2, lam = batch.targets, batch.targets2, batch.lam
    wanted = functional.cross_entropy(x, y, label_smoothing=0.8)
    torch.testing.assert_close(ce_loss(x, y, hard_smoothing=0.8), wanted)
    each = [functional.cross_entropy(x, k, label_smoothing=0.8, reduction="none") for k in (y, y2)]
    mixed = ce_loss(x, y, y2, lam, hard_smoothing=0.8)
    torch.testing.assert_close(mixed, (lam * each[0] + (1 - lam) * each[1]).mean())
    assert LossSpec(name="ce").to_json() == {"name": "ce"}  # as it was


@pytest.mark.parametrize("t_squared", [False, True])
def test_temperatures_are_those_of_lpqlds_code(t_squared: bool) -> None:
    """Value and gradient of each epoch against torch's divergence, with its authors' formulas and their grid."""
    options = TemperatureOptions(every=3, drop=0.7, floor=2.0, calibrate=True)
    spec = LossSpec(name="kl", temperature=20.0, t_squared=t_squared)
    plan = LossPlan([Phase(spec, 30)], (), options, COLUMNS)
    student = 1.0
    for epoch in range(30):
        x, batch = batch_of(seed=epoch)
        teacher = max(20 * 0.7 ** ((epoch + 1) // 3), 2)  # their epochs are counted from 1
        p = (batch.logits / teacher).softmax(1)

        def divergence(temperature: float, x: Tensor = x, p: Tensor = p) -> Tensor:
            return functional.kl_div((x / temperature).log_softmax(1), p, reduction="batchmean")

        plan.begin_epoch(epoch)
        wanted = divergence(student) * (teacher**2 if t_squared else 1)
        found = plan(x, batch)
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)
        ours, theirs = torch.autograd.grad(found, x)[0], torch.autograd.grad(wanted, x)[0]
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
        entry = plan.end_epoch(Ranks())
        assert entry == {"temperature": pytest.approx(teacher), "student_temperature": pytest.approx(student)}
        grid = np.linspace(0.01, 1, 100)
        student = float(grid[np.argmin([divergence(float(t)).item() for t in grid])])
        assert plan.state() == {"student_temperature": pytest.approx(student)}


@dataclass(frozen=True)
class Gathering(Ranks):
    """Ranks of which the others have given these values."""

    others: tuple[list[float], ...] = ()

    def all_gather(self, value: Any) -> list[Any]:
        return [value, *self.others]


def test_processes_calibrate_by_all_of_the_last_batch() -> None:
    options = TemperatureOptions(calibrate=True)
    phases = [Phase(LossSpec(name="kl", temperature=4.0), 3)]
    found = []
    for own, shares in (((0, 6), (1.0,)), ((0, 4), (1.0, 1.0)), ((0, 6), (1.0, 0.0))):
        noise, batch = batch_of(seed=2)
        x = batch.logits / 10 + noise.detach() / 100  # nearly the labels at T = 4 / 10
        plan = LossPlan(phases, (), options, COLUMNS)
        plan(x[slice(*own)], replace(batch[slice(*own)], share=1.0))
        rest = slice(own[1], None)
        others = [
            loss_plan.divergences(x[rest], batch.logits[rest], 4.0) if share and own[1] < 6 else [0.0] * 100
            for share in shares[1:]
        ]
        plan.end_epoch(Gathering(others=tuple(others)))
        found.append(plan.state()["student_temperature"])
    assert found[0] == pytest.approx(0.4, abs=0.1)
    assert found == [found[0]] * 3
    plan = LossPlan(phases, (), options, COLUMNS)
    plan(x, replace(batch, share=0.0))  # a crop that only fills a slice counts nothing
    plan.end_epoch(Gathering(others=([float(number) for number in range(100, 0, -1)],)))
    assert plan.state()["student_temperature"] == 1


def test_a_temperature_that_stays_is_the_plain_loss() -> None:
    x, batch = batch_of()
    spec = LossSpec(name="kl", temperature=5.0)
    steps = LossPlan([Phase(spec, 9)], (), TemperatureOptions(every=4), COLUMNS)
    plain = LossPlan([Phase(spec, 9)], (), TemperatureOptions(), COLUMNS)
    assert torch.equal(steps(x, batch), plain(x, batch))
    assert (plain.state(), plain.end_epoch(Ranks())) == ({}, {})
    steps.begin_epoch(3)
    assert not torch.equal(steps(x, batch), plain(x, batch))
