"""Stages of a build: each hands what it made to the next one through a bounded queue, and its time at work is known."""

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
    """Seconds that each stage has been at work; its threads add to them."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(STAGES, 0.0)
        self._lock = threading.Lock()

    def add(self, stage: str, seconds: float) -> None:
        """Count time at work."""
        with self._lock:
            self._seconds[stage] += seconds

    @contextmanager
    def at(self, stage: str) -> Iterator[None]:
        """What is done within is this stage's work."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.add(stage, time.perf_counter() - start)

    def making(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Items whose making is this stage's work."""
        iterator = iter(items)
        while True:
            with self.at(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def seconds(self) -> dict[str, float]:
        """Seconds at work until now, by stage."""
        with self._lock:
            return dict(self._seconds)

    def text(self) -> str:
        """The stage that was most of the time at work, and its share of all work; empty before any."""
        seconds = self.seconds()
        most = max(seconds, key=seconds.__getitem__)
        return f"{most} {seconds[most] / sum(seconds.values()):.0%} of the time" if seconds[most] else ""


@contextmanager
def hand_over(
    work: Callable[P, object], depth: int, device: torch.device | None = None
) -> Iterator[Callable[P, object]]:
    """A stage: ``work`` in a thread of its own, at most ``depth`` calls waiting; in the caller's where that is 0.

    Args:
        work: of the stage.
        depth: calls that wait.
        device: the thread's current GPU.
    """
    if depth == 0:
        yield work
        return
    with Queue(with_current(work, device) if device else work, depth) as queue:
        yield queue
