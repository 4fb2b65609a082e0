"""Runs that are killed, stopped by a signal, or diverge: what is kept, and that it goes on as if nothing had been."""

from __future__ import annotations

import json
import math
import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from labelstore.command.console import Console, Stopped
from labelstore.command.flags import changed, from_flags
from labelstore.errors import GiftwrapError, MismatchError
from pipeline.networks.weights import read_weights
from tests.journeys.world import SERVER, World, draw_images, giftwrap
from trainer import student
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.step import step

TIMES = ("seconds", "crops_per_second", "waiting_share")
STEPS = 8


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    """A run of two epochs of four steps, with momentum, dropout, a running mean and a test set."""
    folder = tmp_path_factory.mktemp("stopped")
    return from_flags(
        TrainConfig,
        store=world.store,
        images=world.images,
        student="tests.trainer.test_stopped:Student",
        epochs=2,
        batch_size=7,
        run_folder=folder / "run",
        test_images=draw_images(folder / "test", per_class=4),
        eval_every=1,
        ema=0.9,
        clip_norm=1.0,
        seed=5,
        threads=1,
        checkpoint_every=2,
    )


class Student(torch.nn.Sequential):
    """Draws from torch's generator at every step, and has buffers."""

    def __init__(self, num_classes: int) -> None:
        norm = torch.nn.BatchNorm2d(8)
        pool = torch.nn.AdaptiveAvgPool2d(2)
        conv = torch.nn.Conv2d(3, 8, 3)
        super().__init__(
            conv, norm, torch.nn.ReLU(), pool, torch.nn.Flatten(), torch.nn.Dropout(), torch.nn.Linear(32, num_classes)
        )


@pytest.fixture(scope="module")
def whole(config: TrainConfig) -> dict[str, Any]:
    """What comes of the run when nothing stops it."""
    loop.train(config, Console(as_json=True))
    return results(config.run)


