"""What every test folder shares."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, settings

# Before torch is imported: as commands run, and one thread, since as many tests run at once as there are cores.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")  # more are processes, which import torch
if TYPE_CHECKING:  # the process that hands tests out imports this file, and would wait for torch
    from tests.journeys.world import World

# The same examples in every run, and no limit of time that a busy machine may break: --hypothesis-profile=default has
# others each time, and more.
settings.register_profile(
    "same", deadline=None, derandomize=True, max_examples=50, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("same")
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a shell starts so what it runs in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)  # children have what this process has


@pytest.fixture(autouse=True)
def signals_kept() -> Iterator[None]:
    """A command that runs in this process sets handlers; the tests after it do not want those."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session", autouse=True)
def no_waiting_for_the_disk() -> Iterator[None]:
    """Flushing is what many tests would spend most of their time on; its order has tests of its own."""
    from labelstore.durable import disk

    with pytest.MonkeyPatch.context() as patch:
        for name in ("sync_file", "sync_folder", "sync_descriptor"):
            patch.setattr(disk, name, lambda _place: None)
        yield


@pytest.fixture(scope="session", autouse=True)
def everything_is_imported_once() -> None:
    """A process has one server that forks; it imports what was named last, and benchmarks name fewer modules."""
    from tests.journeys.world import SERVER

    SERVER.set_forkserver_preload(["tests.journeys.preloaded"])


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
    from tests.journeys.world import World, draw_images, giftwrap, random_teacher

    folder = tmp_path_factory.mktemp("world")
    made = World(
        folder, draw_images(folder / "images"), random_teacher(folder / "teacher.safetensors"), folder / "store"
    )
    ended = giftwrap(*made.build_words(made.store))
    assert ended.code == 0, ended.err
    return made
