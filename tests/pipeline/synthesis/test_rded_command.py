"""`synthesize rded` as a user types it: killed and continued, by two processes, cut again from its record."""

from __future__ import annotations

import hashlib
import os
import signal
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelstore.durable import disk
from pipeline.images.manifest import scan
from pipeline.images.provenance import PIECES, read_pieces
from pipeline.synthesis.rded import make_rded
from tests.journeys.test_torchrun import torchrun
from tests.journeys.world import SERVER, SIDE, TEACHER, World, draw_images, giftwrap, random_teacher, run_as_command
from tests.pipeline.synthesis.test_rded import flags, setting


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images, a teacher, and a set that was made without a stop."""
    folder = tmp_path_factory.mktemp("rded")
    made = World(folder, draw_images(folder / "images"), random_teacher(folder / "teacher.safetensors"), folder / "set")
    ended = giftwrap(*words(made, made.store), "--json")
    assert ended.code == 0, ended.err
    assert (ended.summary["images"], ended.summary["made"]) == (6, 6)
    return made


def words(world: World, out: Path, *more: object) -> list[object]:
    return [
        "pipeline", "synthesize", "rded", "--images", world.images, *TEACHER, "--weights", world.weights, "--out", out,
        "--size", SIDE, "--factor", 2, "--ipc", 2, "--pool", 8, "--crops", 3, "--batch", 16, "--threads", 1, *more,
    ]  # fmt: skip


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def synthesize_until(words: list[str], folder: Path, count: int) -> None:
    """Die when a folder is flushed for the ``count``-th time: after each file, and between."""
    original, calls = disk.sync_folder, 0

    def dying(path: Path) -> None:
        nonlocal calls
        calls += 1
        if calls == count:
            os.kill(os.getpid(), signal.SIGKILL)
        original(path)

    disk.sync_folder = dying
    run_as_command(words, folder / "out", folder / "err", None)


@pytest.mark.parametrize("count", [4, 9, 15])
def test_a_killed_command_is_continued_to_the_same_bytes(small: World, tmp_path: Path, count: int) -> None:
    out = tmp_path / "set"
    again = [str(word) for word in words(small, out)]
    process = SERVER.Process(target=synthesize_until, args=(again, tmp_path, count), daemon=True)
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert not out.exists()
    if count > 4:  # something is made
        other = giftwrap(*words(small, out, "--crops", 4))
        assert other.code == 2, other.err
        assert "crops" in other.err
    ended = giftwrap(*again)
    assert ended.code == 0, ended.err
    assert digests(out) == digests(small.store)


def test_two_processes_make_what_one_makes(small: World, tmp_path: Path) -> None:
    for ended in torchrun(2, words(small, tmp_path / "set"), tmp_path / "ranks"):
        assert ended.code == 0, ended.err
    assert digests(tmp_path / "set") == digests(small.store)


def test_the_record_is_enough_to_cut_every_piece_again(small: World) -> None:
    pieces = read_pieces(small.store / PIECES)
    config = flags(small.images, size=SIDE, factor=2)
    assert len(scan(small.images)) == 24
    with closing(make_rded(setting(config, checking=True))) as method:
        made = method.again(pieces.arrays)
    for file, image in zip(pieces.files, made, strict=True):
        assert np.array_equal(np.asarray(Image.open(small.store / file)), image)
    assert (np.diff(pieces.arrays["scores"], axis=1) >= 0).all()  # cell by cell they get worse
    ended = giftwrap("pipeline", "synthesize", "--check", small.store, "--images", small.images, "--json")
    assert ended.code == 0, ended.err
    assert (ended.summary["made_again"], ended.summary["ok"]) == (6, True)
