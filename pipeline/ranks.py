"""The ranks of one build or run, which torchrun, srun or Ray started. Rank 0 prints, and all stop together (P8)."""

from __future__ import annotations

import json
import os
import secrets
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

from labelstore.command.flags import changed
from labelstore.durable import locking, removing
from labelstore.errors import GiftwrapError, InputError, reason
from labelstore.spec import Json
from pipeline.launch.place import own_gpu, place_of

if TYPE_CHECKING:
    from torch import Tensor
    from torch.distributed import ProcessGroup, Work

MEETING_TIMEOUT = timedelta(minutes=5)  # from the first process that starts to the last
WORK_TIMEOUT = timedelta(days=24)  # the first rank calibrates, and others label, for as long as it takes
POLL_SECONDS = 0.002
SHARED_CACHE_GIB = 2.0  # for decoded images of all ranks on one device, unless a flag sets more

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Ranks:
    """This process among those of its build or run; a single one unless a launcher started several.

    Attributes:
        rank: 0 prints, and writes what is not divided among the ranks.
        world: how many there are, on one host or several that see the same folders.
        local_rank: place among those on this host.
        local_world: how many there are on this host.
        group: the process group; None for a single process.
        work: what they do together, for messages.
        gpu: index of this rank's GPU among those that it sees; its place on the host where that is None.
        job: id of the job and which start of it this is, as `labelstore.writing.lease.hold` takes them.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    group: ProcessGroup | None = None
    work: str = "build"
    gpu: int | None = None
    job: tuple[str, int] = ("", 0)

    @property
    def first(self) -> bool:
        """Whether this is rank 0, which prints."""
        return self.rank == 0

    def shard(self, work: Sequence[T]) -> Sequence[T]:
        """This rank's items of a list that is the same on all ranks: every ``world``-th one."""
        return work[self.rank :: self.world]

    def own_resources(self, config: T) -> T:
        """The flags of this rank: its fraction of the cores, its GPU, and its fraction of shared memory.

        ``cuda`` is a GPU for each rank, all of whose memory is its own; ``cpu`` and ``cuda:N`` are one for all ranks of
        this host.
        """
        if self.world == 1:
            return config
        flags: Any = config
        changes: dict[str, Any] = {
            "threads": flags.render.threads or max(len(os.sched_getaffinity(0)) // self.local_world, 1)
        }
        if flags.render.device == "cuda":
            changes["device"] = f"cuda:{self.local_rank if self.gpu is None else self.gpu}"
        else:
            cache = SHARED_CACHE_GIB if flags.render.cache_gib is None else flags.render.cache_gib
            changes["cache_gib"] = cache / self.local_world
        if hasattr(flags, "rehash"):
            changes["rehash"] = flags.rehash and self.first
        return changed(config, **changes)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """The first rank does this before the others begin it, so that they find what it left."""
        if not self.first:
            self.barrier()
        yield
        if self.first:
            self.barrier()

    def barrier(self, between: Callable[[], object] = lambda: None) -> None:
        """Wait until every rank has reached this point.

        Args:
            between: called repeatedly while waiting.

        Raises:
            GiftwrapError: when one of them has ended.
        """
        if self.group is not None:
            from torch import distributed

            self._finish(lambda: distributed.barrier(self.group, async_op=True), between)

    def broadcast(self, value: Json = None, source: int = 0) -> Json:
        """The value that rank ``source`` gives, on every rank; the others' values are ignored.

        Raises:
            GiftwrapError: when one of them has ended.
        """
        if self.group is None:
            return value
        import torch

        text = json.dumps(value).encode()
        size = torch.tensor([len(text)])
        self._broadcast(size, source)
        data = torch.zeros(int(size), dtype=torch.uint8)
        if self.rank == source:
            data[:] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
        self._broadcast(data, source)
        received: Json = json.loads(data.numpy().tobytes())
        return received

    def all_gather(self, value: Json) -> list[Json]:
        """Every rank's value, in rank order, on every rank."""
        return [self.broadcast(value, rank) for rank in range(self.world)]

    def all_reduce_min(self, values: Sequence[int]) -> Callable[[], list[int]]:
        """Start an element-wise minimum over all ranks; the function returned waits for its result.

        Raises:
            GiftwrapError: there, when one of them has ended.
        """
        if self.group is None:
            return lambda: list(values)
        import torch
        from torch.distributed import ReduceOp, all_reduce

        data = torch.tensor(values)
        work = self._started(lambda: all_reduce(data, ReduceOp.MIN, self.group, async_op=True))

        def ended() -> list[int]:
            self._finish(lambda: work)
            least: list[int] = data.tolist()
            return least

        return ended

    def require_shared(self, place: Path, flag: str) -> None:
        """Refuse ranks on several hosts without a shared folder, or with one whose locks work only within a host.

        The first rank locks a file for a moment, and the others look for it.

        Args:
            place: what the ranks write together; it may be absent.
            flag: that names it.

        Raises:
            InputError: on every rank; names the host.
        """
        if self.local_world == self.world:
            return
        folder = next(path for path in (place.absolute(), *place.absolute().parents) if path.is_dir())
        with locked_for_a_moment(folder) if self.first else nullcontext() as mine:
            path: Any = self.broadcast(str(mine) if mine else None)
            seen: Json = True if self.first or path is None else locking.is_held(Path(path))
            found: list[Any] = self.all_gather([socket.gethostname(), seen])
        first = found[0][0]
        for host, held in found:
            if held is None:
                raise InputError(
                    f"{flag} {place}: {host} does not see the folder {folder} that {first} sees; put it on a file "
                    f"system that all hosts share, under one name"
                )
            if not held:
                raise InputError(
                    f"{flag} {place}: a lock that {first} holds there does not hold on {host}; mount the file system "
                    f"with locks that all hosts share (NFS without nolock and local_lock), or use one host"
                )

    @contextmanager
    def together(self) -> Iterator[None]:
        """Work that communicates with the other ranks by itself, as DistributedDataParallel does.

        Raises:
            GiftwrapError: when one of them has ended.
        """
        try:
            yield
        except RuntimeError as error:
            if self.group is None:
                raise
            from torch.distributed import DistError

            if isinstance(error, DistError) or "gloo" in str(error):
                raise self._alone() from error
            raise

    def _broadcast(self, data: Tensor, source: int) -> None:
        from torch import distributed

        self._finish(lambda: distributed.broadcast(data, source, self.group, async_op=True))

    def _started(self, start: Callable[[], Work | None]) -> Any:
        try:
            return start()
        except RuntimeError as error:
            raise self._alone() from error

    def _alone(self) -> GiftwrapError:
        return GiftwrapError(
            f"another rank of this {self.work} has ended; what was finished is kept: see its message, then run the "
            f"{self.work} again"
        )

    def _finish(self, start: Callable[[], Work | None], between: Callable[[], object] = lambda: None) -> None:
        """Wait for an operation of all ranks in small steps, so that signals are handled meanwhile."""
        work = self._started(start)
        while not work.is_completed():
            between()
            time.sleep(POLL_SECONDS)
        self._started(work.wait)


@contextmanager
def locked_for_a_moment(folder: Path) -> Iterator[Path | None]:
    """A locked file in a folder, which is gone at the end; none if the folder cannot be written."""
    if not os.access(folder, os.W_OK):
        yield None
        return
    path = folder / f".giftwrap-{secrets.token_hex(8)}.lock"
    with locking.hold(path, f"{path}: is locked", "give another folder"):
        try:
            yield path
        finally:
            removing.remove(path, removing.EMPTY)


@contextmanager
def join(work: str = "build") -> Iterator[Ranks]:
    """Join the other ranks that the environment defines; a single process if it defines none.

    Args:
        work: what they do together, for messages.

    Raises:
        InputError: when the environment names no place among them.
        GiftwrapError: when they do not come.
    """
    place = place_of(os.environ)
    known: dict[str, Any] = {"work": work, "gpu": own_gpu(place, os.environ), "job": (place.job, place.attempt)}
    if place.world == 1:
        yield Ranks(**known)
        return
    from torch import distributed

    if place.local_world == place.world:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")  # a host may not resolve its own name
    if place.master:
        os.environ.setdefault("MASTER_ADDR", place.master)
        os.environ.setdefault("MASTER_PORT", str(place.port))
    rank, world = place.rank, place.world
    try:
        distributed.init_process_group("gloo", rank=rank, world_size=world, timeout=MEETING_TIMEOUT)
    except (RuntimeError, ValueError) as error:
        raise GiftwrapError(f"rank {rank}: the {world} ranks of this {work} did not meet ({reason(error)})") from error
    try:
        group = cast("ProcessGroup", distributed.new_group(timeout=WORK_TIMEOUT))
        yield Ranks(rank, world, place.local_rank, place.local_world, group, **known)
    finally:
        distributed.destroy_process_group()
