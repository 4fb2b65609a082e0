"""`step`: the rate drops at fractions of the run."""

from __future__ import annotations

import math
from bisect import bisect_right
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from trainer.schedules import ScheduleSpec

numbers = ("per", "milestones", "drop")
can_be_lengthened = False


def factor(spec: ScheduleSpec, done: int, total: int, rise: int) -> float:
    """``spec.drop`` to the power of the number of milestones passed."""
    del rise
    # 1e-9: a third of 300 epochs, written as a float, is 100 epochs and not 99
    drops = [math.floor(fraction * total + 1e-9) for fraction in spec.milestones]
    return float(spec.drop ** bisect_right(drops, done))
