"""The ranks of one build: processes that torchrun started, which share its lease and own blocks by rank alone (P8)."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

from labelstore.errors import GiftwrapError, InputError
from labelstore.spec import Json
from pipeline.config import BuildConfig

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup, Work

MEETING_TIMEOUT = timedelta(minutes=5)  # from the first process that starts to the last
WORK_TIMEOUT = timedelta(days=24)  # the first rank calibrates, and others label, for as long as it takes
POLL_SECONDS = 0.02

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its build; alone unless torchrun says otherwise.

    Attributes:
        rank: 0 holds the lease, speaks, and seals.
        world: how many there are, all on this host.
        group: what connects them; None when alone.
    """

    rank: int = 0
    world: int = 1
    group: ProcessGroup | None = None

    @property
    def first(self) -> bool:
        """Whether this is the process that holds the lease."""
        return self.rank == 0

    def own(self, work: Sequence[T]) -> Sequence[T]:
        """This rank's share of a list that all ranks have."""
        return work[self.rank :: self.world]

    def share(self, config: BuildConfig) -> BuildConfig:
        """The build as this rank does it: its share of the cores and of the cache, and a GPU of its own."""
        if self.world == 1:
            return config
        return replace(
            config,
            threads=config.threads or max(len(os.sched_getaffinity(0)) // self.world, 1),
            device=f"cuda:{self.rank}" if config.device == "cuda" else config.device,
            cache_gib=config.cache_gib / self.world,
            rehash=config.rehash and self.first,
        )

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank does this before the others begin it, so that they find what it left."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()

    def wait(self) -> None:
        """Wait until all ranks are here.

        Raises:
            GiftwrapError: when one of them has ended.
        """
        if self.group is not None:
            from torch.distributed import barrier

            _finish(lambda: barrier(self.group, async_op=True))

    def tell(self, value: Json = None) -> Json:
        """What the first rank says; the others give nothing.

        Raises:
            GiftwrapError: when one of them has ended.
        """
        if self.group is None:
            return value
        import torch

        text = json.dumps(value).encode()
        size = torch.tensor([len(text)])
        self._broadcast(size)
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.first:
            data[:] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._broadcast(data)
        told: Json = json.loads(data.numpy().tobytes())
        return told

    def _broadcast(self, data: Tensor) -> None:
        from torch.distributed import broadcast

        _finish(lambda: broadcast(data, 0, self.group, async_op=True))


@contextmanager
def join() -> Iterator[Ranks]:
    """Meet the other ranks of this build, as the environment names them; alone where it names none.

    Raises:
        InputError: when they are on several hosts.
        GiftwrapError: when they do not come.
    """
    rank, world = _place()
    if world == 1:
        yield Ranks()
        return
    from torch import distributed

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host may not know its own name
    try:
        distributed.init_process_group("gloo", timeout=MEETING_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise GiftwrapError(f"rank {rank}: the {world} ranks of this build did not meet ({error})") from error
    try:
        yield Ranks(rank, world, cast("ProcessGroup", distributed.new_group(timeout=WORK_TIMEOUT)))
    finally:
        distributed.destroy_process_group()


def python() -> list[str]:
    """The words that started this process's Python, for the line that says how to resume; none if the first says it."""
    if os.environ.get("RANK", "0") != "0":
        return []
    world = os.environ.get("WORLD_SIZE", "1")
    return [sys.executable] if world == "1" else ["torchrun", f"--nproc-per-node={world}"]


def _place() -> tuple[int, int]:
    """This process's rank, and how many there are."""
    found = {name: os.environ.get(name) for name in ("RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE")}
    if not (found["RANK"] and found["WORLD_SIZE"]):
        return 0, 1
    try:
        rank, world = int(found["RANK"]), int(found["WORLD_SIZE"])
        local = int(found["LOCAL_WORLD_SIZE"] or world)
    except ValueError as error:
        raise InputError(f"environment: expected numbers, as torchrun sets them, found {found}") from error
    if local != world:
        raise InputError(
            f"the {world} ranks of this build are on several hosts, {local} of them on this one; a store is written to "
            f"a local file system: start all of them on one host"
        )
    return rank, world


def _finish(start: Callable[[], Work | None]) -> None:
    """Wait for an operation of all ranks in small steps, so that a signal is heard meanwhile."""
    try:
        work: Any = start()
        while not work.is_completed():
            time.sleep(POLL_SECONDS)
        work.wait()
    except RuntimeError as error:
        raise GiftwrapError(
            "another rank of this build has ended; what is published is kept: see its message, then run the build again"
        ) from error
