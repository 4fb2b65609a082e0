"""Learning rate schedules: pure functions of the progress of a run, one file each.

A new schedule is one new file, and one line in `SCHEDULES`. Its numbers are fields of `ScheduleSpec`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal, Protocol, get_args

from labelstore.command.flags import Choices, Named
from labelstore.errors import InputError
from labelstore.spec import Json
from labelstore.tables import Table

SchedulePer = Literal["epoch", "step"]


class Schedule(Protocol):
    """The interface of a schedule's module."""

    @property
    def numbers(self) -> tuple[str, ...]:
        """The fields of `ScheduleSpec` that it uses; ``per`` is one of them unless the rate is constant."""

    @property
    def can_be_lengthened(self) -> bool:
        """Whether `factor` is the same for any ``total``, so that a run can be continued with more epochs."""

    def factor(self, spec: ScheduleSpec, done: int, total: int, rise: int, /) -> float:
        """See `ScheduleSpec.factor`."""


SCHEDULES: Table[Schedule] = Table(
    {
        "step": "trainer.schedules.step",
        "cosine": "trainer.schedules.cosine",
        "constant": "trainer.schedules.constant",
    }
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSpec:
    """A schedule and every number in it; each schedule uses its own and ignores the others."""

    name: Annotated[str, Choices(SCHEDULES), Named("schedule")] = "cosine"
    """Learning rate after the warm-up: step, times --drop at each of --milestones; cosine, down to --final;
    constant."""
    per: Annotated[SchedulePer, Named("schedule-per")] = "step"
    """Change the rate once a step, or once an epoch."""
    warmup: Annotated[int, Named("warmup-epochs")] = 0
    """Epochs in which the rate rises linearly to --lr; the schedule takes the rest of the run."""
    warmup_steps: int | None = None
    """Warm-up in steps, instead of --warmup-epochs."""
    final: float = 0.0
    """cosine: fraction of --lr at the end of the cosine."""
    horizon: float = 1.0
    """cosine: length of the cosine as a multiple of the run; with 2 the run ends at half of --lr."""
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    """step: fractions of the run at which the rate drops."""
    drop: float = 0.2
    """step: factor by which the rate is multiplied at each milestone."""

    def __post_init__(self) -> None:
        """Refuse invalid numbers."""
        for what, value, known in (
            ("name", self.name, tuple(SCHEDULES)),
            ("per", self.per, get_args(SchedulePer)),
        ):
            if value not in known:
                raise InputError(f"schedule {what}: expected one of {', '.join(known)}, found {value!r}")
        inside = all(0 < fraction < 1 for fraction in self.milestones)
        if not inside or sorted(set(self.milestones)) != list(self.milestones):
            raise InputError(
                f"schedule milestones: expected increasing fractions of the run between 0 and 1, "
                f"found {self.milestones}"
            )
        if not (math.isfinite(self.drop) and self.drop > 0):
            raise InputError(f"schedule drop: expected a number > 0, found {self.drop}")
        if not (math.isfinite(self.horizon) and self.horizon >= 1):
            raise InputError(f"schedule horizon: expected at least 1 run, found {self.horizon}")
        if self.warmup < 0:
            raise InputError(f"schedule warm-up: expected 0 epochs or more, found {self.warmup}")
        if self.warmup_steps is not None:
            self._require_warmup_steps(self.warmup_steps)
        if not 0 <= self.final <= 1:
            raise InputError(f"schedule final: expected a fraction in [0, 1], found {self.final}")

    def _require_warmup_steps(self, steps: int) -> None:
        """Refuse a warm-up in steps that is invalid or conflicts with other fields."""
        if steps < 0:
            raise InputError(f"--warmup-steps: expected 0 steps or more, found {steps}")
        if self.warmup or self.per == "epoch":
            other = f"--warmup-epochs {self.warmup}" if self.warmup else "--schedule-per epoch"
            raise InputError(f"--warmup-steps {steps}: cannot be combined with {other}; leave one of them out")

    @property
    def kind(self) -> Schedule:
        """The schedule of that name."""
        return SCHEDULES[self.name]

    def to_json(self) -> dict[str, Json]:
        """The name and the numbers in effect."""
        numbers = self.kind.numbers
        names = ["name", *numbers]
        if self.warmup:
            names = ["name", "per", *(name for name in numbers if name != "per"), "warmup"]
        if self.warmup_steps is not None:
            names.append("warmup_steps")
        values = {name: getattr(self, name) for name in names if not (name == "horizon" and self.horizon == 1)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def factor(self, done: int, total: int, rise: int = 0) -> float:
        """The factor of the initial learning rate.

        Args:
            done: epochs or steps since the warm-up.
            total: epochs or steps of the run after the warm-up.
            rise: epochs or steps of the warm-up.
        """
        return self.kind.factor(self, done, total, rise)


def lr_factor(spec: ScheduleSpec, step: int, total: int, *, steps_per_epoch: int) -> float:
    """The factor of optimiser step ``step`` of ``total``, counted from 0 over the whole run."""
    done, length, rise = step, total, spec.warmup * steps_per_epoch
    if spec.warmup_steps is not None:
        rise = spec.warmup_steps
    if spec.per == "epoch":
        done, length, rise = step // steps_per_epoch, -(-total // steps_per_epoch), spec.warmup
    if done < rise:
        return (done + 1) / (rise + 1)
    return spec.factor(done - rise, length - rise, rise)
