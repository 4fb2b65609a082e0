from __future__ import annotations

import os
import socket
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ports import own_port
from labelstore.command.flags import from_flags
from labelstore.durable import locking
from labelstore.errors import InputError
from pipeline.config import BuildConfig
from pipeline.launch.place import start_of
from pipeline.ranks import Ranks, join
from tests.journeys.world import SERVER

PLACE = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """An environment that names no rank."""
    for name in PLACE:
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def config(**changes: Any) -> BuildConfig:
    plain = {"images": Path("i"), "teacher": ("t",), "weights": ("w",), "size": 8, "views": 1, "store": Path("s")}
    return from_flags(BuildConfig, **{**plain, **changes})


@pytest.mark.parametrize("found", [{}, {"RANK": "0", "WORLD_SIZE": "1"}, {"WORLD_SIZE": "3"}, {"RANK": "1"}])
def test_alone_nothing_is_started(found: dict[str, str], place: pytest.MonkeyPatch) -> None:
    for name, value in found.items():
        place.setenv(name, value)
    place.setitem(sys.modules, "torch.distributed", None)  # importing it fails
    with join() as ranks, ranks.first_alone():
        ranks.barrier()
        assert ranks.broadcast({"a": [1]}) == {"a": [1]}
        assert ranks.shard([3, 4]) == [3, 4]


def test_ranks_own_every_block_once() -> None:
    blocks = list(range(11))
    owned = [Ranks(rank, 3).shard(blocks) for rank in range(3)]
    assert sorted(block for part in owned for block in part) == blocks
    assert owned[0][0] == 0


def test_ranks_share_cores_and_memory_and_have_gpus_of_their_own() -> None:
    alone = config(threads=None, rehash=True)
    assert Ranks().own_resources(alone) == alone
    cores = len(os.sched_getaffinity(0))
    second = Ranks(5, 8, 1, 2).own_resources(config(device="cuda", rehash=True, cache_gib=3.0))
    assert (second.render.threads, second.render.device, second.render.cache_gib, second.rehash) == (
        max(cores // 2, 1),
        "cuda:1",
        3.0,
        False,
    )
    many = Ranks(0, 4 * cores, 0, 4 * cores).own_resources(config(device="cuda:1", rehash=True))
    assert (many.render.threads, many.render.device, many.rehash) == (1, "cuda:1", True)
    assert Ranks(0, 2).own_resources(config(threads=7)).render.threads == 7


@pytest.mark.parametrize(
    ("device", "given", "own"),
    [("cuda", None, None), ("cuda", 3.0, 3.0), ("cuda:1", 3.0, 0.75), ("cuda:1", None, 0.5), ("cpu", None, 0.5)],
)
def test_a_cache_is_divided_where_ranks_share_its_memory(device: str, given: float | None, own: float | None) -> None:
    assert Ranks(1, 8, 1, 4).own_resources(config(device=device, cache_gib=given)).render.cache_gib == own


def test_what_is_no_place_is_refused(place: pytest.MonkeyPatch) -> None:
    place.setenv("RANK", "one")
    place.setenv("WORLD_SIZE", "4")
    with pytest.raises(InputError, match="expected numbers, as torchrun sets them"), join():
        pass


def test_the_way_to_resume_is_said_once(place: pytest.MonkeyPatch) -> None:
    assert start_of("pipeline") == [sys.executable, "-m", "pipeline"]
    place.setattr(sys, "argv", ["/usr/bin/giftwrap", "build"])  # the installed script
    assert start_of("giftwrap") == ["giftwrap"]
    place.setenv("WORLD_SIZE", "3")
    place.setenv("RANK", "0")
    assert start_of("pipeline") == ["torchrun", "--nproc-per-node=3", "-m", "pipeline"]
    place.setenv("RANK", "1")
    assert start_of("pipeline") == []


def be_host(rank: int, port: int, place: Path, fault: str, told: Any) -> None:
    """A rank on a host of its own, as far as it can see; the second one's view of the folder has a fault."""
    names = {"RANK": rank, "WORLD_SIZE": 2, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    vars(socket)["gethostname"] = lambda: f"host{rank}"
    if rank and fault:
        seen = None if fault == "absent" else False
        vars(locking)["is_held"] = lambda _path: seen
    with join() as ranks:
        try:
            ranks.require_shared(place, "--store")
            told.put((rank, ""))
        except InputError as error:
            told.put((rank, str(error)))
        ranks.barrier()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("", ""),
        ("absent", "--store {}: host1 does not see the folder {} that host0 sees"),
        ("alone", "--store {}: a lock that host0 holds there does not hold on host1"),
    ],
)
def test_hosts_must_see_one_folder_with_shared_locks(fault: str, message: str, tmp_path: Path) -> None:
    place, told = tmp_path / "absent/store", SERVER.SimpleQueue()
    args = [(rank, own_port(), place, fault, told) for rank in range(2)]
    ranks = [SERVER.Process(target=be_host, args=each, daemon=True) for each in args]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(120)
    found = dict(told.get() for _ in ranks)
    for text in (found[0], found[1]):
        assert text.startswith(message.format(place, tmp_path)), found
        assert bool(text) == bool(message)
    assert [*tmp_path.iterdir()] == []
