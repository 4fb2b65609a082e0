"""`constant`: a constant rate after the warm-up."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.schedules import ScheduleSpec

numbers: tuple[str, ...] = ()
can_be_lengthened = True


def factor(spec: ScheduleSpec, done: int, total: int, rise: int) -> float:
    """Always 1."""
    del spec, done, total, rise
    return 1.0
