"""The crash benchmark sees what it is there to see."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from benchmarks.drawn import Drawn
from benchmarks.studies.crash import Scene, Toll, Toy, inspect, phase, read_along
from benchmarks.studies.victims import markers, tree
from labelstore import LabelStore

VIEWS = 4


class Told:
    """A pipe whose other end says stop after some reads, and keeps what it is told."""

    def __init__(self, reads: int) -> None:
        self.left: Iterator[bool] = iter([False] * reads + [True])
        self.counts: tuple[int, int, int] | None = None

    def poll(self, _seconds: float) -> bool:
        return next(self.left)

    def send(self, counts: tuple[int, int, int]) -> None:
        self.counts = counts


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Drawn(1_024, 8, VIEWS).store(tmp_path_factory.mktemp("crash") / "whole", {"name": "float16"}).path


@pytest.fixture
def store(whole: Path, tmp_path: Path) -> Path:
    return shutil.copytree(whole, tmp_path / "store")


def counts(store: Path, whole: Path) -> tuple[int, int, int]:
    told = Told(20)
    read_along(store, whole, cast("Connection", told))
    assert told.counts
    return told.counts


def test_the_reader_counts_wrong_rows_and_refused_reads(whole: Path, store: Path, tmp_path: Path) -> None:
    assert counts(store, whole) == (20 * 64, 0, 0)
    assert counts(tmp_path / "none", whole) == (0, 0, 0)
    others = Drawn(1_024, 8, VIEWS)
    others._means[:32] += np.float32(1)
    rows, wrong, refused = counts(others.store(tmp_path / "others", {"name": "float16"}).path, whole)
    assert (rows, refused) == (20 * 64, 0)
    assert 0 < wrong < rows // 10
    for shard in (store / "labels").glob("c.*"):
        shard.write_bytes(bytes(shard.stat().st_size))
    assert counts(store, whole) == (0, 0, 20)


def test_lost_blocks_and_damage_are_counted(whole: Path, store: Path, tmp_path: Path) -> None:
    toy = Toy(images=1_024, stages=(VIEWS,), kills=1, kills_a_stage=1)
    scene, seen = Scene(tmp_path, "float16", toy, whole, [tree(whole)], 1.0, 1.0), markers(store)
    toll = Toll()
    inspect(scene, store, seen, toll)
    assert seen
    assert toll.clean
    next((store / "labels").glob("c.*")).unlink()
    inspect(scene, store, seen, toll)
    assert (toll.lost, toll.damaged, toll.clean) == (1, 1, False)
    shutil.rmtree(store)
    inspect(scene, store, seen, toll)
    assert toll.lost == 1 + len(seen)


def test_phases_are_told_from_what_is_left(store: Path) -> None:
    assert phase(store, VIEWS) == "leaving"
    assert LabelStore.open(store).identity.block.views == VIEWS // 2  # two blocks are there
    assert phase(store, VIEWS + 4) == "extending"
    with LabelStore.open(store).lease() as extended:
        extended.raise_target(VIEWS + 4)
    assert phase(store, VIEWS + 4) == "labelling"
    (store / ".partial").mkdir()
    (store / ".partial" / "labels~c.2.0.0").touch()
    assert phase(store, VIEWS + 4) == "publishing"
