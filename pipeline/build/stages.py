"""Stages of a build: threads connected by bounded queues, whose busy time is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from labelstore.writing.queueing import Queue
from pipeline.device.current import with_current

if TYPE_CHECKING:
    import torch

P = ParamSpec("P")
T = TypeVar("T")

RENDER, TEACHER, ENCODE, WRITE = STAGES = ("render", "teacher", "encode", "write")


class Busy:
    """Busy seconds of each stage; its threads add to them."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Add busy seconds."""
        with self._lock:
            self._seconds[stage] += seconds

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """Count the time in this context as work of a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def making(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Count the time spent in an iterator as work of a stage."""
        iterator = iter(items)
        while True:
            with self.at(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Busy seconds until now, by stage."""
        with self._lock:
            return dict(self._seconds)

    def text(self) -> str:
        """The busiest stage and its share of all work, as text; empty before any work."""
        seconds = self.seconds()
        most = max(seconds, key=seconds.__getitem__)
        return f"{most} {seconds[most] / sum(seconds.values()):.0%} of the time" if seconds[most] else ""


@contextmanager
def hand_over(
    work: Callable[P, object], depth: int, device: torch.device | None = None
) -> Iterator[Callable[P, object]]:
    """Run ``work`` in a separate thread with a queue of ``depth`` calls; in the caller's thread if ``depth`` is 0.

    Args:
        work: the function of the stage.
        depth: most calls that wait.
        device: the thread's current GPU.
    """
    if depth == 0:
        yield work
        return
    with Queue(with_current(work, device) if device else work, depth) as queue:
        yield queue
