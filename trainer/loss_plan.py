"""The loss of each epoch of a run: a single loss or phases, with constant or changing temperatures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from labelstore.spec import Json
from pipeline.ranks import Ranks
from trainer.batch import TrainBatch
from trainer.losses import Loss, make_relabelled_loss
from trainer.phases import Phase, phase_at
from trainer.relabel import LabelColumns
from trainer.temperatures import FIRST_STUDENT, TemperatureOptions

GRID = tuple(number / 100 for number in range(1, 101))  # temperatures that are tried for a calibrated student
STUDENT = "student_temperature"


class LossPlan:
    """A loss, called with a student's logits and their batch; `begin_epoch` selects the loss of the epoch.

    The temperature of a calibrated student is kept in `state`. Everything else follows from the epoch.

    Args:
        phases: phases of the run.
        relabel: operators on labels, applied for losses that read labels.
        temperatures: how they change.
        columns: columns of the labels.
    """

    def __init__(
        self,
        phases: Sequence[Phase],
        relabel: Sequence[str],
        temperatures: TemperatureOptions,
        columns: LabelColumns,
    ) -> None:
        self._phases, self._temperatures = phases, temperatures
        specs = {phase.loss.name: phase.loss for phase in phases}
        self._losses: dict[str, Loss] = {
            name: make_relabelled_loss(spec, relabel if spec.reads_labels else (), columns)
            for name, spec in specs.items()
        }
        self._student = FIRST_STUDENT
        self._last: tuple[Tensor, Tensor, bool] | None = None  # logits and labels; whether their crops count
        self.begin_epoch(0)

    def begin_epoch(self, epoch: int) -> None:
        """Set the loss and the temperatures of an epoch, counted from 0."""
        self._number = phase_at(self._phases, epoch)
        self._spec = self._phases[self._number].loss
        self._loss = self._losses[self._spec.name]
        self._softened = self._spec.name == "kl" and self._temperatures.change
        self._teacher = self._temperatures.of_teacher(self._spec.temperature, epoch)
        self._last = None

    def __call__(self, x: Tensor, batch: TrainBatch) -> Tensor:
        """The mean loss of logits ``x [n, C]``, a scalar."""
        t, targets = batch.logits, (batch.targets, batch.targets2, batch.lam)
        if not self._softened:
            return self._loss(x, t, *targets)
        if self._temperatures.calibrate:
            self._last = (x.detach(), t, batch.share > 0)
        # The loss divides both by its constant temperature, so that kernels are compiled for one temperature only.
        first, student = self._spec.temperature, self._student if self._temperatures.calibrate else self._teacher
        loss = self._loss(scaled(x, first / student), scaled(t, first / self._teacher), *targets)
        return loss * (self._teacher / first) ** 2 if self._spec.t_squared else loss

    def end_epoch(self, ranks: Ranks) -> dict[str, Json]:
        """Calibrate the student on the last batch of the epoch; returns the phase and temperatures for the log entry.

        With --accumulate only the last piece of the batch is used; with several processes, that of each process.
        """
        entry: dict[str, Json] = {"phase": self._number + 1} if len(self._phases) > 1 else {}
        if not self._softened:
            return entry
        entry["temperature"] = self._teacher
        if self._temperatures.calibrate:
            entry[STUDENT] = self._student
            assert self._last is not None  # noqa: S101  an epoch has a batch at least
            x, t, counts = self._last
            own = divergences(x, t, self._teacher) if counts else [0.0] * len(GRID)
            every: list[Any] = ranks.all_gather([*own])
            sums = [sum(costs) for costs in zip(*every, strict=True)]
            self._student = GRID[min(range(len(GRID)), key=sums.__getitem__)]
            self._last = None
        return entry

    def state(self) -> dict[str, float]:
        """The state for `load_state`; empty if everything follows from the epoch."""
        return {STUDENT: self._student} if self._temperatures.calibrate else {}

    def load_state(self, state: Mapping[str, float]) -> None:
        """Continue from a state."""
        self._student = state.get(STUDENT, FIRST_STUDENT)


def scaled(logits: Tensor, factor: float) -> Tensor:
    """Logits times a factor, in float32 at least; unchanged if the factor is 1."""
    if factor == 1:
        return logits
    return (logits if logits.dtype.itemsize >= 4 else logits.float()) * factor


@torch.no_grad()
def divergences(x: Tensor, t: Tensor, teacher: float) -> list[float]:
    """``KL(softmax(t / teacher) || softmax(x / T))``, summed over rows, for each T of `GRID`, up to a constant.

    Args:
        x: student logits ``[n, C]``.
        t: teacher logits ``[n, C]``.
        teacher: temperature of the teacher.
    """
    x, p = x.double(), (t.double() / teacher).softmax(1)
    costs = [-(p * (x / student).log_softmax(1)).sum() for student in GRID]
    found: list[float] = torch.stack(costs).tolist()
    return found
