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


class Stops:
    """Records SIGINT and SIGTERM while it is entered.

    Args:
        tell: called in the signal handler with the number of the first signal.

    Attributes:
        number: of the first signal; 0 before.
        heard: when, by the monotonic clock.
    """

    def __init__(self, tell: Callable[[int], object] = lambda _number: None) -> None:
        self.number = 0
        self.heard = 0.0
        self._tell = tell
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def error(self) -> BaseException:
        """The exception that ends the command, by the signal."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else Stopped()

    def hear(self, number: int) -> None:
        """Record a signal, as if it had arrived here."""
        if not self.number:
            self.number, self.heard = number, time.monotonic()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.number and time.monotonic() - self.heard > SAME_SECONDS:
            raise self.error()
        if not self.number:
            self.hear(number)
            self._tell(number)
