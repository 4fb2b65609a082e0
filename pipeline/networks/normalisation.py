"""Check means and deviations of pixels."""

from __future__ import annotations

import math
from collections.abc import Sequence

from labelstore.errors import InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
LEVELS = 255
_ROUNDING = 1e-3


def require_normalisation(mean: Sequence[float], std: Sequence[float], place: str = "") -> None:
    """Refuse a normalisation that pixels in [0, 1] cannot have.

    Their mean lies in [0, 1]. Their deviation is at most 0.5, but networks are also trained without one (mean 0,
    std 1), or on pixels of 0 to 255 (std 1/255), so that all of (0, 1] is taken.

    Args:
        mean: channel means.
        std: channel standard deviations.
        place: what comes before the flags in a message.

    Raises:
        InputError: names the flag, and the numbers that are meant where these are of pixels of 0 to 255.
    """
    for flag, values, lowest in (("mean", mean, 0.0), ("std", std, math.ulp(0.0))):
        if all(lowest <= value <= 1 for value in values):
            continue
        among = "0 to 1" if flag == "mean" else "above 0, up to 1"
        expected = f"{place}--{flag}: expected numbers {among}, of pixels in [0, 1], found {' '.join(map(str, values))}"
        if all(0 <= value <= LEVELS for value in values) and max(values) > 1:
            meant = " ".join(f"{value / LEVELS if value > 1 else value:.4g}" for value in values)
            raise InputError(f"{expected}; those above 1 are of pixels of 0 to 255: divide by 255, --{flag} {meant}")
        raise InputError(f"{expected}; give those that the network was trained with")


def exchanged(mean: Sequence[float], std: Sequence[float]) -> str | None:
    """A doubt whether mean and deviation are in each other's place; None if there is none.

    Numbers in [0, 1] of mean m deviate by sqrt(m (1 - m)) at most, when all are 0 or 1. Deviations of 1 divide by
    nothing, and means of 0 subtract nothing: these are no statistics.

    Args:
        mean: channel means.
        std: channel standard deviations.
    """

    def possible(means: Sequence[float], deviations: Sequence[float]) -> bool:
        return all(s**2 <= m * (1 - m) + _ROUNDING for m, s in zip(means, deviations, strict=True))

    if not all(mean) or 1 in std or possible(mean, std) or not possible(std, mean):
        return None
    return (
        f"no pixels in [0, 1] have the mean {' '.join(map(str, mean))} and the deviation {' '.join(map(str, std))}; "
        f"exchanged they could be right"
    )
