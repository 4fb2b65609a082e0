"""Signals are handled between steps, so that the current one is finished; a second signal stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from labelstore.command.console import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SECONDS = 1.0  # a launcher may pass on what the terminal has sent already


class StopSignals:
    """Records SIGINT and SIGTERM while it is entered.

    Args:
        on_first: called in the signal handler with the number of the first signal.

    Attributes:
        number: of the first signal; 0 before.
        arrived: when it arrived, by the monotonic clock.
    """

    def __init__(self, on_first: Callable[[int], object] = lambda _number: None) -> None:
        self.number = 0
        self.arrived = 0.0
        self._on_first = on_first
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def error(self) -> BaseException:
        """The exception that ends the command, by the signal."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else Stopped()

    def record(self, number: int) -> None:
        """Record a signal, as if it had arrived here."""
        if not self.number:
            self.number, self.arrived = number, time.monotonic()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.number and time.monotonic() - self.arrived > SAME_SECONDS:
            raise self.error()
        if not self.number:
            self.record(number)
            self._on_first(number)
