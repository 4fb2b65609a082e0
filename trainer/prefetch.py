"""Items made in a thread while the ones before them are used."""

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

POLL_SECONDS = 0.05  # after which a thread that waits looks whether it was stopped

_RUNNING: set[Prefetcher[Any]] = set()


class Prefetcher(Iterator[T]):
    """Take items of an iterator in a thread; at most ``depth`` wait, while one more is made.

    A context manager: leaving it stops the thread, however the consumer ended; the end of the program does too, since
    native code that still runs when Python is torn down aborts the process. Leaving does not wait for the thread:
    garbage collection leaves a loop that was dropped, in any thread, and that one may hold a lock that the prefetching
    thread needs (those of `concurrent.futures` are shared by all executors). :meth:`join` waits. Errors of the iterator
    are raised where its item would have come.
    """

    def __init__(self, items: Generator[T], depth: int) -> None:
        self._items = items
        self._results: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._ended = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._work, daemon=True, name="giftwrap-prefetch")
        self.stopped = False  # set by an assignment alone, which takes no lock

    def __enter__(self) -> Prefetcher[T]:
        _RUNNING.add(self)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stopped = True

    def join(self) -> None:
        """Stop the thread, and wait until it has ended."""
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
        """Whether the consumer will take a result; it is not put once the thread was stopped."""
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
            with closing(self._items):  # in the thread that started it
                for item in self._items:
                    if not self._put(True, item):
                        return
        except BaseException as error:
            end = error
        self._put(False, end)


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
        each.join()
