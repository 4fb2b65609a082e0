"""Signals that stop a run: handled between steps, or at once where nothing is changed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from labelstore.command import stopping


class StopRequested(Exception):  # noqa: N818  no error: the run is asked to stop where it can be continued
    """The run was asked to stop."""


class StopSignals(stopping.StopSignals):
    """Records SIGINT and SIGTERM while it is entered; see `labelstore.command.stopping.StopSignals`."""

    def __init__(self) -> None:
        super().__init__(self._raise_at_once)
        self._at_once = False

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Nothing in here changes the run: a signal raises `StopRequested` where it arrives."""
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
