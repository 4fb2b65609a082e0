"""Items made in a thread while the ones before them are used."""

from __future__ import annotations

import queue
import threading
from collections.abc import Generator, Iterator
from contextlib import closing
from typing import Any, TypeVar

T = TypeVar("T")


class ahead(Iterator[T]):  # noqa: N801  reads as a verb: with ahead(items, 2) as items
    """Take items of an iterator in a thread; at most ``depth`` wait, while one more is made.

    A context manager: leaving it stops the thread, however the consumer ended. Errors of the iterator are raised
    where its item would have come.
    """

    def __init__(self, items: Generator[T], depth: int) -> None:
        self._items = items
        self._results: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="giftwrap-ahead")

    def __enter__(self) -> ahead[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:  # make room for a put that waits
                self._results.get(timeout=0.05)
            except queue.Empty:
                continue

    def __next__(self) -> T:
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
            with closing(self._items):  # here, where it was begun
                for item in self._items:
                    if self._stopped.is_set():
                        return
                    self._results.put((True, item))
        except BaseException as error:
            end = error
        if not self._stopped.is_set():
            self._results.put((False, end))
