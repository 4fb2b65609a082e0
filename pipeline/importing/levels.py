"""Float images become levels of 0 to 255: by which numbers, whether these can be right, and what it costs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError
from pipeline.networks.normalisation import exchanged, require_normalisation

Normalise = Literal["mean-std", "per-image", "min-max"]
Stretch = Callable[[Tensor], Tensor]
IMAGES_AT_ONCE = 64
_SAMPLE = 256  # images that are examined
_FEW = 4096  # too few values to judge by
_GRID = 0.1  # levels: what float16 and float32 leave of a whole level after normalising
_FLAT = 20.0  # levels: photographs spread by 40 to 70 in an image, half of standard noise by 25
_STRETCH = (
    "--normalise per-image (or min-max) stretches each image (or all alike) to 0 to 255, --normalise mean-std takes "
    "--mean and --std as they are"
)


@dataclass
class Rounding:
    """The error of rounding to levels so far, in levels; clipped values are counted separately.

    Attributes:
        largest: the largest distance to the level.
        total: the sum of the distances.
        kept: how many values were not clipped.
        clipped: how many were.
        excess: the largest distance of a clipped value to 0 or 255.
        excess_total: the sum of these distances.
    """

    largest: float = 0.0
    total: float = 0.0
    kept: int = 0
    clipped: int = 0
    excess: float = 0.0
    excess_total: float = 0.0

    def add(self, exact: Tensor, rounded: Tensor, clamped: Tensor) -> None:
        """Count one part of the images."""
        within = rounded == clamped
        distances = (exact - clamped).abs()
        inside, outside = distances[within], distances[~within]
        self.kept, self.clipped = self.kept + len(inside), self.clipped + len(outside)
        self.total, self.excess_total = self.total + float(inside.sum()), self.excess_total + float(outside.sum())
        self.largest = max(self.largest, float(inside.max()) if len(inside) else 0.0)
        self.excess = max(self.excess, float(outside.max()) if len(outside) else 0.0)

    def numbers(self, values: int) -> dict[str, float]:
        """What it has cost in an import of so many values, by the names of `ImportReport`."""
        return {
            "max_rounding_error": self.largest,
            "mean_rounding_error": self.total / max(self.kept, 1),
            "clipped_share": self.clipped / values,
            "max_clipped": self.excess,
            "mean_clipped": self.excess_total / max(self.clipped, 1),
        }


def make_stretch(
    images: Tensor,
    place: str,
    *,
    mean: tuple[float, ...] | None,
    std: tuple[float, ...] | None,
    normalise: Normalise | None,
) -> Stretch | None:
    """A function from values ``[n, H, W, C]`` in float64 to unrounded levels; None for uint8, which is not changed.

    Args:
        images: ``[N, H, W, C]``.
        place: what they are, for messages.
        mean: channel means that the images were normalised with.
        std: channel standard deviations that the images were normalised with.
        normalise: None takes ``mean`` and ``std`` and refuses them where no photographs can have been normalised so.

    Raises:
        InputError: names the flags that are missing, too many, or cannot be right.
    """
    given = mean is not None or std is not None
    if images.dtype == torch.uint8:
        if given or normalise:
            raise InputError(
                f"{place}: uint8 images are written unchanged; leave out --mean and --std, and --normalise"
            )
        return None
    if normalise in ("per-image", "min-max"):
        if given:
            raise InputError(f"--normalise {normalise} needs no --mean and --std; leave them out")
        return _per_image if normalise == "per-image" else _min_max(images, place)
    scale = _scale(images, place, mean, std)
    if normalise is None:
        _require_plausible(images, place, *scale)
    shift, factor = scale
    return lambda values: (values * factor + shift) * 255


def _per_image(values: Tensor) -> Tensor:
    """Each image to its own range; one without any becomes grey."""
    low, high = values.amin(dim=(1, 2, 3), keepdim=True), values.amax(dim=(1, 2, 3), keepdim=True)
    return torch.where(high > low, (values - low) / (high - low), values - low + 0.5) * 255


def _min_max(images: Tensor, place: str) -> Stretch:
    """All images alike, to the range of them all."""
    low, high = float("inf"), -float("inf")
    for start in range(0, len(images), IMAGES_AT_ONCE):
        values = images[start : start + IMAGES_AT_ONCE].to(torch.float64)
        _require_finite(values, place, start)
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if low == high:
        raise InputError(f"{place}: --normalise min-max: all values are {low:.4g}")
    return lambda values: (values - low) / (high - low) * 255


def _scale(
    images: Tensor, place: str, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[Tensor, Tensor]:
    """Channel means and deviations in float64 ``[C]``."""
    channels = images.shape[3]
    if mean is None or std is None:
        low, high = images[:IMAGES_AT_ONCE].aminmax()
        zeros, ones = " ".join("0" * channels), " ".join("1" * channels)
        advice = "pass the --mean and --std that they were normalised with"
        if low >= 0 and high <= 1:
            advice += f"; if they were not (the values are in [0, 1]), pass --mean {zeros} --std {ones}"
        elif low >= 0 and high > 16:
            advice = "the values look like levels of 0 to 255: save them as uint8"
        raise InputError(f"{place}: float images from {low:.4g} to {high:.4g}: {advice}")
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"{place}: expected {channels} numbers in --mean and in --std, found {len(mean)} and {len(std)}"
        )
    require_normalisation(mean, std)
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)


def _require_plausible(images: Tensor, place: str, mean: Tensor, std: Tensor) -> None:
    """Raise InputError if the images were evidently not normalised with this mean and deviation.

    Values that lie on whole levels are photographs, whatever they show. Noise and images made from it pass: only
    ranges of another normalisation, images of nearly one grey, and the marks of whitening are refused.
    """
    step = -(-len(images) // _SAMPLE)
    values = images[::step].to(torch.float64)
    if values.numel() < _FEW or not values.isfinite().all():
        return
    exact = (values * std + mean) * 255
    outside = float(((exact < -0.5) | (exact > 255.5)).double().mean(dim=(0, 1, 2)).max())  # of the worst channel
    if not outside and float(((exact - exact.round()).abs() < _GRID).double().mean()) > 0.99:
        return
    low, high = float(values.min()), float(values.max())
    spread = float(exact.clamp(0, 255).flatten(1).std(dim=1).median())
    found = exchanged(mean.tolist(), std.tolist()) or _another_range(low, high, mean, std, outside)
    if not found and (spread < _FLAT or whitened(values)):
        result = f"of nearly one grey, spread by {spread:.0f} of 255 levels" if spread < _FLAT else "of bare edges"
        found = f"the images look whitened (ZCA), which cannot be undone from the file: they would become {result}"
    if found:
        raise InputError(
            f"{place}: values from {low:.4g} to {high:.4g} do not suit --mean and --std: {found}; {_STRETCH}"
        )


def _another_range(low: float, high: float, mean: Tensor, std: Tensor, outside: float) -> str:
    """How the images seem to be scaled, by the range of their values, if not by ``mean`` and ``std``; else empty."""
    channels = len(mean)

    def flags(mean_value: str, std_value: str) -> str:
        return f"pass --mean {' '.join([mean_value] * channels)} --std {' '.join([std_value] * channels)}"

    if low >= 0 and high <= 1 and not (mean.abs().max() < 1e-6 and (std - 1).abs().max() < 1e-6):
        return f"pixels in [0, 1] that were not normalised; {flags('0', '1')}"
    signed = -1.001 < low < -0.98 and 0.98 < high < 1.001
    if signed and not ((mean - 0.5).abs().max() < 1e-3 and (std - 0.5).abs().max() < 1e-3):
        return f"pixels in [-1, 1]; {flags('.5', '.5')}"
    if outside > 0.5:
        levels = "levels of 0 to 255: save them as uint8" if low >= 0 and high > 16 else "another normalisation"
        where = " of a channel" if channels > 1 else ""
        return f"{100 * outside:.0f} %{where} would be clipped; they look like {levels}"
    return ""


def whitened(values: Tensor) -> bool:
    """Whether images ``[n, H, W, C]`` bear the marks of ZCA whitening.

    Whitened photographs have no mean colour, neighbours that differ, and values of heavy tails (edges). Of CIFAR-10
    by regularisations of 0.001 to 0.15: neighbours correlate by 0.2 to 0.6 (photographs: 0.9), the kurtosis is 4.7 to
    7 (photographs, noise: 3), and the mean colours of images have 0.2 to 1.4 % of the variance (photographs: 30 %).
    """
    count, height, width, _ = values.shape
    total = float(values.var(dim=(0, 1, 2)).mean())
    if count < 2 or min(height, width) < 8 or not total:
        return False
    colours = values.mean(dim=(1, 2))
    rest = values - colours[:, None, None]
    power = float((rest**2).mean())
    tails = float((rest**4).mean()) / power**2 if power else 0.0
    across = float((rest[:, :, 1:] * rest[:, :, :-1]).mean()) / power if power else 1.0
    return (
        tails > 3.6
        and across < 0.75
        and float(colours.var(dim=0).mean()) < 0.03 * total
        and float(colours.mean(dim=0).abs().max()) < 0.15 * total**0.5
    )


def _require_finite(values: Tensor, place: str, start: int) -> None:
    """Refuse NaN and infinite values; ``start`` is the place of the first of these images."""
    finite = values.isfinite().flatten(1).all(dim=1)
    if not finite.all():
        raise InputError(
            f"{place}: image {start + int(finite.to(torch.uint8).argmin())} holds NaN or infinite values; "
            f"repair the file"
        )


def levels(
    images: Tensor, stretch: Stretch | None, rounding: Rounding, place: str
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The images as levels, some at once: (index of the first, uint8 ``[n, H, W, C]``)."""
    for start in range(0, len(images), IMAGES_AT_ONCE):
        values = images[start : start + IMAGES_AT_ONCE]
        if stretch:
            exact = stretch(values.to(torch.float64))
            _require_finite(exact, place, start)
            rounded = exact.round()
            values = rounded.clamp(0, 255)
            rounding.add(exact, rounded, values)
        yield start, values.to(torch.uint8).contiguous().numpy()
