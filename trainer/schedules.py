"""The learning rate over a run: a pure function of how much of it is done."""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from labelstore.command.flags import Named
from labelstore.errors import InputError
from labelstore.spec import Json

ScheduleName = Literal["step", "cosine", "constant"]
SchedulePer = Literal["epoch", "step"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleSpec:
    """A schedule and every number in it; each schedule uses its own and ignores the others."""

    name: Annotated[ScheduleName, Named("schedule")] = "cosine"
    """How the learning rate falls: cosine, step or constant."""
    per: Annotated[SchedulePer, Named("schedule-per")] = "step"
    """Whether the rate changes once a step or once an epoch."""
    warmup: Annotated[int, Named("warmup-epochs")] = 0
    """Epochs in which the rate rises to --lr; the schedule has the rest of the run."""
    final: float = 0.0
    """cosine: fraction of --lr that is reached at the end of its half wave."""
    horizon: float = 1.0
    """cosine: length of the half wave in runs; 2 ends the run at half of --lr."""
    milestones: tuple[float, ...] = (2 / 3, 5 / 6)
    """step: fractions of the run at which the rate drops."""
    drop: float = 0.2
    """step: what the rate is multiplied by at each milestone."""

    def __post_init__(self) -> None:
        """Refuse what is not a schedule."""
        for what, value, known in (
            ("name", self.name, get_args(ScheduleName)),
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
        if not 0 <= self.final <= 1:
            raise InputError(f"schedule final: expected a fraction in [0, 1], found {self.final}")

    def to_json(self) -> dict[str, Json]:
        """Name and the numbers in effect."""
        slowly: dict[str, Json] = {"warmup": self.warmup} if self.warmup else {}
        if self.name == "step":
            return {
                "name": self.name,
                "per": self.per,
                "milestones": list(self.milestones),
                "drop": self.drop,
                **slowly,
            }
        if self.name == "cosine":
            longer = {} if self.horizon == 1 else {"horizon": self.horizon}
            return {"name": self.name, "per": self.per, "final": self.final, **longer, **slowly}
        return {"name": self.name, **({"per": self.per, **slowly} if slowly else {})}

    def factor(self, done: int, total: int) -> float:
        """What the first learning rate is multiplied by after ``done`` of ``total`` epochs or steps."""
        if self.name == "constant":
            return 1.0
        if self.name == "cosine":
            return self.final + (1 - self.final) * (1 + math.cos(math.pi * done / (self.horizon * total))) / 2
        # 1e-9: a third of 300 epochs, written as a float, is 100 epochs and not 99
        drops = [math.floor(fraction * total + 1e-9) for fraction in self.milestones]
        return float(self.drop ** bisect_right(drops, done))


def lr_factor(spec: ScheduleSpec, step: int, total: int, *, steps_per_epoch: int) -> float:
    """The factor of optimiser step ``step`` of ``total``, counted from 0 over the whole run."""
    done, length, rise = step, total, spec.warmup * steps_per_epoch
    if spec.per == "epoch":
        done, length, rise = step // steps_per_epoch, -(-total // steps_per_epoch), spec.warmup
    if done < rise:
        return (done + 1) / (rise + 1)
    return spec.factor(done - rise, length - rise)
