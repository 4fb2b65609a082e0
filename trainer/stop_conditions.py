"""What is looked at between the steps of a run, by all its processes alike: signals, and losses that are no numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from labelstore.errors import GiftwrapError
from pipeline.ranks import Ranks
from trainer.stopping import StopRequested, StopSignals

STEPS_UNREAD = 32  # on a GPU, between looks at its losses: each takes what the one before has begun to copy
FINE = 2**62


class DivergedError(GiftwrapError):
    """A loss or a weight is no number any more."""


class StopConditions:
    """StopSignals a run in the same step on all its processes.

    Alone, that is the step after which there is a reason. Of several, each learns after a step what the others had to
    say after the one before, so that no step waits for it.

    Args:
        ranks: the processes.
        device: where losses are.
        stops: records signals.
    """

    def __init__(self, ranks: Ranks, device: torch.device, stops: StopSignals) -> None:
        self.stops, self._ranks = stops, ranks
        self._first_bad = torch.full((), FINE, dtype=torch.int64, device=device)
        self._unread, self._read = 0, FINE
        self._copy: Tensor | None = None  # of `_first_bad`, in memory, under way since the look before
        self._copied: torch.cuda.Event | None = None
        self._waiting: Callable[[], list[int]] | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Look at the loss of a step, where it is."""
        bad = torch.where(loss.isfinite(), FINE, step)
        self._first_bad = torch.minimum(self._first_bad, bad)
        self._unread += 1

    def between_steps(self) -> None:
        """End the run when there is a reason.

        Raises:
            DivergedError: names the first step whose loss was no number.
            StopRequested: a signal has arrived.
        """
        on_gpu = self._first_bad.device.type != "cpu"
        if on_gpu and self._unread >= STEPS_UNREAD:
            self._look()
        started = self._begin(read=not on_gpu)
        result, self._waiting = self._waiting, started
        if self._ranks.world == 1:
            result = started
        if result:
            self._check(result())

    def settle(self) -> None:
        """Like `between_steps`, of all that was seen by now."""
        self._check(self._begin(read=True)())

    def require_finite(self, weights: Iterable[Tensor], step: int) -> None:
        """Raise DivergedError when a loss was no number, or a weight is none after ``step`` steps."""
        bad, _ = self._begin(read=True)()
        if bad == FINE and not bool(torch.stack([weight.isfinite().all() for weight in weights]).all()):
            raise DivergedError(f"step {step}: expected finite weights, found others")
        self._check([bad, 0])

    def _look(self) -> None:
        """Take what was copied since the last look, which was long ago for a GPU, and begin the next copy."""
        if self._copied is not None and self._copy is not None:
            self._copied.synchronize()
            self._read = min(self._read, int(self._copy))
        self._unread = 0
        self._copy = torch.empty((), dtype=torch.int64, pin_memory=True).copy_(self._first_bad, non_blocking=True)
        self._copied = torch.cuda.current_stream(self._first_bad.device).record_event()

    def _begin(self, *, read: bool) -> Callable[[], list[int]]:
        if read:
            self._read, self._unread = int(self._first_bad), 0
        return self._ranks.all_reduce_min([self._read, -self.stops.number])

    def _check(self, minima: list[int]) -> None:
        bad, stop = minima
        if bad < FINE:
            raise DivergedError(f"step {bad}: expected a finite loss, found one that is not")
        if stop:
            self.stops.number = -stop
            raise StopRequested
