"""Items made in a thread while the ones before them are used."""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

from labelstore.errors import InputError

T = TypeVar("T")

_RUNNING: set[Prefetcher[Any]] = set()


class Prefetcher(Iterator[T]):
    """Take items of an iterator in a thread; at most ``depth`` wait, while one more is made.

    A context manager: leaving it stops the thread, however the consumer ended; the end of the program does too, since
    native code that still runs when Python is torn down aborts the process. Errors of the iterator are raised where
    its item would have come.
    """

    def __init__(self, items: Generator[T], depth: int) -> None:
        self._items = items
        self._results: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._ended = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, daemon=True, name="giftwrap-prefetch")

    def __enter__(self) -> Prefetcher[T]:
        self._thread.start()
        _RUNNING.add(self)
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:  # make room for a put that waits
                self._results.get(timeout=0.05)
            except queue.Empty:
                continue
        _RUNNING.discard(self)

    def __next__(self) -> T:
        require_process(self._process)
        if self._ended:
            raise StopIteration
        more, value = self._results.get()
        if more:
            item: T = value
            return item
        self._ended = True
        if value is None:
            raise StopIteration
        raise value

    def _work(self) -> None:
        end: BaseException | None = None
        try:
            with closing(self._items):  # in the thread that started it
                for item in self._items:
                    if self._stopped.is_set():
                        return
                    self._results.put((True, item))
        except BaseException as error:
            end = error
        if not self._stopped.is_set():
            self._results.put((False, end))


def require_process(process: int) -> None:
    """Refuse to wait in a forked process, where no thread of ``process`` runs.

    Raises:
        InputError: with what to do instead.
    """
    if os.getpid() != process:
        raise InputError(
            "replay: it was made in another process, whose threads are not here (a DataLoader worker?); iterate over "
            "it where it was made, without workers: it renders ahead in threads. For several processes "
            "that train together make one in each, with rank and world"
        )


@atexit.register
def _stop_all() -> None:
    """Stop the threads of loops that were left early and of iterators that were never closed."""
    for each in list(_RUNNING):
        each.__exit__()
