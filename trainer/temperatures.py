"""Temperatures of `kl` that change over a run, as in LPQLD. Does not import torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated

from labelstore.command.flags import Named
from labelstore.errors import InputError
from labelstore.spec import Json
from trainer.choices import LossSpec

FIRST_STUDENT = 1.0  # temperature of a calibrated student in its first epoch


@dataclass(frozen=True, kw_only=True, slots=True)
class TemperatureOptions:
    """How the temperatures of teacher and student change; without these flags both are --temperature throughout."""

    every: Annotated[int | None, Named("temperature-every")] = None
    """kl: lower the temperature at every K-th epoch, counted from 1; left out, it is constant."""
    drop: Annotated[float, Named("temperature-drop")] = 0.7
    """kl, with --temperature-every: factor by which the temperature is multiplied each time."""
    floor: Annotated[float, Named("temperature-floor")] = 2.0
    """kl, with --temperature-every: lowest temperature."""
    calibrate: Annotated[bool, Named("calibrate-student")] = False
    """kl: give the student a separate temperature: 1 in the first epoch, then the one of 0.01, 0.02, ..., 1 with the
    smallest divergence on the last batch of the epoch before."""

    def __post_init__(self) -> None:
        """Refuse invalid temperatures, and numbers without effect."""
        plain = type(self).__dataclass_fields__
        for name in ("drop", "floor"):
            if self.every is None and getattr(self, name) != plain[name].default:
                raise InputError(f"--temperature-{name}: has an effect only with --temperature-every; leave it out")
        if self.every is not None and self.every < 1:
            raise InputError(f"--temperature-every: expected at least 1 epoch, found {self.every}")
        if not 0 < self.drop < 1:
            raise InputError(f"--temperature-drop: expected a number between 0 and 1, found {self.drop}")
        if not (math.isfinite(self.floor) and self.floor > 0):
            raise InputError(f"--temperature-floor: expected a number > 0, found {self.floor}")

    @property
    def change(self) -> bool:
        """Whether any temperature differs from --temperature."""
        return self.every is not None or self.calibrate

    @property
    def unused(self) -> tuple[str, ...]:
        """The flags without effect, by key."""
        steps = () if self.every is not None else ("temperature_every", "temperature_drop", "temperature_floor")
        return (*steps, *(() if self.calibrate else ("calibrate_student",)))

    def require(self, losses: tuple[LossSpec, ...]) -> None:
        """Refuse changes that no loss of a run uses.

        Raises:
            InputError: names the flag.
        """
        kl = next((loss for loss in losses if loss.name == "kl"), None)
        flag = "--temperature-every" if self.every is not None else "--calibrate-student"
        if self.change and kl is None:
            names = ", ".join(dict.fromkeys(loss.name for loss in losses))
            raise InputError(f"{flag}: has an effect only with --loss kl, found {names}; leave it out")
        if self.every is not None and kl is not None and self.floor >= kl.temperature:
            raise InputError(
                f"--temperature-floor: expected less than --temperature {kl.temperature}, found {self.floor}"
            )

    def of_teacher(self, first: float, epoch: int) -> float:
        """The teacher's temperature in an epoch (from 0); ``first`` is the temperature of the loss."""
        if self.every is None:
            return first
        return max(first * self.drop ** ((epoch + 1) // self.every), self.floor)

    def to_json(self) -> dict[str, Json]:
        """The numbers in effect."""
        values: dict[str, Json] = {
            "temperature_every": self.every,
            "temperature_drop": self.drop,
            "temperature_floor": self.floor,
            "calibrate_student": self.calibrate,
        }
        return {name: value for name, value in values.items() if name not in self.unused}
