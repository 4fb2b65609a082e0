"""Predictions of a crop's label from labelled crops of the same image, by how their boxes overlap."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from benchmarks.rivals import entropy

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer]

# Covariance of two labels of an image over their variance: what all its crops share, overlap, and how alike areas are;
# fitted to 1,000 photographs x 35 crops (least squares, none below 0). What is left of 1 is noise.
SHARED, OVERLAP, AREA, NOISE = 0.25, 0.53, 0.2, 0.02
AREA_POWER = 3  # of the ratio of areas
BOX_BYTES = 8


@dataclass(frozen=True, eq=False, kw_only=True)
class Known:
    """Labelled crops from which predictions are computed.

    Attributes:
        values: components, float32 ``[m, N, C]``.
        boxes: left, top, right, bottom, as parts of the image's sides, float64 ``[N, m, 4]``.
    """

    values: Float32Array
    boxes: Float64Array

    def stored(self, step: float) -> tuple[Float32Array, float]:
        """Values as a store would keep them, in codes of a step, and their bytes an image.

        The mean of an image's crops is kept eight times finer, and each crop as what the mean leaves of it, beside its
        box.
        """
        mean = self.values.mean(axis=0)
        kept, size = quantised_means(mean, step / 8)
        size += BOX_BYTES * len(self.values)
        codes = np.rint((self.values - kept) / step)
        for each in codes:
            size += entropy(each.astype(np.int32))
        return (codes * step + kept).astype(np.float32), size


def quantised_means(mean: Float32Array, step: float, components: int | None = None) -> tuple[Float32Array, float]:
    """Means ``[N, C]`` in codes of a step, of the first components, and bytes an image: their entropy."""
    codes = np.rint(mean / step)
    if components is not None:
        codes[:, components:] = 0
    return (codes * step).astype(np.float32), entropy(codes.astype(np.int32))


def covariance(ours: Float64Array, theirs: Float64Array) -> Float64Array:
    """Covariance of labels of boxes ``[..., 4]``, from additions, products and quotients only."""
    width = np.minimum(ours[..., 2], theirs[..., 2]) - np.maximum(ours[..., 0], theirs[..., 0])
    height = np.minimum(ours[..., 3], theirs[..., 3]) - np.maximum(ours[..., 1], theirs[..., 1])
    common = np.maximum(width, 0) * np.maximum(height, 0)
    areas = [(box[..., 2] - box[..., 0]) * (box[..., 3] - box[..., 1]) for box in (ours, theirs)]
    overlap = common / (areas[0] + areas[1] - common)
    alike = np.minimum(*areas) / np.maximum(*areas)
    found: Float64Array = SHARED + OVERLAP * overlap + AREA * alike**AREA_POWER
    return found


def weights(known: Float64Array, boxes: Float64Array, images: IntArray) -> Float32Array:
    """Weights of the known crops of its image in the prediction of each crop, ``[n, m]`` (kriging).

    Args:
        known: boxes ``[N, m, 4]``.
        boxes: of the crops to predict ``[n, 4]``.
        images: of these ``[n]``.
    """
    count = known.shape[1]
    inverse = np.linalg.inv(covariance(known[:, :, None], known[:, None]) + NOISE * np.eye(count))
    each = covariance(boxes[:, None], known[images])
    found: Float32Array = np.einsum("nc,ncd->nd", each, inverse[images]).astype(np.float32)
    return found


def combined(values: Float32Array, shares: Float32Array, images: IntArray) -> Float32Array:
    """Weighted sums of the known crops ``[m, N, C]`` of each crop's image, float32 ``[n, C]``."""
    found = np.zeros((len(shares), values.shape[2]), np.float32)
    for crop, share in zip(values, shares.T, strict=True):
        found += share[:, None] * crop[images]
    return found


def patches(boxes: Float64Array, flipped: npt.NDArray[np.bool_], cut: Float64Array) -> Float64Array:
    """The part of a crop that a rectangle of the finished crop shows, in parts of the image's sides ``[n, 4]``.

    Args:
        boxes: of crops ``[n, 4]``.
        flipped: whether each is ``[n]``.
        cut: the rectangles, in parts of the crop's sides ``[n, 4]``.
    """
    left = np.where(flipped, 1 - cut[:, 2], cut[:, 0])
    right = np.where(flipped, 1 - cut[:, 0], cut[:, 2])
    size = boxes[:, 2:] - boxes[:, :2]
    low = boxes[:, :2] + size * np.stack([left, cut[:, 1]], axis=1)
    high = boxes[:, :2] + size * np.stack([right, cut[:, 3]], axis=1)
    return np.concatenate([low, np.maximum(high, low + 1e-3)], axis=1)


def largest_left(cut: Float64Array) -> Float64Array:
    """The largest of the four rectangles beside one, in parts of the crop's sides ``[n, 4]``."""
    left, top, right, bottom = cut.T
    none, full = np.zeros_like(left), np.ones_like(left)
    beside = np.stack(
        [
            np.stack([none, none, left, full], axis=1),
            np.stack([right, none, full, full], axis=1),
            np.stack([none, none, full, top], axis=1),
            np.stack([none, bottom, full, full], axis=1),
        ]
    )
    areas = (beside[..., 2] - beside[..., 0]) * (beside[..., 3] - beside[..., 1])
    found: Float64Array = np.take_along_axis(beside, areas.argmax(axis=0)[None, :, None], axis=0)[0]
    return found


def fitted_sum(
    terms: list[tuple[Float32Array, Float32Array]], wanted: Float32Array
) -> tuple[Float32Array, Float32Array]:
    """Least squares of wanted components ``[n, C]``: each component has its own factors of the terms.

    Args:
        terms: of fitted and of measured rows, ``[n, C]`` and ``[m, C]``.
        wanted: of the fitted rows.

    Returns:
        The sums of both, ``[n, C]`` and ``[m, C]``.
    """
    gram = np.stack([[np.einsum("nc,nc->c", a, b) for b, _ in terms] for a, _ in terms]).transpose(2, 0, 1)
    right = np.stack([np.einsum("nc,nc->c", a, wanted) for a, _ in terms]).T
    ridge = 1e-3 * np.trace(gram, axis1=1, axis2=2)[:, None, None] * np.eye(len(terms)) + 1e-9 * np.eye(len(terms))
    factors = np.linalg.solve(gram + ridge, right[..., None])[..., 0].astype(np.float32)
    ours, theirs = (
        np.asarray(sum(f * term[part] for f, term in zip(factors.T, terms, strict=True)), np.float32) for part in (0, 1)
    )
    return ours, theirs
