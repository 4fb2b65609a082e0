"""Answer requests in order while the blocks of the next ones are read into memory, encoded.

Reading a shard ahead is one system call that needs neither Python nor a copy: it fills the pages that the shard's map
uses. It runs in a thread only because it blocks. Everything else, errors included, happens in the consumer's thread:
a shard that cannot be read ahead fails again for the request that needs it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy.typing as npt

from labelstore.access.reading import Int64Array, Reader
from labelstore.errors import GiftwrapError
from labelstore.format.blocks import BlockIndex

STREAM_BYTES = 256 << 20
MAX_WAITING = 4096  # requests

Positions = slice | npt.ArrayLike
Request = tuple[int, Positions]
T = TypeVar("T")


def stream(
    requests: Iterable[Request],
    reader: Reader,
    index: Callable[[int, Positions], tuple[int, Int64Array]],
    read: Callable[[int, Int64Array], T],
    budget: int,
) -> Iterator[T]:
    """The answer to each request (view, positions), in order; the iteration may end early.

    Args:
        requests: consumed ahead of the answers, so that they must not depend on these.
        reader: keeps the maps of the blocks that are read ahead; not shared with another stream.
        index: view and positions of a request as integers, or an error.
        read: answers a request, given as ``index`` gives it.
        budget: the most bytes of encoded blocks, and of positions, that are ahead or in use. Of a request for more,
            and the rest of a larger block is read when it is needed.
    """
    pool = ThreadPoolExecutor(reader.threads, thread_name_prefix="giftwrap-stream")
    prefetcher = _Prefetcher(requests, reader, index, budget, pool)
    try:
        while entry := prefetcher.first():
            yield read(*(entry.indexed or index(*entry.request)))
            prefetcher.done()
    finally:
        # Garbage collection may come here, in a thread with a lock that a read needs: it must not wait for reads.
        pool.shutdown(wait=False, cancel_futures=True)


@dataclass(slots=True)
class _Entry:
    """A request that is read ahead.

    Attributes:
        request: the request as given.
        indexed: view and positions as integers; None if the request cannot be answered yet, or never.
        nbytes: of the positions.
        blocks: those that contain them, with their bytes.
    """

    request: Request
    indexed: tuple[int, Int64Array] | None
    nbytes: int
    blocks: dict[BlockIndex, int]


@dataclass(slots=True)
class _Held:
    """A block that is in memory or being read."""

    nbytes: int
    ready: Future[None]
    uses: int = 0  # by waiting requests


class _Prefetcher:
    """Requests whose blocks are in memory or being read."""

    def __init__(
        self,
        requests: Iterable[Request],
        reader: Reader,
        index: Callable[[int, Positions], tuple[int, Int64Array]],
        budget: int,
        pool: ThreadPoolExecutor,
    ) -> None:
        self._reader, self._index, self._budget, self._pool = reader, index, budget, pool
        self._entries = map(self._entry, requests)
        self._waiting: deque[_Entry] = deque()
        self._next: _Entry | None = None  # consumed, but there is no room for it yet
        self._held: dict[BlockIndex, _Held] = {}
        self._bytes = 0
        self._end: Exception | None = None

    def first(self) -> _Entry | None:
        """The first entry that is not done, after its blocks were read; None when all are done.

        Raises:
            Exception: what the iterable of requests raised, after the last request that it gave.
        """
        self._fill()
        if self._waiting:
            for block in self._waiting[0].blocks:
                if held := self._held.get(block):
                    held.ready.exception()  # waits; a read that failed fails again when the block is used
            return self._waiting[0]
        if self._end and not isinstance(self._end, StopIteration):
            raise self._end
        return None

    def done(self) -> None:
        """Drop the first entry, and the blocks that no other entry needs."""
        entry = self._waiting.popleft()
        self._bytes -= entry.nbytes
        for block in entry.blocks:
            if held := self._held.get(block):
                held.uses -= 1
                if not held.uses:
                    self._bytes -= self._held.pop(block).nbytes
                    self._reader.drop(block)

    def _fill(self) -> None:
        """Consume requests while their blocks fit the budget; at least one."""
        while len(self._waiting) < MAX_WAITING and not self._end:
            try:
                entry = self._next = self._next or next(self._entries)
            except Exception as error:
                self._end = error
                return
            wanted = sum(size for block, size in entry.blocks.items() if block not in self._held) + entry.nbytes
            if self._waiting and self._bytes + wanted > self._budget:
                return
            self._add(entry)
            self._next = None

    def _add(self, entry: _Entry) -> None:
        self._waiting.append(entry)
        self._bytes += entry.nbytes
        for block, size in list(entry.blocks.items()):
            if block not in self._held:
                if self._bytes + size > self._budget:
                    del entry.blocks[block]
                    continue
                self._held[block] = _Held(size, self._pool.submit(self._reader.read_ahead, block))
                self._bytes += size
            self._held[block].uses += 1

    def _entry(self, request: Request) -> _Entry:
        view, positions = request
        try:
            view, index = self._index(view, positions)
            blocks = {block: self._reader.block_bytes(block) for block in self._reader.blocks(view, index)}
        except GiftwrapError:
            return _Entry(request, None, 0, {})
        return _Entry((view, index), (view, index), index.nbytes, blocks)
