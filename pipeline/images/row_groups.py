"""Row groups of tables, read by one thread each, of which the last used are kept."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

KEPT_BYTES = 512 << 20
"""Memory of the row groups that are kept."""


class RowGroups:
    """A cache of row groups within a memory budget; a single group may exceed it.

    Args:
        size: bytes of a row group, by file and number.
        read: reads a row group, likewise.
    """

    def __init__(self, size: Callable[[int, int], int], read: Callable[[int, int], Any]) -> None:
        self._size, self._read = size, read
        self._kept: OrderedDict[tuple[int, int], tuple[Future[Any], int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def get(self, file: int, group: int) -> Any:
        """A row group; one thread reads it, and others that need it wait.

        Raises:
            OSError: it cannot be read; it is tried again when it is needed again.
        """
        key = file, group
        with self._lock:
            held = self._kept.get(key)
            if held:
                self._kept.move_to_end(key)
                future = held[0]
            else:
                size = self._size(file, group)
                while self._kept and self._bytes + size > KEPT_BYTES:
                    self._bytes -= self._kept.popitem(last=False)[1][1]
                future = Future()
                self._kept[key], self._bytes = (future, size), self._bytes + size
        if not held:
            self._fill(key, future)
        return future.result()

    def _fill(self, key: tuple[int, int], future: Future[Any]) -> None:
        """Read a row group for all who wait for it; what fails is not kept."""
        try:
            future.set_result(self._read(*key))
        except BaseException as error:
            future.set_exception(error)
            with self._lock:
                if self._kept.get(key, (None, 0))[0] is future:
                    self._bytes -= self._kept.pop(key)[1]
