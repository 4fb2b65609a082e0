"""A build of several processes makes what one makes, and what is left of it is finished by the next."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from benchmarks.ports import own_port
from labelstore import LabelStore, check
from pipeline.networks import build_network
from pipeline.networks.weights import save_weights
from tests.journeys.world import SERVER, SIDE, Ended, World, giftwrap, run_as_command

STAGES = (24, 120)  # views: two blocks, then eight more


def torchrun(world: int, words: list[object], folder: Path, *, hosts: int = 1) -> list[Ended]:
    """Run a command in as many ranks, in the environment that torchrun gives them."""
    processes = launch(world, words, folder, hosts)
    for process in processes:
        process.join()
    return [
        Ended(process.exitcode, (folder / f"out{rank}").read_text(), (folder / f"err{rank}").read_text())
        for rank, process in enumerate(processes)
    ]


def launch(
    world: int,
    words: list[object],
    folder: Path,
    hosts: int = 1,
    faults: dict[int, Callable[[], object]] | None = None,
) -> list:
    """Start the ranks; ``faults`` is what some of them do before the command, as `signalled_at` does."""
    folder.mkdir(exist_ok=True)
    processes = []
    for rank in range(world):
        local = world // hosts
        place = {"RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": local, "MASTER_PORT": own_port()}
        place |= {"LOCAL_RANK": rank % local}
        process = SERVER.Process(
            target=be_rank, args=(place, [str(word) for word in words], folder, (faults or {}).get(rank)), daemon=True
        )
        process.start()
        processes.append(process)
    return processes


def signalled_at(module: str, name: str, call: int, number: int) -> Callable[[], object]:
    """A fault: the process is sent a signal when it calls a function of a module for the nth time, from 1."""
    return partial(_send_at, module, name, call, number)


def _send_at(module: str, name: str, call: int, number: int) -> None:
    home, calls = import_module(module), count(1)
    plain = getattr(home, name)

    def calling(*args: Any, **named: Any) -> Any:
        if next(calls) == call:
            os.kill(os.getpid(), number)
        return plain(*args, **named)

    setattr(home, name, calling)


def be_rank(place: dict[str, int], words: list[str], folder: Path, fault: Callable[[], object] | None) -> None:
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1", OMP_NUM_THREADS="1")
    rank = place["RANK"]
    if fault:
        fault()
    if place["LOCAL_WORLD_SIZE"] < place["WORLD_SIZE"]:  # on hosts of their own, as far as the lease can see
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        socket.gethostname = lambda: f"host{rank // place['LOCAL_WORLD_SIZE']}"
    run_as_command(words, folder / f"out{rank}", folder / f"err{rank}", None)


def files(store: Path) -> dict[str, bytes | None]:
    """All that lies in a store."""
    return {str(path.relative_to(store)): path.read_bytes() if path.is_file() else None for path in store.rglob("*")}


@pytest.fixture(scope="module")
def wide(world: World) -> Path:
    """Weights of the world's network with 64 columns."""
    import torch

    torch.manual_seed(0)
    network = build_network("convnet-d2", {"width": 16, "norm": "batch"}, classes=64, size=SIDE)
    path = world.folder / "wide.safetensors"
    save_weights(network.state_dict(), path)
    return path


@pytest.mark.parametrize("encoding", [pytest.param("int8", marks=pytest.mark.long), "transform"])
def test_three_processes_make_what_one_makes(encoding: str, world: World, wide: Path, tmp_path: Path) -> None:
    more = ("--encoding", encoding, "--weights", wide, "--class-columns", "0,1,2", "--mix", "cutmix", "--group", 8)
    for views in STAGES:
        alone = giftwrap(*world.build_words(tmp_path / "one", "--views", views, *more, "--json"))
        assert alone.code == 0, alone.err
        words = world.build_words(tmp_path / "three", "--views", views, *more, "--json")
        first, *others = torchrun(3, words, tmp_path / "said")
        assert first.code == 0, first.err
        assert [(rank.code, rank.out, rank.err) for rank in others] == [(0, "", "")] * 2
        same = ("views", "crops", "bytes_per_label", "fidelity", "complete")
        assert {name: first.summary[name] for name in same} == {name: alone.summary[name] for name in same}
    assert files(tmp_path / "three") == files(tmp_path / "one")


def test_a_rank_that_is_killed_ends_the_others_and_the_next_build_fills_the_gap(world: World, tmp_path: Path) -> None:
    store, few = tmp_path / "store", 10  # by which a block has few views, and an extension many blocks
    for path in (store, tmp_path / "one"):
        assert giftwrap(*world.build_words(path, "--views", few)).code == 0
    words = world.build_words(store, "--views", 200, "--json")
    for victim in (1, 0):
        killed = signalled_at("labelstore.durable.disk", "link", 6, signal.SIGKILL)  # within a block
        ranks = launch(2, words, tmp_path / "said", faults={victim: killed})
        for rank in ranks:
            rank.join(300)
        assert ranks[victim].exitcode == -signal.SIGKILL
        assert ranks[1 - victim].exitcode == 1
        said = (tmp_path / "said" / f"err{1 - victim}").read_text()
        assert "run the build again" in said
        assert "Traceback" not in said
        assert check(store).ok
        assert LabelStore.open(store).state.views_sealed == few
    assert all(rank.code == 0 for rank in torchrun(2, words, tmp_path / "said"))
    alone = giftwrap(*world.build_words(tmp_path / "one", "--views", 200))
    assert alone.code == 0, alone.err
    assert files(store) == files(tmp_path / "one")


def test_two_hosts_make_what_one_makes(world: World, tmp_path: Path) -> None:
    words = world.build_words(tmp_path / "two", "--threads", 1, "--json")
    first, second = torchrun(2, words, tmp_path / "said", hosts=2)
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert giftwrap(*world.build_words(tmp_path / "one", "--threads", 1)).code == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_bad_input_is_said_by_the_first_rank(world: World, tmp_path: Path) -> None:
    first, second = torchrun(2, world.build_words(tmp_path / "s", "--images", tmp_path / "none"), tmp_path / "said")
    assert first.code == 2
    assert "none" in first.err
    assert (second.code, second.out) == (1, "")
    assert "another rank of this build has ended" in second.err
    assert "Traceback" not in first.err + second.err


@pytest.mark.long
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_torchrun_itself_is_stopped_by_a_signal(number: int, world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = world.build_words(store, "--views", 40_000)
    log = (tmp_path / "log").open("w+")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "-m", *map(str, words)]
    process = subprocess.Popen(torchrun, stdout=log, stderr=log)
    while not list(store.glob("markers/*.json")):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.02)
    process.send_signal(number)
    assert process.wait()
    log.seek(0)
    said = log.read()
    log.close()
    assert said.count("resume with: torchrun --nproc-per-node=2 -m pipeline build --images") == 1
    assert check(store).ok
    assert LabelStore.open(store).missing()
    with LabelStore.open(store).lease():
        pass