def results(run: Path) -> dict[str, Any]:
    """All that a run leaves, without clock readings."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    files = {name: (run / name).read_bytes() for name in ("last.safetensors", "best.safetensors", "classes.csv")}
    return {"log": [{k: v for k, v in line.items() if k not in TIMES} for line in lines], **files}


def train_until(config: TrainConfig, name: str, call: int, number: int) -> None:
    """Train; the ``call``-th call of a function of the loop, or of the student, sends a signal when it ends."""
    torch.set_num_threads(1)
    home: Any = loop if hasattr(loop, name) else student
    original, calls = getattr(home, name), 0

    def signalling(*args: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        result = original(*args, **named)
        if calls == call:
            os.kill(os.getpid(), number)
        return result

    setattr(home, name, signalling)
    try:
        loop.train(config, Console(as_json=True))
    finally:
        setattr(home, name, original)


def test_killed_at_every_step_it_is_the_same_run(config: TrainConfig, whole: dict[str, Any], tmp_path: Path) -> None:
    run = changed(config, run_folder=tmp_path / "run", checkpoint_steps=1)
    for _ in range(STEPS):
        process = SERVER.Process(target=train_until, args=(run, "step", 2, signal.SIGKILL))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == -signal.SIGKILL
    loop.train(run, Console(as_json=True))
    assert results(run.run) == whole


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_at_any_step_saves_behind_it(
    number: int, config: TrainConfig, whole: dict[str, Any], tmp_path: Path
) -> None:
    error = KeyboardInterrupt if number == signal.SIGINT else Stopped
    for first in range(1, STEPS + 1, 3):
        run = changed(config, run_folder=tmp_path / f"run{first}")
        for call in (first, STEPS - first):
            if call:
                with pytest.raises(error):
                    train_until(run, "step", call, number)
        resumed = loop.train(run, Console(as_json=True))
        assert resumed["steps"] == STEPS
        assert results(run.run) == whole


@pytest.mark.parametrize("name", ["evaluated", "save_weights", "write_classes"])
def test_a_signal_while_the_student_is_evaluated_loses_no_epoch(
    name: str, config: TrainConfig, whole: dict[str, Any], tmp_path: Path
) -> None:
    run = changed(config, run_folder=tmp_path / "run", checkpoint_every=2)
    with pytest.raises(Stopped):
        train_until(run, name, 1, signal.SIGTERM)
    steps: list[int] = []
    train_with_step(run, lambda run: steps.append(run.step))
    assert steps == list(range(STEPS // 2, STEPS))
    assert results(run.run) == whole


def train_with_step(config: TrainConfig, note: Callable[[Any], object]) -> None:
    """Train, and have each step noted."""

    def noted(run: Any, batch: Any) -> torch.Tensor:
        note(run)
        return step(run, batch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", noted)
        loop.train(config, Console(as_json=True))


def test_the_command_says_how_to_go_on(config: TrainConfig, world: World, tmp_path: Path) -> None:
    words = ["trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d1"]
    words += ["--threads", 1, "--run", tmp_path / "run", "--epochs"]
    process = SERVER.Process(target=stopped_command, args=([str(word) for word in [*words, 20_000]], tmp_path))
    process.start()
    process.join()
    assert process.exitcode == 143
    said = (tmp_path / "err").read_text()
    assert "resume with" in said
    assert "Traceback" not in said
    again = giftwrap(*words, 3)
    assert again.code == 2
    assert "different run (--epochs): " in again.err


def stopped_command(words: list[str], folder: Path) -> None:
    """The command, with a signal at its fifth step."""
    from tests.journeys import world

    calls = 0

    def signalling(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 5:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(*args)

    setattr(loop, "step", signalling)  # noqa: B010  in a process of its own
    world.run_as_command(words, folder / "out", folder / "err", None)


def test_a_run_that_diverges_names_the_step_and_keeps_the_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    run = changed(config, run_folder=tmp_path / "run", epochs=40, lr=1e3, clip_norm=None, ema=None, optimizer="SGD",
        loss="mse", student="convnet-d1", test_images=None, checkpoint_steps=1,
    )  # fmt: skip
    losses: list[float] = []

    def noting(run: Any, batch: Any) -> torch.Tensor:
        losses.append(float(loss := step(run, batch)))
        return loss

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "step", noting)
        with pytest.raises(GiftwrapError) as error:
            loop.train(run, Console(as_json=True))
    bad = len(losses) - 1
    assert [math.isfinite(loss) for loss in losses] == [True] * bad + [False]
    state = torch.load(run.run / "checkpoint.pt", weights_only=True)["state"]
    assert all(value.isfinite().all() for value in state["student"].values())
    assert f"step {bad}: expected a finite loss" in str(error.value)
    assert f"the checkpoint of step {state['step']} is kept" in str(error.value)
    assert state["step"] == bad


def test_a_checkpoint_of_another_run_is_refused(
    config: TrainConfig, whole: dict[str, Any], world: World, tmp_path: Path
) -> None:
    built = giftwrap(*world.build_words(tmp_path / "other", "--seed", 1))
    assert built.code == 0, built.err
    for change, place in (
        ({"ema": 0.5}, "--ema"),
        ({"gamma": 0.2}, "--gamma"),
        ({"lr": 1.0}, "--lr"),
        ({"store": tmp_path / "other"}, "store.identity.seed"),
    ):
        with pytest.raises(MismatchError, match=re.escape(f"different run ({place})")):
            loop.train(changed(config, **change), Console(as_json=True))
    assert results(config.run) == whole


def test_the_mean_of_the_weights_is_what_is_kept(config: TrainConfig, whole: dict[str, Any], tmp_path: Path) -> None:
    run = changed(config, run_folder=tmp_path / "run")
    mean: dict[str, torch.Tensor] = {}

    def average(run: Any) -> None:
        if not run.step:
            return
        for name, value in run.objective.network.state_dict().items():
            if value.is_floating_point():
                mean[name] = value.double() if name not in mean else 0.9 * mean[name] + 0.1 * value.double()

    train_with_step(run, average)
    kept = read_weights(run.run / "last.safetensors").tensors
    state = torch.load(run.run / "checkpoint.pt", weights_only=True)["state"]
    for name, value in mean.items():  # the last step's weights are in the checkpoint alone
        torch.testing.assert_close(kept[name].double(), 0.9 * value + 0.1 * state["student"][name].double())
    assert results(run.run) == whole
