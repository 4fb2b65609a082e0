"""A run that is killed at any write reports, and leaves behind, what an uninterrupted one does."""

from __future__ import annotations

import json
import os
import random
import signal
from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.durable import disk
from tests.journeys.world import SERVER, World, draw_images
from trainer import train as loop
from trainer.checkpoint import random_state, restore_random_state, seed_all
from trainer.config import TrainConfig
from trainer.evaluate import EvalResult
from trainer.run import Run

FILES = ("last.safetensors", "best.safetensors", "classes.csv")


class Drawing(nn.Module):
    """A student that draws from numpy's and Python's generators, whose accuracy goes up and down."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.features = nn.Conv2d(3, 8, 3, stride=2)
        self.head = nn.Linear(8, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(x).relu().mean((2, 3))
        if self.training:
            x = x * (0.5 + float(np.random.rand()) + random.random())  # noqa: NPY002
        logits: Tensor = self.head(x)
        return logits


@pytest.fixture(scope="module")
def config(world: World, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("records")
    return from_flags(
        TrainConfig,
        store=world.store, images=world.images, student="tests.trainer.test_records:Drawing", epochs=6, batch_size=8,
        lr=0.05, schedule="constant", run_folder=folder / "run", test_images=draw_images(folder / "test", per_class=5),
        eval_every=1, checkpoint_every=2, threads=1, seed=3,
    )  # fmt: skip


SCORES = (10.0, 40.0, 20.0, 20.0, 60.0, 30.0)


def scripted(patch: pytest.MonkeyPatch) -> None:
    """The best changes at some epochs and not at others."""
    real = loop.evaluated
    patch.setattr(
        loop, "evaluated", lambda run: replace(cast("EvalResult", real(run)), top1=SCORES[run.entry["epoch"]])
    )


def run_until(config: TrainConfig, step: str, count: int) -> None:
    """Train, and die before or after the ``count``-th call of a step of writing."""
    original, calls = getattr(disk, step), 0

    def dying(*args: object) -> object:
        nonlocal calls
        calls += 1
        if calls == count and count % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        found = original(*args)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        return found

    setattr(disk, step, dying)
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch)
        loop.train(config, Console(as_json=True))


def test_killed_at_its_writes(config: TrainConfig, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    run, config = (changed(config, run_folder=tmp_path / name) for name in ("run", "whole"))
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch)
        whole = loop.train(config, Console(as_json=True))
        died = 0
        for step, count in (
            ("link_unnamed", 6),
            ("replace", 3),
            ("link_unnamed", 4),
            ("replace", 4),
            ("replace", 1),
            ("link_unnamed", 5),
        ):
            process = SERVER.Process(target=run_until, args=(run, step, count))
            process.start()
            process.join()
            died += process.exitcode == -signal.SIGKILL
        assert died > 3
        again = loop.train(run, Console(as_json=True))
    assert {name: again[name] for name in ("last", "best", "evaluations")} == {
        name: whole[name] for name in ("last", "best", "evaluations")
    }
    for name in FILES:
        assert (run.run / name).read_bytes() == (config.run / name).read_bytes(), name
    assert {path.name for path in run.run.iterdir()} == {path.name for path in config.run.iterdir()}


def test_what_killed_calls_left_is_removed_and_nothing_else(config: TrainConfig, tmp_path: Path) -> None:
    run = changed(config, run_folder=tmp_path / "run", epochs=1)
    loop.train(run, Console(as_json=True))
    weights, checkpoint = ((run.run / name).read_bytes() for name in ("last.safetensors", "checkpoint.pt"))
    left = {
        ".best.safetensors.0123456789abcdef.partial": weights,
        ".checkpoint.pt.0123456789abcdef.partial": checkpoint,
    }
    others = {
        ".checkpoint.pt.fedcba9876543210.partial": b"mine",
        ".checkpoint.pt.mine.partial": checkpoint,
        ".notes.0123456789abcdef.partial": weights,
    }
    for name, content in (left | others).items():
        (run.run / name).write_bytes(content)
    loop.train(run, Console(as_json=True))
    assert {path.name: path.read_bytes() for path in run.run.glob(".*.partial")} == others


@pytest.fixture(scope="module")
def whole(config: TrainConfig) -> TrainConfig:
    """A run that nothing stopped, with scripted scores."""
    with pytest.MonkeyPatch.context() as patch:
        scripted(patch)
        loop.train(config, Console(as_json=True))
    return config


@pytest.mark.parametrize("after", [1, 2, 3, 4])
def test_what_is_reported_is_what_the_file_gives(
    after: int, whole: TrainConfig, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the evaluation of an epoch and its checkpoint, and within what a checkpoint writes."""
    run = changed(config, run_folder=tmp_path / "run")
    scripted(monkeypatch)
    original, calls = loop.save, 0

    def dying(this: Run) -> None:
        nonlocal calls
        calls += 1
        if calls == (after + 1) // 2:
            if after % 2:
                raise RuntimeError
            with monkeypatch.context() as patch:
                patch.setattr(loop, "write_weights", lambda _: (_ for _ in ()).throw(RuntimeError()))
                original(this)
        original(this)

    with monkeypatch.context() as patch:
        patch.setattr(loop, "save", dying)
        with pytest.raises(RuntimeError):
            loop.train(run, Console(as_json=True))
    summary = loop.train(run, Console(as_json=True))
    assert (run.run / "best.safetensors").read_bytes() == (whole.run / "best.safetensors").read_bytes()
    lines = [json.loads(line) for line in (run.run / "log.jsonl").read_text().splitlines()]
    best = max(line["test_top1"] for line in lines)
    assert summary["best"]["top1"] == best


def test_last_weights_are_those_of_the_last_checkpoint(config: TrainConfig, tmp_path: Path) -> None:
    run = changed(config, run_folder=tmp_path / "run")
    original = loop.save

    def once(this: Run) -> None:
        original(this)
        raise RuntimeError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "save", once)
        with pytest.raises(RuntimeError):
            loop.train(run, Console(as_json=True))
    from safetensors.torch import load_file

    from trainer.checkpoint import load_checkpoint

    made = json.loads((run.run / "config.json").read_text())["made_of"]
    state = load_checkpoint(run.run / "checkpoint.pt", made)
    last = load_file(run.run / "last.safetensors")
    assert set(last) == set(state["student"])
    assert all(torch.equal(last[name], state["student"][name]) for name in last)


def test_every_generator_is_seeded_kept_and_restored(tmp_path: Path) -> None:
    def drawn() -> tuple[float, ...]:
        numpy = np.random.standard_normal(3).tolist()  # noqa: NPY002  an odd number: one is kept for the next call
        return (*numpy, random.gauss(0, 1), float(torch.rand(1)))

    for seed in (0, 5, 2**62 + 7):
        seed_all(seed)
        first = drawn()
        torch.save(random_state(), tmp_path / "state.pt")
        following = drawn()
        seed_all(seed)
        assert drawn() == first
        restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
        assert drawn() == following
    assert len({seed_all(seed) or drawn() for seed in (0, 1, 2**32, 2**33)}) == 4
