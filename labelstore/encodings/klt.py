"""The basis of a transform: the offset of a label, then what predictions leave of it, by falling variance."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from labelstore.encodings.components import BASIS_UNIT, MAX_CODE
from labelstore.encodings.transform import MAX_EXACT, ROWS_AT_ONCE

OVERSAMPLING = 32
POWER_ITERATIONS = 2
SMALLEST = 1e-30  # of lengths, that steps may be taken of them

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


def parts(count: int) -> Iterator[slice]:
    """Slices of some rows at once."""
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE))


def split(rows: Float32Array) -> Iterator[Float32Array]:
    """Some rows at once."""
    return (rows[part] for part in parts(len(rows)))


def apart(rows: npt.NDArray[np.floating], kept: BoolArray) -> tuple[Float64Array, Float64Array]:
    """The mean of the kept columns of each row ``[n]``, and what is left of them ``[n, C]``; other columns become 0."""
    shape = np.where(kept, rows, 0.0).astype(np.float64, copy=False)
    offset = shape.sum(axis=1) / max(int(kept.sum()), 1)
    shape -= offset[:, None]
    if not kept.all():
        shape *= kept
    return offset, shape


def make_basis(rest: Float32Array, width: int, means: Float32Array, kept: BoolArray) -> npt.NDArray[np.int16]:
    """The offset, then components of what predictions leave, by falling variance, in 1 / 2**15: int16 ``[width, C]``.

    Rows beyond the columns that are kept are zero, and so are the other columns. Of many classes, only the leading
    components are made, by randomised subspace iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4); they must
    span the means too.

    Args:
        rest: apart from offsets.
        width: rows of the basis.
        means: less their mean, apart from offsets.
        kept: columns ``[C]``.
    """
    columns = rest.shape[1]
    rows = _klt(rest, kept) if columns <= MAX_EXACT else apart(_leading(rest, means, width - 1), kept)[1]
    rows = rows[: width - 1]
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    peaks = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    rows = np.concatenate([kept[None] / np.sqrt(max(int(kept.sum()), 1)), rows * np.sign(peaks)])
    basis = np.zeros((width, columns), np.int16)
    basis[: len(rows)] = np.clip(np.rint(rows / BASIS_UNIT), -MAX_CODE, MAX_CODE)
    return basis


def _klt(rest: Float32Array, kept: BoolArray) -> Float64Array:
    """All components but the offset ``[C_kept - 1, C]``."""
    count = int(kept.sum())
    covariance = np.zeros((count, count))
    for part in split(rest):
        exact = part[:, kept].astype(np.float64)
        covariance += exact.T @ exact
    if count:  # the offset, which has no residual, is last and separate
        covariance -= max(float(np.trace(covariance)), SMALLEST) / count
    rows = np.zeros((max(count - 1, 0), len(kept)))
    rows[:, kept] = np.linalg.eigh(covariance)[1][:, :0:-1].T
    return rows


def _leading(rest: Float32Array, means: Float32Array, width: int) -> Float32Array:
    """About ``width`` orthonormal rows that nearly span ``rest`` and ``means``, ordered by the variance of ``rest``."""
    generator = np.random.Generator(np.random.Philox(0))
    count, columns = len(rest) + len(means), rest.shape[1]

    def across(found: Float32Array) -> Float32Array:
        return np.concatenate([rest @ found, means @ found])

    def back(found: Float32Array) -> Float32Array:
        returned: Float32Array = np.linalg.qr(rest.T @ found[: len(rest)] + means.T @ found[len(rest) :])[0]
        return returned

    found = back(generator.standard_normal((count, min(width + OVERSAMPLING, count, columns)), np.float32))
    for _ in range(POWER_ITERATIONS):
        found = back(np.linalg.qr(across(found))[0])
    inside = across(found)
    found = found @ np.linalg.eigh(inside.T @ inside)[1][:, ::-1][:, :width]
    inside = (rest @ found).astype(np.float64)
    rows: Float32Array = (found @ np.linalg.eigh(inside.T @ inside)[1][:, ::-1].astype(np.float32)).T
    return rows
