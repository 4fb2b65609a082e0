"""Signals that stop a run: handled between steps, or at once while the run does not change."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labelstore.command import stopping


class StopRequested(Exception):  # noqa: N818  not an error: the run stops where it can be continued
    """A signal requests the run to stop."""


class StopSignals(stopping.StopSignals):
    """Records SIGINT and SIGTERM within its context; see `labelstore.command.stopping.StopSignals`."""

    def __init__(self) -> None:
        super().__init__(self._raise_at_once)
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """For code that does not change the run: a signal raises `StopRequested` immediately."""
        self._at_once = True
        try:
            if self.number:
                raise StopRequested
            yield
        finally:
            self._at_once = False

    def _raise_at_once(self, _number: int) -> None:
        if self._at_once:
            raise StopRequested
