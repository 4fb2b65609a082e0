"""Calls that one thread makes from a bounded queue, so that a block is written while the next one is made."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, ParamSpec

P = ParamSpec("P")


class Queue(Generic[P]):
    """Calls of one function, made in their order by a thread; at most ``depth`` wait while one is made.

    A context manager: leaving it waits until all are made. Leaving it by an exception finishes the current call and
    drops those that wait. An error ends the work: the next call, or leaving, raises it.

    Args:
        work: the function.
        depth: calls that wait; the next one waits for room.
    """

    def __init__(self, work: Callable[P, Any], depth: int) -> None:
        self._work = work
        self._calls: queue.Queue[Callable[[], Any] | None] = queue.Queue(depth)
        self._error: BaseException | None = None
        self._abandoned = False
        self._thread = threading.Thread(target=self._run, daemon=True, name="giftwrap-queue")

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Add a call; waits while the queue is full."""
        self._raise()
        self._calls.put(lambda: self._work(*args, **kwargs))

    def __enter__(self) -> Queue[P]:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._abandoned = kind is not None
        try:
            self._finish()
        except BaseException:  # Ctrl-C while waiting: what waits is abandoned after all
            self._abandoned = True
            self._finish()
            raise
        if kind is None:
            self._raise()

    def _finish(self) -> None:
        self._calls.put(None)
        self._thread.join()

    def _raise(self) -> None:
        if error := self._error:
            raise error

    def _run(self) -> None:
        while call := self._calls.get():
            if self._abandoned or self._error:
                continue  # empty the queue, so that no caller blocks on it forever
            try:
                call()
            except BaseException as error:
                self._error = error
