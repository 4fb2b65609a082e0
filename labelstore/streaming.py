"""Answers in the order of their requests, while a thread reads ahead: blocks come into memory encoded and checked.

What the thread does not manage to bring is read when it is asked for, and so is what is damaged or not yet written:
an error is met by the request that it belongs to. At most a budget of encoded blocks and waiting requests is held.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TypeVar

import numpy.typing as npt

from labelstore.blocks import BlockIndex
from labelstore.errors import GiftwrapError
from labelstore.reading import Int64Array, Reader

STREAM_BYTES = 256 << 20
MAX_WAITING = 4096

Request = tuple[int, slice | npt.ArrayLike]
T = TypeVar("T")


def stream(
    requests: Iterable[Request],
    reader: Reader,
    index: Callable[[int, slice | npt.ArrayLike], Int64Array],
    read: Callable[[int, slice | npt.ArrayLike], T],
    budget: int,
) -> Iterator[T]:
    """The answer to each request (view, positions); ending the iteration ends the thread.

    Args:
        requests: taken ahead, in a thread.
        reader: keeps the maps of what is brought; no other stream's.
        index: positions of a request as integers, or an error.
        read: answers a request.
        budget: the most bytes of encoded blocks and of waiting requests.
    """
    ahead = _Ahead(requests, reader, index, budget)
    try:
        while request := ahead.next():
            yield read(*request)
    finally:
        ahead.stop()


@dataclass(slots=True)
class _Entry:
    """A request and the blocks that are in memory for it."""

    request: Request
    nbytes: int
    blocks: list[BlockIndex] = field(default_factory=list)


class _Ahead:
    """Requests whose blocks are in memory, in order; one thread brings them, one takes them."""

    def __init__(
        self,
        requests: Iterable[Request],
        reader: Reader,
        index: Callable[[int, slice | npt.ArrayLike], Int64Array],
        budget: int,
    ) -> None:
        self._requests, self._reader, self._index, self._budget = requests, reader, index, budget
        self._waiting: deque[_Entry] = deque()
        self._current: _Entry | None = None
        self._uses: Counter[BlockIndex] = Counter()  # by the waiting requests and the current one
        self._sizes: dict[BlockIndex, int] = {}
        self._held = 0
        self._ended = self._stopped = False
        self._error: BaseException | None = None
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, daemon=True, name="giftwrap-stream")
        self._thread.start()

    def next(self) -> Request | None:
        """The next request, or None after the last; what the one before it needed may go."""
        with self._changed:
            self._release()
            self._changed.wait_for(lambda: self._waiting or self._ended)
            if self._waiting:
                self._current = self._waiting.popleft()
                return self._current.request
        if self._error:
            raise self._error
        return None

    def stop(self) -> None:
        """End the thread; the block that it is reading is the last."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join()

    def _release(self) -> None:
        if not (entry := self._current):
            return
        self._current = None
        self._held -= entry.nbytes
        for block in entry.blocks:
            self._uses[block] -= 1
            if not self._uses[block]:
                del self._uses[block]
                self._held -= self._sizes.pop(block)
                self._reader.drop(block)
        self._changed.notify_all()

    def _work(self) -> None:
        try:
            for view, positions in self._requests:
                self._add(view, positions)
                if self._stopped:
                    return
        except BaseException as error:
            self._error = error
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def _add(self, view: int, positions: slice | npt.ArrayLike) -> None:
        entry = _Entry((view, positions), int(getattr(positions, "nbytes", 0)))
        with suppress(GiftwrapError):
            for block in self._reader.blocks(view, self._index(view, positions)):
                self._bring(entry, block)
        with self._changed:
            self._changed.wait_for(lambda: self._stopped or len(self._waiting) < MAX_WAITING)
            self._waiting.append(entry)
            self._held += entry.nbytes
            self._changed.notify_all()

    def _bring(self, entry: _Entry, block: BlockIndex) -> None:
        """Have a block in memory for a request, once there is room for it; one that never fits is left out."""
        size = self._reader.block_bytes(block)
        with self._changed:
            here = block in self._uses
            if not here:
                self._changed.wait_for(lambda: self._stopped or self._fits(size) or not self._in_use())
                if self._stopped or not self._fits(size):
                    return
                self._sizes[block] = size
                self._held += size
            self._uses[block] += 1
            entry.blocks.append(block)
        if not here:
            self._reader.warm(block)

    def _fits(self, size: int) -> bool:
        return self._held + size <= self._budget

    def _in_use(self) -> bool:
        return bool(self._waiting or self._current)
