"""Fit a transform to calibration crops: center, KLT, gains of the means, centroids and the step.

All of it runs on one BLAS thread, so that the same crops give the same calibration however many there are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from labelstore.encodings.base import Codes, Logits, Pairs
from labelstore.encodings.transform import (
    BASIS_UNIT,
    GROUP,
    MAX_CODE,
    MAX_EXACT,
    MAX_UNITS,
    ROWS_AT_ONCE,
    SCALES,
    UNITS_A_STEP,
    Calibration,
    Transform,
    quantise,
    unit_of,
)
from labelstore.errors import InputError
from labelstore.fidelity import gift_fidelity

STEPS = 14  # of the bisection: the step is found to one part in 500
SMALLEST_STEP = 2.0**-7  # times the root mean square of what predictions leave
# Times the largest logit: labels up to four times as large can be coded.
FINEST_STEP = 4 * 2 * UNITS_A_STEP / MAX_UNITS
OVERSAMPLING = 32
POWER_ITERATIONS = 2
CELL_ROUNDS = 2
MAX_INSIDE = 4096  # fitted rows that gains, cells and centroids are taken from, and means that the basis must span
PLAIN_CELLS = np.array([[0.5, 0.0]], np.float32)

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class Sample:
    """Labels of some crops.

    Attributes:
        logits: float32 ``[n, C]``.
        pairs: which two of the sampled images each crop shows ``[n]``.
    """

    logits: Logits
    pairs: Pairs


class _Rotated(NamedTuple):
    """A sample in the basis.

    Attributes:
        values: float32 ``[n, r]``.
        scales: index into ``SCALES``, uint8 ``[n]``.
        pairs: which two of the sampled images each crop shows ``[n]``.
    """

    values: Float32Array
    scales: npt.NDArray[np.uint8]
    pairs: Pairs

    def rest(self, calibration: Calibration) -> Float64Array:
        """What predictions leave, in steps ``[n, r]``."""
        rest: Float64Array = np.subtract(self.values, calibration.prediction(self.pairs), dtype=np.float64)
        rest /= calibration.step * SCALES[self.scales, None].astype(np.float64)
        return rest


@dataclass(frozen=True, eq=False, slots=True)
class Fit:
    """A calibration that has no means yet, and what codes means for it.

    Attributes:
        calibration: without means of images.
        level: mean of the mean labels, float32 ``[C]``.
        gains: of each component of a mean, float32 ``[r]``: what a mean of few crops is worth as a prediction.
    """

    calibration: Calibration
    level: Float32Array
    gains: Float32Array

    def code(self, means: Float32Array) -> npt.NDArray[np.int16]:
        """Codes of mean labels ``[n, C]``, int16 ``[n, r]``."""
        with threadpool_limits(1):
            return _code(_rotate(means, self.level, self.calibration.synthesis), self.gains, self.calibration)

    def with_means(self, codes: npt.NDArray[np.int16]) -> Calibration:
        """The calibration with the codes of the means of all images, int16 ``[N, r]``."""
        return replace(self.calibration, means=codes)


def fit(
    encoding: Transform, means: Float32Array, fitted: Sample, search: Sample, targets: npt.NDArray[np.integer]
) -> Fit:
    """Fit a transform.

    Args:
        encoding: says which fidelity, or which step.
        means: mean labels of the sampled images, float32 ``[M, C]``.
        fitted: labels that center, basis, gains and centroids are fitted to; not those that made the means.
        search: other labels, that the step is chosen by.
        targets: label columns of the sampled images' classes ``[M]``.

    Raises:
        InputError: when no step reaches the fidelity, or the step is too fine for the labels.
    """
    with threadpool_limits(1):
        return _Fitter(encoding, means, fitted, search, targets).fit()


class _Fitter:
    def __init__(
        self,
        encoding: Transform,
        means: Float32Array,
        fitted: Sample,
        search: Sample,
        targets: npt.NDArray[np.integer],
    ) -> None:
        self._encoding, self._search, self._targets = encoding, search, targets
        lengths = np.sqrt(_squares(fitted.logits))
        self._reference = max(float(np.median(lengths)), 1e-6)
        self._largest = max(float(np.abs(part).max()) for part in (*_split(fitted.logits), *_split(search.logits)))
        self._level = means.mean(axis=0, dtype=np.float64).astype(np.float32)
        # What the prediction of a mean's own kind leaves: as many bytes as the logits, which are kept beside it.
        rest = np.empty_like(fitted.logits)
        for part in _parts(len(rest)):
            rest[part] = fitted.logits[part] - _mix(means, fitted.pairs.take(part))
        offset = rest.mean(axis=0, dtype=np.float64).astype(np.float32)
        self._center = offset + self._level
        spread = np.clip(lengths / self._reference, 0.5, 2).astype(np.float32)[:, None]
        for part in _parts(len(rest)):
            rest[part] -= offset
            rest[part] /= spread[part]
        self._rms = max(float(np.sqrt(_squares(rest).mean() / rest.shape[1])), 1e-12)
        some = means[:: -(-len(means) // MAX_INSIDE)] - self._level
        self._basis = _klt(rest, encoding.width, some)
        del rest
        bare = self._bare(1.0)
        self._means = _rotate(means, self._level, bare.synthesis)
        every = slice(None, None, -(-len(fitted.logits) // MAX_INSIDE))
        self._inside, self._outside = (
            _Rotated(
                _rotate(logits, self._center, bare.synthesis),
                np.concatenate([bare.scales(part) for part in _split(logits)]),
                pairs,
            )
            for logits, pairs in (
                (fitted.logits[every], fitted.pairs.take(every)),
                (search.logits, search.pairs),
            )
        )
        ours, theirs = self._inside.values, _mix(self._means, self._inside.pairs)
        cross, power = (np.einsum("nr,nr->r", theirs, other, dtype=np.float64) for other in (ours, theirs))
        self._gains = np.clip(cross / np.maximum(power, 1e-30), 0, 1.5).astype(np.float32)

    def fit(self) -> Fit:
        finest, step, fidelity = FINEST_STEP * self._largest, self._encoding.step, self._encoding.fidelity
        if step is not None:
            if step < finest:
                raise InputError(
                    f"label encoding transform: expected a step of at least {finest:.3g} logits, for labels up to "
                    f"{self._largest:.4g}, found {step}; give a larger --step, or use --encoding float16"
                )
            return self._at(step)
        assert fidelity is not None  # noqa: S101  a transform has one of the two
        low, high = max(SMALLEST_STEP * self._rms, finest), 64 * self._reference / np.sqrt(len(self._basis))
        best = self._at(low)
        if best.calibration.fidelity < fidelity:
            raise InputError(
                f"label encoding transform: the finest step gives a fidelity of {best.calibration.fidelity:.4f} on "
                f"calibration crops, asked for {fidelity}; ask for less, or use --encoding int8"
            )
        for _ in range(STEPS):
            middle = self._at(float(np.sqrt(low * high)))
            if middle.calibration.fidelity >= fidelity:
                best, low = middle, middle.calibration.step
            else:
                high = middle.calibration.step
        return best

    def _bare(self, step: float) -> Calibration:
        """The calibration with this step and the whole basis, without means and cells."""
        center = np.rint(self._center.astype(np.float64) / unit_of(step))
        return Calibration(
            step=step,
            reference=self._reference,
            centroids=(0.0, 0.0),
            center=np.clip(center, -MAX_UNITS, MAX_UNITS).astype(np.int32),
            basis=self._basis,
            cells=PLAIN_CELLS,
            means=np.zeros((0, len(self._basis)), np.int16),
            fidelity=0.0,
        )

    def _at(self, step: float) -> Fit:
        """The fit with this step; its fidelity is that of the search rows."""
        bare = self._bare(step)
        bare = replace(bare, means=_code(self._means, self._gains, bare))
        inside, outside = self._inside.rest(bare), self._outside.rest(bare)
        cells = PLAIN_CELLS
        for _ in range(CELL_ROUNDS):
            cells = _cells(quantise(inside, cells))
        codes = np.abs(quantise(inside, cells))
        found = np.clip(quantise(outside, cells), -MAX_CODE, MAX_CODE)
        components = max(-(-max(_used(codes), _used(found)) // GROUP) * GROUP, GROUP)
        calibration = replace(
            bare,
            centroids=(_shift(inside, codes, 1, 1), _shift(inside, codes, 2, MAX_CODE)),
            basis=self._basis[:components],
            cells=cells[:components],
            means=bare.means[:, :components],
        )
        labels: Codes = {"labels": found[:, :components].astype(np.int16), "scales": self._outside.scales}
        pairs = self._search.pairs
        decoded = self._encoding.calibrated(calibration).decode(labels, pairs)
        cosines = gift_fidelity(
            self._search.logits, decoded, self._targets[pairs.images], self._targets[pairs.partners], pairs.weights
        )
        calibration = replace(calibration, means=calibration.means[:0], fidelity=round(float(cosines.mean()), 9))
        return Fit(calibration, self._level, self._gains[:components])


def _parts(count: int) -> Iterator[slice]:
    return (slice(start, start + ROWS_AT_ONCE) for start in range(0, count, ROWS_AT_ONCE))


def _split(rows: Float32Array) -> Iterator[Float32Array]:
    return (rows[part] for part in _parts(len(rows)))


def _squares(rows: Float32Array) -> Float64Array:
    """Square of the length of each row ``[n]``."""
    return np.concatenate([np.square(part, dtype=np.float64).sum(axis=1) for part in _split(rows)])


def _mix(means: Float32Array, pairs: Pairs) -> Float32Array:
    """Weighted means of the pairs, float32 ``[n, C]``."""
    weights = pairs.weights[:, None].astype(np.float32)
    mixed: Float32Array = weights * means[pairs.images] + (1 - weights) * means[pairs.partners]
    return mixed


def _rotate(rows: Float32Array, offset: Float32Array, synthesis: Float32Array) -> Float32Array:
    """Rows less ``offset`` in the basis, float32 ``[n, r]``."""
    rotated = np.empty((len(rows), len(synthesis)), np.float32)
    for part in _parts(len(rows)):
        np.matmul(rows[part] - offset, synthesis.T, out=rotated[part])
    return rotated


def _code(rotated: Float32Array, gains: Float32Array, calibration: Calibration) -> npt.NDArray[np.int16]:
    """Codes of means in the basis, int16 ``[n, r]``."""
    codes = np.empty(rotated.shape, np.int16)
    for part in _parts(len(rotated)):
        codes[part] = np.clip(np.rint(rotated[part] * (gains / calibration.mean_step)), -MAX_CODE, MAX_CODE)
    return codes


def _klt(rest: Float32Array, width: int, means: Float32Array) -> npt.NDArray[np.int16]:
    """Components of what predictions leave, by falling variance, in 1 / 2**15: int16 ``[at most width, C]``.

    A multiple of 16; rows beyond C are zero. Of many classes, only the leading ones are made, by randomised subspace
    iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4); they must span the means too.
    """
    columns = rest.shape[1]
    if columns <= MAX_EXACT:
        covariance = np.zeros((columns, columns))
        for part in _split(rest):
            exact = part.astype(np.float64)
            covariance += exact.T @ exact
        rows = np.linalg.eigh(covariance)[1][:, ::-1].T
    else:
        rows = _leading(rest, means, width)
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    peaks = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    basis = np.zeros((width, columns), np.int16)
    basis[: len(rows)] = np.clip(np.rint(rows * np.sign(peaks) / BASIS_UNIT), -MAX_CODE, MAX_CODE)
    return basis


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


def _cells(codes: Float64Array) -> Float32Array:
    """Cells that spend no bit which saves less distortion than a smaller step would, float32 ``[r, 2]``.

    A code costs bits by how rare it was in a quantisation before, ``codes``; at high rate a bit is worth 2 ln 2 / 12
    squared steps (rate-distortion optimised quantisation: Sullivan 1996).
    """
    codes = np.abs(codes)
    zeros, ones, twos = ((codes == code).sum(axis=0) / 2 ** (code > 0) + 0.25 for code in range(3))
    worth = np.log(2) / 6
    first = 0.5 + worth / 2 * (1 + np.log2(zeros / ones))
    shift = worth / 2 * np.log2(ones / twos)
    return np.stack([np.clip(first, 0.5, 1.2), np.clip(shift, 0, 0.4)], axis=1).astype(np.float32)


def _used(codes: Float64Array) -> int:
    """Components up to the last that leaves zero."""
    used = np.flatnonzero(codes.any(axis=0))
    return int(used[-1]) + 1 if len(used) else 0


def _shift(rest: Float64Array, codes: Float64Array, low: int, high: int) -> float:
    """How far values whose codes are ``low`` to ``high`` lie outside their codes, on average, in steps."""
    chosen = (codes >= low) & (codes <= high)
    return round(float((np.abs(rest[chosen]) - codes[chosen]).mean()), 9) if chosen.any() else 0.0
