"""A build that is killed, at any moment, and run again gives the bytes of one that never stopped."""

from __future__ import annotations

import hashlib
import os
import random
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.durable import disk
from tests.journeys.world import SERVER, SIDE, World, draw_images, random_teacher

KILLS = 6
STEPS = ("write_file", "sync_file", "sync_folder", "link", "replace", "unlink")
IN_SHORT = ("write_file", "link", "unlink")  # a store alone is killed at every step: labelstore/test_publishing.py


def build_store(world: World, store: Path) -> None:
    """Build in this process, on one thread, as `python -m pipeline build` does."""
    import torch

    from pipeline.build.build import build
    from pipeline.config import BuildConfig

    torch.set_num_threads(1)
    build(
        from_flags(
            BuildConfig,
            images=world.images,
            teacher=("convnet-d2",),
            teacher_args=('{"width": 16, "norm": "batch"}',),
            weights=(str(world.weights),),
            size=SIDE,
            views=7 * 128,
            batch=256,
            threads=1,
            store=store,
        ),
        Console(as_json=True),
    )


def build_until(world: World, store: Path, step: str, count: int) -> None:
    """Build, and die at the ``count``-th call of a step of publishing, before or after it takes effect."""
    original, calls = getattr(disk, step), 0

    def dying(*args: object) -> None:
        nonlocal calls
        calls += 1
        if calls == count and count % 2:
            os.kill(os.getpid(), signal.SIGKILL)
        original(*args)
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)

    setattr(disk, step, dying)
    build_store(world, store)


def digests(store: Path) -> dict[str, str]:
    """Relative path -> SHA-256 of every file."""
    return {
        str(path.relative_to(store)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(store.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    """24 images and an uninterrupted build of them: seven blocks."""
    folder = tmp_path_factory.mktemp("kill")
    world = World(
        folder, draw_images(folder / "images"), random_teacher(folder / "teacher.safetensors"), folder / "whole"
    )
    process = SERVER.Process(target=build_store, args=(world, world.store))
    process.start()
    process.join()
    assert process.exitcode == 0
    return world


@pytest.fixture
def whole(small: World) -> dict[str, str]:
    """What an uninterrupted build leaves."""
    return digests(small.store)


def finish(world: World, store: Path) -> dict[str, str]:
    """Run the build again to its end; what it leaves."""
    process = SERVER.Process(target=build_store, args=(world, store))
    process.start()
    process.join()
    assert process.exitcode == 0
    return digests(store)


def moments() -> Iterator[float]:
    """Seconds after the first block, spread over a build's length; fixed, so that a failure comes again."""
    generator = random.Random(0)
    for _ in range(KILLS):
        yield generator.uniform(0, 1.0)


@pytest.mark.long  # every step of publishing is killed below
def test_killed_at_random_moments(small: World, whole: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    stopped = 0
    for moment in moments():
        process = SERVER.Process(target=build_store, args=(small, store))
        process.start()
        before = len(list((store / "markers").glob("*.json"))) if (store / "markers").exists() else 0
        while process.is_alive() and len(list((store / "markers").glob("*.json"))) <= before:
            process.join(0.01)
        process.join(moment)
        stopped += process.is_alive()
        process.kill()
        process.join()
        if digests(store) == whole:
            for path in sorted(store.rglob("*"), reverse=True):
                path.rmdir() if path.is_dir() else path.unlink()
    assert stopped > KILLS // 4
    assert finish(small, store) == whole


@pytest.mark.parametrize(
    "step",
    [step if step in IN_SHORT else pytest.param(step, marks=pytest.mark.long) for step in STEPS],
)
def test_killed_at_each_step_of_publishing(step: str, small: World, whole: dict[str, str], tmp_path: Path) -> None:
    store = tmp_path / "store"
    died = 0
    for count in (1, 7, 24):
        process = SERVER.Process(target=build_until, args=(small, store, step, count))
        process.start()
        process.join()
        died += process.exitcode == -signal.SIGKILL
    assert died
    assert finish(small, store) == whole
