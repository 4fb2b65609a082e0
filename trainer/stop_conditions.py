"""Conditions that all processes of a run check between steps: signals, and losses that are not finite."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from labelstore.errors import GiftwrapError
from pipeline.ranks import Ranks
from trainer.stopping import StopRequested, StopSignals

# on a GPU, steps between checks of the losses; each check reads the copy that the previous one started
STEPS_UNREAD = 32
FINE = 2**62


class DivergedError(GiftwrapError):
    """A loss or a weight is not finite."""


class StopConditions:
    """Stops a run after the same step on all its processes.

    A single process stops right after the step. With several, each step receives the results of the others' previous
    check, so that no step waits for communication.

    Args:
        ranks: the processes.
        device: device of the losses.
        stops: records signals.
    """

    def __init__(self, ranks: Ranks, device: torch.device, stops: StopSignals) -> None:
        self.stops, self._ranks = stops, ranks
        self._first_bad = torch.full((), FINE, dtype=torch.int64, device=device)
        self._unread, self._read = 0, FINE
        self._copy: Tensor | None = None  # of `_first_bad`, in host memory; started by the previous check
        self._copied: torch.cuda.Event | None = None
        self._waiting: Callable[[], list[int]] | None = None

    def see(self, loss: Tensor, step: int) -> None:
        """Record whether the loss of a step is finite, on its device."""
        bad = torch.where(loss.isfinite(), FINE, step)
        self._first_bad = torch.minimum(self._first_bad, bad)
        self._unread += 1

    def between_steps(self) -> None:
        """Stop the run if a condition holds.

        Raises:
            DivergedError: names the first step whose loss was not finite.
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
        """Like `between_steps`, including all steps so far."""
        self._check(self._begin(read=True)())

    def require_finite(self, weights: Iterable[Tensor], step: int) -> None:
        """Raise DivergedError if a loss so far, or a weight after ``step`` steps, is not finite."""
        bad, _ = self._begin(read=True)()
        if bad == FINE and not bool(torch.stack([weight.isfinite().all() for weight in weights]).all()):
            raise DivergedError(f"step {step}: expected finite weights, found others")
        self._check([bad, 0])

    def _look(self) -> None:
        """Read the copy that the previous check started, which has long finished, and start the next one."""
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
