"""`cosine`: half a cosine wave down to a fraction of the rate; with a horizon of 2 runs, its first half."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.schedules import ScheduleSpec

numbers = ("per", "final", "horizon")
can_be_lengthened = False


def factor(spec: ScheduleSpec, done: int, total: int, rise: int) -> float:
    """From 1, at ``done`` 0, to ``spec.final`` after ``spec.horizon`` times ``total``."""
    del rise
    return spec.final + (1 - spec.final) * (1 + math.cos(math.pi * done / (spec.horizon * total))) / 2
