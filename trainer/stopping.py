"""Signals are heard between steps, so that what is saved is whole; one that comes again stops at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from labelstore.console import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM)
SAME_SECONDS = 1.0  # a launcher may pass on what the terminal has sent already


class Asked(Exception):  # noqa: N818  no error: the run is asked to stop where it can be continued
    """The run was asked to stop."""


class Stops:
    """Hears SIGINT and SIGTERM while it is entered.

    Attributes:
        number: of the signal that was heard; 0 before.
    """

    def __init__(self) -> None:
        self.number = 0
        self._heard = 0.0
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Stops:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._hear) for number in SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Nothing in here changes the run: a signal raises `Asked` where it is heard."""
        self._at_once = True
        try:
            if self.number:
                raise Asked
            yield
        finally:
            self._at_once = False

    def error(self) -> BaseException:
        """What ends the command, by the signal that was heard."""
        return KeyboardInterrupt() if self.number == signal.SIGINT else Stopped()

    def _hear(self, number: int, _frame: FrameType | None) -> None:
        if self.number and time.monotonic() - self._heard > SAME_SECONDS:
            raise self.error()
        if not self.number:
            self.number, self._heard = number, time.monotonic()
            if self._at_once:
                raise Asked
