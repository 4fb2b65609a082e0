"""Training: resumed bit for bit, and every loss and schedule through the whole loop."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import InputError, MismatchError
from tests.journeys.world import World, draw_images, giftwrap
from tests.trainer.interrupting import interrupted_after
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.loss_table import LOSSES
from trainer.run import Run
from trainer.summary import summarise

TIMES = ("seconds", "crops_per_second", "waiting_share")


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of four epochs with dropout-free ConvNet, momentum, and a test set."""
    folder = tmp_path_factory.mktemp("train")
    return from_flags(
        TrainConfig,
        store=world.store,
        images=world.images,
        student="convnet-d2",
        student_args='{"width": 16}',
        epochs=4,
        batch_size=7,
        run_folder=folder / "run",
        test_images=draw_images(folder / "test", per_class=4),
        eval_every=2,
        seed=5,
        threads=1,
    )


def log_of(run: Path) -> list[dict[str, Any]]:
    """The log without its clock readings."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name not in TIMES} for line in lines]


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(
    config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = loop.train(config, Console(as_json=True))
    run = changed(config, run_folder=tmp_path / "run")
    for steps in (2, 3, 2):  # before the first checkpoint, and within the second and third epoch
        with interrupted_after(steps):
            loop.train(run, Console(as_json=True))
    resumed = loop.train(run, Console(as_json=True))
    assert (run.run / "last.safetensors").read_bytes() == (config.run / "last.safetensors").read_bytes()
    assert (run.run / "best.safetensors").read_bytes() == (config.run / "best.safetensors").read_bytes()
    assert log_of(run.run) == log_of(config.run)
    for name in ("steps", "last", "best"):
        assert resumed[name] == whole[name]


def test_a_run_keeps_its_views_when_the_store_is_extended(
    config: TrainConfig, world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = shutil.copytree(world.store, tmp_path / "store")
    run = changed(config, store=store, run_folder=tmp_path / "run", epochs=3, eval_every=3)
    original = loop.one_epoch

    def once(*args: Any) -> dict[str, Any]:
        if args[0].replay.epoch:
            raise KeyboardInterrupt
        return original(*args)

    monkeypatch.setattr(loop, "one_epoch", once)
    with pytest.raises(KeyboardInterrupt):
        loop.train(run, Console(as_json=True))
    monkeypatch.setattr(loop, "one_epoch", original)
    views = LabelStore.open(store).state.views_sealed
    assert giftwrap(*world.build_words(store, "--views", views + 1)).code == 0
    assert LabelStore.open(store).state.views_sealed > views
    loop.train(run, Console(as_json=True))
    whole = changed(run, store=world.store, run_folder=tmp_path / "whole")
    loop.train(whole, Console(as_json=True))
    assert log_of(run.run) == log_of(whole.run)
    first = changed(run, views=views, run_folder=tmp_path / "first")
    loop.train(first, Console(as_json=True))
    assert log_of(first.run) == log_of(whole.run)


def test_views_that_are_not_the_runs_or_never_built_are_refused(config: TrainConfig, world: World) -> None:
    views = LabelStore.open(world.store).state.views_sealed
    with pytest.raises(InputError, match=rf"views: expected 1 to {views}.*`pipeline build --views {views + 1}` adds"):
        loop.train(changed(config, views=views + 1), Console(as_json=True))
    loop.train(config, Console(as_json=True))
    with pytest.raises(MismatchError, match=rf"different run \(store\.views\): the folder has {views}, this run has 1"):
        loop.train(changed(config, views=1), Console(as_json=True))


def test_a_run_of_other_flags_is_refused(config: TrainConfig) -> None:
    loop.train(config, Console(as_json=True))
    with pytest.raises(MismatchError, match=r"different run \(--gamma\): the folder has 0\.1, this run has 0\.2"):
        loop.train(changed(config, gamma=0.2), Console(as_json=True))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_lowers_itself(loss: Any, config: TrainConfig, tmp_path: Path) -> None:
    run = changed(config, loss=loss, epochs=8, run_folder=tmp_path / "run", test_images=None, lr=3e-3)
    summary = loop.train(run, Console(as_json=True))
    assert summary["last"] == {"top1": None, "top5": None, "loss": None}
    losses = [line["loss"] for line in log_of(run.run)]
    assert losses[-1] < losses[0]


def test_autocast_and_schedules(config: TrainConfig, tmp_path: Path) -> None:
    run = changed(config, dtype="bfloat16", optimizer="SGD", lr=1e-3, optimizer_args='{"momentum": 0.9}',
        schedule="step", schedule_per="epoch", milestones=(0.5,), drop=0.1, run_folder=tmp_path / "run",
        test_images=None,
    )  # fmt: skip
    loop.train(run, Console(as_json=True))
    assert [line["lr"] for line in log_of(run.run)] == pytest.approx([1e-3, 1e-3, 1e-4, 1e-4])


@pytest.mark.parametrize(("every", "share", "saved"), [(None, 1e9, 4), (None, 1e-9, 2), (1, 1e-9, 4), (3, 1e9, 2)])
def test_checkpoints_are_as_frequent_as_they_are_cheap(
    every: int | None, share: float, saved: int, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[int] = []
    original = Run.save

    def noting(run: Run) -> None:
        original(run)
        steps.append(run.step)

    monkeypatch.setattr(loop, "SAVING_SHARE", share)
    monkeypatch.setattr(Run, "save", noting)
    run = changed(config, run_folder=tmp_path / "run", checkpoint_every=every, test_images=None)
    summary = loop.train(run, Console(as_json=True))
    assert len(steps) == saved
    assert steps[-1] == summary["steps"]


def test_a_run_that_begins_again_says_so(
    config: TrainConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = changed(config, run_folder=tmp_path / "run", test_images=None)
    loop.train(run, Console())
    again = loop.train(run, Console())
    assert (again["steps"], again["steps_now"]) == (16, 0)
    assert "16 steps, 0 of them now, in" in summarise(again)
    assert "begins again" not in capsys.readouterr().err
    (run.run / "checkpoint.pt").unlink()
    assert loop.train(run, Console())["steps_now"] == 16
    assert "checkpoint.pt: there is no checkpoint; the run and its log start again" in capsys.readouterr().err


def test_a_run_needs_a_folder(config: TrainConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for run in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(InputError, match="expected a folder, found a file in its place; give another --run"):
            loop.train(changed(config, run_folder=run), Console(as_json=True))
