"""Prefetch the items of an iterator in a thread."""

from __future__ import annotations

import atexit
import os
import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing, suppress
from typing import Any, TypeVar

from labelstore.errors import InputError

T = TypeVar("T")

POLL_SECONDS = 0.05  # interval at which a waiting thread checks whether it was stopped

_RUNNING: set[Prefetcher[Any]] = set()


class Prefetcher(Iterator[T]):
    """Run an iterator in a thread; at most ``depth`` items wait while the next one is made.

    A context manager: exiting it stops the thread. The exit of the program stops it too, since native code that still
    runs when the interpreter shuts down aborts the process. Exiting does not wait for the thread: when a dropped loop
    is garbage collected, that can happen in any thread, and it may hold a lock that the prefetching thread needs (all
    executors of `concurrent.futures` share one). :meth:`join` waits. Errors of the iterator are raised in place of the
    item.
    """

    def __init__(self, items: Generator[T], depth: int) -> None:
        self._items = items
        self._results: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._ended = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, daemon=True, name="giftwrap-prefetch")
        self.stopped = False  # a plain attribute: setting it takes no lock

    def __enter__(self) -> Prefetcher[T]:
        _RUNNING.add(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True

    def join(self) -> None:
        """Stop the thread and wait for it."""
        self.stopped = True
        if self._thread.is_alive():
            self._thread.join()

    def __next__(self) -> T:
        """The next item.

        Raises:
            InputError: in another process, or when the thread was stopped before its last item.
        """
        require_process(self._process)
        if self._ended:
            raise StopIteration
        more, value = self._get()
        if more:
            item: T = value
            return item
        self._ended = True
        if value is None:
            raise StopIteration
        raise value

    def _get(self) -> tuple[bool, Any]:
        while True:
            with suppress(queue.Empty):
                return self._results.get(timeout=POLL_SECONDS)
            if self.stopped:
                raise InputError("replay: it was closed while an epoch was being iterated; make another one")

    def _put(self, more: bool, value: Any) -> bool:
        """Put a result into the queue; returns False if the thread was stopped first."""
        while not self.stopped:
            with suppress(queue.Full):
                self._results.put((more, value), timeout=POLL_SECONDS)
                return True
        return False

    def _work(self) -> None:
        try:
            self._make()
        finally:
            _RUNNING.discard(self)

    def _make(self) -> None:
        end: BaseException | None = None
        try:
            with closing(self._items):  # in the thread that runs the generator
                for item in self._items:
                    if not self._put(True, item):
                        return
        except BaseException as error:
            end = error
        self._put(False, end)


def require_process(process: int) -> None:
    """Refuse to wait in a forked process, where the threads of ``process`` do not run.

    Raises:
        InputError: when this is another process.
    """
    if os.getpid() != process:
        raise InputError(
            "replay: it was made in another process, whose threads are not here (a DataLoader worker?); iterate over "
            "it where it was made, without workers: it renders ahead in threads. For several processes "
            "that train together make one in each, with rank and world"
        )


@atexit.register
def _stop_all() -> None:
    """At exit, stop the threads of unfinished loops and of iterators that were never closed."""
    for each in list(_RUNNING):
        each.join()
