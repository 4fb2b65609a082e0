"""Fit a transform to calibration crops: center, KLT, gains of the means, centroids and the step.

All of it runs on one BLAS thread, so that the same crops give the same calibration however many there are.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from labelstore.encodings.base import Logits, Pairs
from labelstore.encodings.transform import (
    BASIS_UNIT,
    GROUP,
    MAX_CODE,
    MAX_EXACT,
    MAX_UNITS,
    Calibration,
    Transform,
    quantise,
    unit_of,
)
from labelstore.errors import InputError
from labelstore.fidelity import gift_fidelity

STEPS = 14  # of the bisection: the step is found to one part in 500
SMALLEST_STEP = 2.0**-7  # times the root mean square of a component
OVERSAMPLING = 32
POWER_ITERATIONS = 2
CELL_ROUNDS = 2
MAX_INSIDE = 4096  # fitted rows that cells and centroids are taken from
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


@dataclass(frozen=True, eq=False, slots=True)
class Fit:
    """A calibration that has no means yet, and what codes means for it.

    Attributes:
        calibration: without means of images.
        level: mean of the mean labels, float64 ``[C]``.
        gains: of each component of a mean, float64 ``[r]``: what a mean of few crops is worth as a prediction.
    """

    calibration: Calibration
    level: Float64Array
    gains: Float64Array

    def code(self, means: Float32Array) -> npt.NDArray[np.int16]:
        """Codes of mean labels ``[n, C]``, int16 ``[n, r]``."""
        calibration = self.calibration
        values = (means - self.level) @ (calibration.projection * BASIS_UNIT) * self.gains / calibration.mean_step
        return np.clip(np.rint(values), -MAX_CODE, MAX_CODE).astype(np.int16)

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
        InputError: when no step reaches the fidelity.
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
        self._encoding, self._means, self._search = encoding, means, search
        self._targets = targets
        lengths = np.sqrt(np.einsum("nc,nc->n", fitted.logits, fitted.logits, dtype=np.float64))
        self._reference = max(float(np.median(lengths)), 1e-6)
        self._level = means.mean(axis=0, dtype=np.float64)
        predicted = _mix(means - self._level.astype(np.float32), fitted.pairs)
        self._center = (fitted.logits.astype(np.float64) - predicted).mean(axis=0)
        centred = fitted.logits - self._center.astype(np.float32)
        spread = np.clip(lengths / self._reference, 0.5, 2).astype(np.float32)[:, None]
        rest = (centred - predicted) / spread
        every = slice(None, None, -(-len(fitted.logits) // MAX_INSIDE))
        self._inside = Sample(fitted.logits[every], fitted.pairs.take(every))
        self._basis = _klt(rest, encoding.width, means - self._level.astype(np.float32))
        self._rms = max(float(np.sqrt(np.square(rest, dtype=np.float64).mean())), 1e-12)
        projection = self._basis.T.astype(np.float64) * BASIS_UNIT
        ours, theirs = centred @ projection, predicted @ projection
        power = np.square(theirs).sum(axis=0)
        self._gains = np.clip((ours * theirs).sum(axis=0) / np.maximum(power, 1e-30), 0, 1.5)

    def fit(self) -> Fit:
        if self._encoding.step is not None:
            return self._at(self._encoding.step)
        assert self._encoding.fidelity is not None  # noqa: S101  a transform has one of the two
        low, high = SMALLEST_STEP * self._rms, 64 * self._reference / np.sqrt(len(self._basis))
        best = self._at(low)
        if best.calibration.fidelity < self._encoding.fidelity:
            raise InputError(
                f"label encoding transform: the finest step gives a fidelity of {best.calibration.fidelity:.4f} on "
                f"calibration crops, asked for {self._encoding.fidelity}; ask for less, or use --encoding int8"
            )
        for _ in range(STEPS):
            middle = self._at(float(np.sqrt(low * high)))
            if middle.calibration.fidelity >= self._encoding.fidelity:
                best, low = middle, middle.calibration.step
            else:
                high = middle.calibration.step
        return best

    def _at(self, step: float) -> Fit:
        """The fit with this step; its fidelity is that of the search rows."""
        unit = unit_of(step)
        calibration = Calibration(
            step=step,
            reference=self._reference,
            centroids=(0.0, 0.0),
            center=np.clip(np.rint(self._center / unit), -MAX_UNITS, MAX_UNITS).astype(np.int32),
            basis=self._basis,
            cells=PLAIN_CELLS,
            means=np.zeros((0, len(self._basis)), np.int16),
            fidelity=0.0,
        )
        fit = Fit(calibration, self._level, self._gains)
        calibration = fit.with_means(fit.code(self._means))
        inside, search = (_rest(calibration, sample) for sample in (self._inside, self._search))
        cells = PLAIN_CELLS
        for _ in range(CELL_ROUNDS):
            cells = _cells(quantise(inside, cells))
        codes = np.abs(quantise(inside, cells))
        used = max(_used(codes), _used(quantise(search, cells)))
        components = max(-(-used // GROUP) * GROUP, GROUP)
        calibration = replace(
            calibration,
            centroids=(_shift(inside, codes, 1, 1), _shift(inside, codes, 2, MAX_CODE)),
            basis=self._basis[:components],
            cells=cells[:components],
            means=calibration.means[:, :components],
        )
        ready = self._encoding.calibrated(calibration)
        pairs = self._search.pairs
        decoded = ready.decode(ready.encode(self._search.logits, pairs), pairs)
        cosines = gift_fidelity(
            self._search.logits, decoded, self._targets[pairs.images], self._targets[pairs.partners], pairs.weights
        )
        calibration = replace(calibration, means=calibration.means[:0], fidelity=round(float(cosines.mean()), 9))
        return Fit(calibration, self._level, self._gains[:components])


def _mix(means: Float32Array, pairs: Pairs) -> Float32Array:
    """Weighted means of the pairs, float32 ``[n, C]``."""
    weights = pairs.weights[:, None].astype(np.float32)
    mixed: Float32Array = weights * means[pairs.images] + (1 - weights) * means[pairs.partners]
    return mixed


def _klt(rest: Float32Array, width: int, means: Float32Array) -> npt.NDArray[np.int16]:
    """Components of what predictions leave, by falling variance, in 1 / 2**15: int16 ``[at most width, C]``.

    A multiple of 16; rows beyond C are zero. Of many classes, only the leading ones are made, by randomised subspace
    iteration (Halko, Martinsson and Tropp 2011, algorithm 4.4); they must span the means too.
    """
    columns = rest.shape[1]
    if columns <= MAX_EXACT:
        covariance = np.zeros((columns, columns))
        for start in range(0, len(rest), MAX_EXACT):
            part = rest[start : start + MAX_EXACT].astype(np.float64)
            covariance += part.T @ part
        rows = np.linalg.eigh(covariance)[1][:, ::-1].T
    else:
        rows = _leading(np.concatenate([rest, means]), rest, width)
    # An eigenvector's sign is arbitrary: its largest entry is made positive.
    peaks = np.take_along_axis(rows, np.abs(rows).argmax(axis=1)[:, None], axis=1)
    basis = np.zeros((width, columns), np.int16)
    basis[: len(rows)] = np.clip(np.rint(rows * np.sign(peaks) / BASIS_UNIT), -MAX_CODE, MAX_CODE)
    return basis


def _leading(span: Float32Array, rest: Float32Array, width: int) -> Float32Array:
    """About ``width`` orthonormal rows that nearly span ``span``, ordered by the variance of ``rest``."""
    generator = np.random.Generator(np.random.Philox(0))
    draws = generator.standard_normal((len(span), min(width + OVERSAMPLING, *span.shape)), np.float32)
    found = np.linalg.qr(span.T @ draws)[0]
    for _ in range(POWER_ITERATIONS):
        found = np.linalg.qr(span.T @ np.linalg.qr(span @ found)[0])[0]
    inside = span @ found
    found = found @ np.linalg.eigh(inside.T @ inside)[1][:, ::-1][:, :width]
    inside = (rest @ found).astype(np.float64)
    rows: Float32Array = (found @ np.linalg.eigh(inside.T @ inside)[1][:, ::-1].astype(np.float32)).T
    return rows


def _rest(calibration: Calibration, sample: Sample) -> Float64Array:
    """What predictions leave of a sample, in steps ``[n, r]``."""
    return calibration.rest(sample.logits, sample.pairs, calibration.scales(sample.logits))


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
