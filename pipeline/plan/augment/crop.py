"""Which box of its image a crop shows: random resized, centre fit, padded, or a cell of a grid."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from labelstore.format.columns import BOX_COLUMNS
from pipeline.plan import draws
from pipeline.plan.augment import CROPS, Crop

columns = BOX_COLUMNS
ATTEMPTS = 10

Images = npt.NDArray[np.uint32]
Sides = npt.NDArray[np.int32]
Boxes = npt.NDArray[np.int64]


def draw(
    kind: str, numbers: Mapping[str, Any], seed: int, view: int, images: Images, heights: Sides, widths: Sides
) -> Boxes:
    """The box of each image in a view, int64 ``[4, n]`` in the order of `columns`.

    Args:
        kind: key of `CROPS`.
        numbers: the parameters of this kind, by name.
        seed: of the plan.
        view: number of the view.
        images: image indexes ``[n]``.
        heights: heights of those images in pixels ``[n]``.
        widths: widths of those images in pixels ``[n]``.
    """
    return CROPS[kind].boxes(draws.key("crop", seed, view), images, heights, widths, **numbers)


def require_sides(kind: str, numbers: Mapping[str, Any], heights: Sides, widths: Sides) -> None:
    """Raise InputError for images whose sides ``[N]`` this crop cannot use."""
    require = CROPS[kind].require_sides
    if require:
        require(heights, widths, **numbers)


def _require_size(heights: Sides, widths: Sides, *, size: int, **_: object) -> None:
    wrong = np.flatnonzero((heights != size) | (widths != size))
    if len(wrong):
        image = wrong[0]
        raise InputError(
            f"crop 'padded' needs images of {size} x {size} pixels (--size): image {image} is "
            f"{heights[image]} x {widths[image]}; choose another --size, or crop 'resized' or 'center'"
        )


def _require_factor(heights: Sides, widths: Sides, *, factor: int) -> None:
    small = np.flatnonzero(np.minimum(heights, widths) < factor)
    if len(small):
        raise InputError(
            f"crop 'factor' needs images of {factor} pixels a side and more (--factor): image {small[0]} is "
            f"{heights[small[0]]} x {widths[small[0]]}"
        )


def _resized(
    key: draws.Key,
    images: Images,
    heights: Sides,
    widths: Sides,
    *,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> Boxes:
    """Random area and aspect ratio, with the distribution of torchvision's RandomResizedCrop."""
    boxes = np.empty((4, len(images)), np.int64)
    half_low, half_high = np.log(ratio) / 2
    low, high = scale
    pending = np.arange(len(images))
    for attempt in range(ATTEMPTS):
        words = draws.philox(key, images[pending], attempt)
        full_height, full_width = heights[pending].astype(np.float64), widths[pending].astype(np.float64)
        side = np.sqrt(full_height * full_width * (low + (high - low) * draws.uniform(words[0])))
        stretch = np.exp(half_low + (half_high - half_low) * draws.uniform(words[1]))
        height, width = np.rint(side / stretch), np.rint(side * stretch)  # half to even, as Python's round
        fits = (height > 0) & (height <= full_height) & (width > 0) & (width <= full_width)
        top = draws.integers(words[2], np.maximum(full_height - height, 0) + 1)
        left = draws.integers(words[3], np.maximum(full_width - width, 0) + 1)
        done = pending[fits]
        for row, values in zip(boxes, (top, left, height, width), strict=True):
            row[done] = values[fits]
        pending = pending[~fits]
        if not len(pending):
            return boxes
    boxes[:, pending] = _fallback(ratio, heights[pending], widths[pending])
    return boxes


def _fallback(ratio: tuple[float, float], heights: Sides, widths: Sides) -> Boxes:
    """The largest central box whose aspect ratio (width over height) is within the range."""
    aspect = widths / heights
    height = np.where(aspect < ratio[0], np.rint(widths / ratio[0]), heights)
    width = np.where(aspect > ratio[1], np.rint(heights * ratio[1]), widths)
    height, width = np.maximum(height, 1), np.maximum(width, 1)
    return np.stack([(heights - height) // 2, (widths - width) // 2, height, width]).astype(np.int64)


def _center(_key: draws.Key, _images: Images, heights: Sides, widths: Sides, *, size: int, resize: int | None) -> Boxes:
    """The central square that Resize(resize) and CenterCrop(size) would show, in source pixels."""
    side = np.rint(np.minimum(heights, widths) * (size / (resize or size)))
    side = np.maximum(side, 1)
    top, left = np.rint((heights - side) / 2), np.rint((widths - side) / 2)  # as CenterCrop rounds
    return np.stack([top, left, side, side]).astype(np.int64)


def _factor(key: draws.Key, images: Images, heights: Sides, widths: Sides, *, factor: int) -> Boxes:
    """One cell of the grid of ``factor`` x ``factor``, or with probability 1 / factor^2 the whole image (GIFT).

    RandomFactorResizedCrop of LINs-lab/GIFT, utils/transforms.py: the cells' sides are rounded down, so that a
    remainder is only covered by the whole image.
    """
    words = draws.philox(key, images)
    cell = words[0] >= round(2**32 / factor**2) if factor > 1 else np.zeros(len(images), bool)
    height, width = (sides.astype(np.int64) // factor for sides in (heights, widths))
    top, left = (
        draws.integers(word, factor).astype(np.int64) * step
        for word, step in zip(words[1:3], (height, width), strict=True)
    )
    whole = np.stack([np.zeros_like(top), np.zeros_like(top), heights, widths])
    return np.where(cell, np.stack([top, left, height, width]), whole).astype(np.int64)


def _padded(key: draws.Key, images: Images, heights: Sides, widths: Sides, *, pad: int, **_: object) -> Boxes:
    """The size of the image, anywhere in the image padded by ``pad`` and counted from that corner."""
    words = draws.philox(key, images)
    top, left = (draws.integers(word, 2 * pad + 1) for word in words[:2])
    return np.stack([top, left, heights, widths]).astype(np.int64)


RESIZED = Crop(_resized, ("scale", "ratio"))
CENTER = Crop(_center, ("size", "resize"))
PADDED = Crop(_padded, ("size", "pad"), _require_size)
FACTOR = Crop(_factor, ("factor",), _require_factor)
