"""What every test folder shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as commands run, and before torch is imported
from labelstore.durable import disk
from tests.journeys.world import World, draw_images, giftwrap, random_teacher


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Flushing is what many tests would spend most of their time on; its order has tests of its own."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("sync_file", "sync_folder", "sync_descriptor"):
            patch.setattr(disk, name, lambda _place: None)
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real images and weights; tests that ask for it are skipped where there is none."""
    unpacked = os.environ.get("GIFTWRAP_DATA")
    if not unpacked:
        pytest.skip("needs real images: set GIFTWRAP_DATA")
    return Path(unpacked)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """Images, a teacher and a finished store; tests that write make a store of their own."""
    folder = tmp_path_factory.mktemp("world")
    made = World(
        folder, draw_images(folder / "images"), random_teacher(folder / "teacher.safetensors"), folder / "store"
    )
    ended = giftwrap(*made.build_words(made.store))
    assert ended.code == 0, ended.err
    return made
