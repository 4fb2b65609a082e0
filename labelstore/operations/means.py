"""The mean label of every image, fitted by least squares to the labels of crops that show one image or two.

An unmixed crop of image i has about the label ``m[i]``; one mixed from i and j with weight w about ``w m[i] + (1 - w)
m[j]``. The means that fit all given crops best solve the normal equations, which are sparse: one row an image, two
entries a crop. With only unmixed crops they are diagonal, and the solution is the plain mean.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.durable.nameless import zeros
from labelstore.encodings import Logits, Pairs
from labelstore.errors import InputError

ROWS_AT_ONCE = 2048  # rows whose logits stay in the processor's cache
BUDGET = 1 << 30
STEPS = 64
TOLERANCE = 1e-6  # of the residual's length: what float32 sums resolve

Float32Array = npt.NDArray[np.float32]


class _Shown(NamedTuple):
    """Pairs in 12 bytes a crop, ``[n]`` each."""

    images: npt.NDArray[np.int32]
    partners: npt.NDArray[np.int32]
    weights: Float32Array

    @classmethod
    def of(cls, pairs: Pairs) -> _Shown:
        images, partners, weights = (part.reshape(-1) for part in pairs)
        return cls(images.astype(np.int32), partners.astype(np.int32), weights.astype(np.float32))

    def take(self, part: slice) -> _Shown:
        return _Shown(self.images[part], self.partners[part], self.weights[part])


def least_squares_means(
    blocks: Iterable[tuple[Pairs, Logits]],
    images: int,
    columns: int,
    *,
    budget: int = BUDGET,
    folder: Path | None = None,
) -> Float32Array:
    """Fit the mean labels by preconditioned conjugate gradients.

    Logits are seen once, block by block. Kept are the sums, which become the result (4 N C bytes; beyond the budget
    they are in an unnamed file), the pairs (12 bytes a crop), and as many columns as are solved at once within the
    budget.

    Args:
        blocks: pairs ``[...]`` and logits ``[..., C]`` of some crops.
        images: number of images N.
        columns: columns C of a label.
        budget: bytes for the sums, and again for what the solver works in (at least 16 N).
        folder: folder for this file; the system's temporary folder when None.

    Returns:
        float32 ``[N, C]``. What the crops leave open, such as an image that none of them shows, is as near to the
        mean of all labels as it can be.

    Raises:
        InputError: when there is no crop.
    """
    sums = zeros((images, columns), np.float32, budget, folder=folder)
    total, count = np.zeros(columns), 0
    kept: list[_Shown] = []
    for pairs, logits in blocks:
        rows = logits.reshape(-1, columns)
        shown = _Shown.of(pairs)
        kept.append(shown)
        total += rows.sum(axis=0, dtype=np.float64)
        count += len(rows)
        for part in _parts(len(rows)):
            _add_mixed(sums, shown.take(part), rows[part])
    if not count:
        raise InputError("mean labels: expected crops to fit them to, found none")
    center = (total / count).astype(np.float32)
    diagonal, weight = _diagonal_and_weight(kept, images)
    step = max(budget // (16 * images), 1)
    for start in range(0, columns, step):
        part = slice(start, start + step)
        residual = sums[:, part] - weight[:, None] * center[part]
        sums[:, part] = center[part] + _solve(kept, diagonal, residual)
    return sums


def _solve(kept: list[_Shown], diagonal: Float32Array, residual: Float32Array) -> Float32Array:
    """The solution for a right-hand side ``[N, c]``, which is overwritten; of several the shortest."""
    inverse = np.divide(1, diagonal, out=np.zeros_like(diagonal), where=diagonal > 0)[:, None]
    solution = np.zeros_like(residual)
    direction = inverse * residual
    before = _dots(residual, direction)
    enough = TOLERANCE**2 * before
    for _ in range(STEPS):
        moved = _normal_product(kept, direction)
        pace = _ratio(before, _dots(direction, moved))
        solution += pace * direction
        moved *= pace
        residual -= moved
        np.multiply(inverse, residual, out=moved)
        after = _dots(residual, moved)
        if np.all(after <= enough):
            break
        direction *= _ratio(after, before)
        direction += moved
        before = after
    return solution


def _normal_product(kept: list[_Shown], means: Float32Array) -> Float32Array:
    """The normal equations' matrix times ``means`` ``[N, c]``."""
    out = np.zeros_like(means)
    for pairs in kept:
        for part in _parts(len(pairs.images)):
            some = pairs.take(part)
            own = some.weights[:, None]
            _add_mixed(out, some, own * means[some.images] + (1 - own) * means[some.partners])
    return out


def _add_mixed(sums: Float32Array, pairs: _Shown, labels: Float32Array) -> None:
    """Add to ``sums`` ``[N, c]`` each of the labels ``[n, c]``, by weight at its two images."""
    own = pairs.weights[:, None]
    _add(sums, pairs.images, own * labels)
    mixed = pairs.weights != 1
    if mixed.all():
        _add(sums, pairs.partners, (1 - own) * labels)
    elif mixed.any():
        _add(sums, pairs.partners[mixed], (1 - own[mixed]) * labels[mixed])


def _add(sums: npt.NDArray[Any], images: npt.NDArray[np.integer], values: npt.NDArray[Any]) -> None:
    """``sums[images] += values`` where an image may come more than once."""
    order = np.argsort(images, kind="stable")
    ordered = images[order]
    starts = np.flatnonzero(np.concatenate([[True], ordered[1:] != ordered[:-1]]))
    sums[ordered[starts]] += np.add.reduceat(values[order], starts, axis=0)


def _diagonal_and_weight(kept: list[_Shown], images: int) -> tuple[Float32Array, Float32Array]:
    """The matrix's diagonal and its row sums ``[N]``."""
    diagonal, weight = np.zeros((2, images))
    for pairs in kept:
        own, other = pairs.weights.astype(np.float64), 1 - pairs.weights.astype(np.float64)
        diagonal += np.bincount(pairs.images, own**2, images) + np.bincount(pairs.partners, other**2, images)
        weight += np.bincount(pairs.images, own, images) + np.bincount(pairs.partners, other, images)
        # A crop that is mixed with another crop of its image shows only that image.
        same = pairs.images == pairs.partners
        diagonal += np.bincount(pairs.images[same], 2 * (own * other)[same], images)
    return diagonal.astype(np.float32), weight.astype(np.float32)


def _dots(left: Float32Array, right: Float32Array) -> npt.NDArray[np.float64]:
    """Inner product of each column ``[c]``, summed in float64."""
    dots: npt.NDArray[np.float64] = np.einsum("nc,nc->c", left, right, dtype=np.float64)
    return dots


def _ratio(over: npt.NDArray[np.float64], under: npt.NDArray[np.float64]) -> Float32Array:
    """``over / under``; 0 if both are."""
    ratio: npt.NDArray[np.float64] = np.divide(over, under, out=np.zeros_like(over), where=under > 0)
    return ratio.astype(np.float32)


def _parts(count: int) -> Iterable[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE))
