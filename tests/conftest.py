"""What every test folder shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as commands run, and before torch is imported
from tests.journeys.world import World, draw_images, giftwrap, random_teacher


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
