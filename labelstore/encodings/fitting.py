"""Fit a transform to calibration crops: center, KLT apart from offsets, gains of the means, centroids and the step.

All of it runs on one BLAS thread, so that the same crops give the same calibration however many there are.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from threadpoolctl import threadpool_limits

from labelstore.encodings.bands import bands_of
from labelstore.encodings.base import Bands, Codes, Logits, Pairs
from labelstore.encodings.components import (
    BASIS_UNIT,
    MAX_CODE,
    MAX_UNITS,
    SCALES,
    UNITS_A_STEP,
    Calibration,
    quantise,
    scales_of,
    unit_of,
)
from labelstore.encodings.fidelity import gift_fidelity, quality, rounded_kl
from labelstore.encodings.first_choice import keep_first_choice
from labelstore.encodings.klt import SMALLEST, apart, make_basis, parts, split
from labelstore.encodings.transform import GROUP, Transform
from labelstore.errors import InputError

STEPS = 14  # of the bisection: the step is found to one part in 500
SMALLEST_STEP = 2.0**-7  # times the root mean square of what predictions leave
ROOM = 4  # labels so many times as far from the center, or from their predictions, can be coded too
MIN_CONSTANT = 16  # labels: with fewer, a column may be constant by chance
INDISTINCT = 2.0**-20  # of the largest logit: what differs by less is its rounding
CONSTANT = 1e-4  # what rounding adds to the mean of a constant column, at most, as a part of it
CELL_ROUNDS = 2
MAX_INSIDE = 4096  # fitted rows that gains, cells and centroids are taken from, and means that the basis must span
PLAIN_CELLS = np.array([[0.5, 0.0]], np.float32)

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.integer[Any]]


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
        """The residuals of predictions, in steps ``[n, r]``."""
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
            rotated = _rotate(means, self.level, self.calibration.synthesis, self.calibration.kept)
            return _code(rotated, self.gains, self.calibration)

    def with_means(self, codes: npt.NDArray[np.int16]) -> Calibration:
        """The calibration with the codes of the means of all images, int16 ``[N, r]``."""
        return replace(self.calibration, means=codes)


class _Tried(NamedTuple):
    """A fit with some step, and the fidelity of the search rows apart from offsets and constant columns."""

    fit: Fit
    apart: float


def fit(
    encoding: Transform, means: Float32Array, fitted: Sample, search: Sample, targets: npt.NDArray[np.integer]
) -> Fit:
    """Fit a transform.

    Args:
        encoding: with the fidelity, or the step, to reach.
        means: mean labels of the sampled images, float32 ``[M, C]``.
        fitted: labels that center, basis, gains and centroids are fitted to; not those that made the means.
        search: other labels, that the step is chosen by.
        targets: label columns of the sampled images' classes ``[M]``.

    Where no step keeps the fidelity and the bands that go with it, the finest is taken; the calibration records its
    figures.

    Raises:
        InputError: when there are no labels to fit to or to search by, or the step is too fine for them.
    """
    for what, sample in (("fit", fitted), ("choose the step by", search)):
        if not len(sample.logits):
            raise InputError(f"label encoding transform: expected labels to {what}, found none; use --encoding int8")
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
        self._kept = kept = ~_constant_columns(means, fitted.logits, search.logits)
        self._level = means.mean(axis=0, dtype=np.float64).astype(np.float32)
        # What the prediction of a mean's own kind leaves: as many bytes as the logits, which are kept beside it.
        rest = np.empty_like(fitted.logits)
        for part in parts(len(rest)):
            rest[part] = fitted.logits[part] - _mix(means, fitted.pairs.take(part))
        shift = rest.mean(axis=0, dtype=np.float64)
        self._center = np.where(kept, shift + self._level, fitted.logits[0])
        squares = _squares(fitted.logits, self._center, kept)
        self._reference = max(float(np.sqrt(np.median(squares))), SMALLEST)
        spread = np.clip(np.sqrt(squares) / self._reference, 0.5, 2)[:, None]
        for part in parts(len(rest)):
            rest[part] = apart(rest[part] - shift, kept)[1] / spread[part]
        power = sum(float(np.square(part, dtype=np.float64).sum()) for part in split(rest))
        self._rms = max(math.sqrt(power / len(rest) / max(int(kept.sum()), 1)), SMALLEST)
        some = apart(means[:: -(-len(means) // MAX_INSIDE)] - self._level, kept)[1]
        self._basis = make_basis(rest, encoding.width, some.astype(np.float32), kept)
        del rest
        synthesis = self._bare(1.0).synthesis
        self._means = _rotate(means, self._level, synthesis, kept)
        every = slice(None, None, -(-len(fitted.logits) // MAX_INSIDE))
        self._inside, self._outside = (
            _Rotated(
                _rotate(logits, self._center, synthesis, kept),
                scales_of(_squares(logits, self._center, kept), self._reference),
                pairs,
            )
            for logits, pairs in (
                (fitted.logits[every], fitted.pairs.take(every)),
                (search.logits, search.pairs),
            )
        )
        ours, theirs = self._inside.values, _mix(self._means, self._inside.pairs)
        cross, power = (np.einsum("nr,nr->r", theirs, other, dtype=np.float64) for other in (ours, theirs))
        self._gains = np.clip(cross / np.maximum(power, SMALLEST**2), 0, 1.5).astype(np.float32)
        self._finest = ROOM * max(self._reach() / MAX_CODE, 2 * UNITS_A_STEP / MAX_UNITS * self._largest(fitted))

    def fit(self) -> Fit:
        step, fidelity = self._encoding.step, self._encoding.fidelity
        if step is not None:
            if step < self._finest:
                raise InputError(
                    f"label encoding transform: expected a step of at least {self._finest:.3g} logits, for labels that "
                    f"lie so far from their mean, found {step}; give a larger --step, or use --encoding float16"
                )
            return self._at(step).fit
        assert fidelity is not None  # noqa: S101  a transform has one of the two
        bands = bands_of(fidelity)
        low = max(SMALLEST_STEP * self._rms, self._finest)
        high = max(64 * self._reference / np.sqrt(len(self._basis)), low)
        best = self._at(low)
        if not self._keeps(best, bands):
            return best.fit
        for _ in range(STEPS):
            middle = self._at(float(np.sqrt(low * high)))
            if self._keeps(middle, bands):
                best, low = middle, middle.fit.calibration.step
            else:
                high = middle.fit.calibration.step
        return best.fit

    def _keeps(self, tried: _Tried, bands: Bands) -> bool:
        """Whether the search rows keep the bands, and the fidelity also apart from offsets and constant columns."""
        reached = tried.fit.calibration
        measured = (min(reached.fidelity, tried.apart), reached.kl_1 or 0.0, reached.kl_20 or 0.0, reached.top1 or 0.0)
        return bands.kept(*measured, len(self._search.logits))

    def _apart_fidelity(self, decoded: Float32Array, own: IntArray, other: IntArray) -> float:
        """Mean fidelity of decoded search rows apart from offsets and constant columns, which softmax ignores."""
        exact, weights = self._search.logits, self._search.pairs.weights
        total = 0.0
        for part in parts(len(exact)):
            ours, theirs = (apart(logits[part], self._kept)[1] for logits in (exact, decoded))
            cosines = gift_fidelity(ours, theirs, own[part], other[part], weights[part])
            # Rows that float32 cannot distinguish from a constant one count as exact.
            largest = np.abs(np.where(self._kept, exact[part], 0)).max(axis=1)
            cosines[np.abs(ours).max(axis=1) <= INDISTINCT * largest] = 1
            total += float(cosines.sum())
        return total / len(exact)

    def _largest(self, fitted: Sample) -> float:
        """The largest distance of a logit from the center, without its label's offset."""
        each = (*split(fitted.logits), *split(self._search.logits))
        return max(float(np.abs(apart(part - self._center, self._kept)[1]).max()) for part in each)

    def _reach(self) -> float:
        """The largest distance of a component from its prediction, in logits of a label of length ``reference``."""
        rests = (
            np.abs(sample.values - _mix(self._means * self._gains, sample.pairs)).max(axis=1) / SCALES[sample.scales]
            for sample in (self._inside, self._outside)
        )
        return max(float(rest.max()) for rest in rests)

    def _bare(self, step: float) -> Calibration:
        """The calibration with this step and the whole basis, without means and cells."""
        unit = unit_of(step)
        return Calibration(
            step=step,
            reference=self._reference,
            centroids=(0.0, 0.0),
            center=np.where(self._kept, np.rint(self._center / unit) * unit, self._center),
            basis=self._basis,
            cells=PLAIN_CELLS,
            means=np.zeros((0, len(self._basis)), np.int16),
            mean_steps=self._encoding.mean_steps,
            fidelity=0.0,
        )

    def _at(self, step: float) -> _Tried:
        """The fit with this step; its quality is that of the search rows."""
        bare = self._bare(step)
        bare = replace(bare, means=_code(self._means, self._gains, bare))
        inside, outside = self._inside.rest(bare), self._outside.rest(bare)
        cells = PLAIN_CELLS
        for _ in range(CELL_ROUNDS):
            cells = _cells(quantise(inside, cells))
        codes = np.abs(quantise(inside, cells))
        found = np.clip(quantise(outside, cells), -MAX_CODE, MAX_CODE)
        # A component that no label corrects may still be predicted, since mean labels may vary where crops of an image
        # do not. It is kept if its means are larger than one of their steps, so that finer means keep more of them.
        predicted = np.sqrt(np.square(bare.means, dtype=np.float64).mean(axis=0)) > 1
        components = max(-(-max(map(_used, (codes, found, predicted[None]))) // GROUP) * GROUP, GROUP)
        calibration = replace(
            bare,
            centroids=(_shift(inside, codes, 1, 1), _shift(inside, codes, 2, MAX_CODE)),
            basis=self._basis[:components],
            cells=cells[:components],
            means=bare.means[:, :components],
        )
        pairs, found = self._search.pairs, found[:, :components]
        if self._encoding.keep_top1:
            rest = outside[:, :components]
            keep_first_choice(calibration, self._search.logits, pairs, rest, self._outside.scales, found)
        labels: Codes = {"labels": found.astype(np.int16), "scales": self._outside.scales}
        decoded = self._encoding.calibrated(calibration).decode(labels, pairs)
        reached = quality(
            self._search.logits, decoded, self._targets[pairs.images], self._targets[pairs.partners], pairs.weights
        )
        calibration = replace(
            calibration,
            means=calibration.means[:0],
            fidelity=round(float(reached.fidelity.mean()), 9),
            kl_1=rounded_kl(reached.kl_1),
            kl_20=rounded_kl(reached.kl_20),
            top1=round(float(reached.top1.mean()), 9),
        )
        apart_fidelity = self._apart_fidelity(decoded, self._targets[pairs.images], self._targets[pairs.partners])
        return _Tried(Fit(calibration, self._level, self._gains[:components]), apart_fidelity)


def _squares(rows: Float32Array, center: Float64Array, kept: npt.NDArray[np.bool_]) -> Float64Array:
    """Square of the length of each row, less the center and apart from its offset, ``[n]``."""
    return np.concatenate([np.square(apart(part - center, kept)[1]).sum(axis=1) for part in split(rows)])


def _constant_columns(means: Float32Array, *labels: Float32Array) -> npt.NDArray[np.bool_]:
    """The columns that are the same in all labels ``[n, C]``, and so in all means, bool ``[C]``."""
    value = labels[0][0]
    constant: npt.NDArray[np.bool_] = np.abs(means - value).max(axis=0) <= CONSTANT * np.abs(value)
    for rows in labels:
        constant &= (rows.min(axis=0) == value) & (rows.max(axis=0) == value)
    enough = len(means) + sum(map(len, labels)) >= MIN_CONSTANT
    return constant if enough else np.zeros_like(constant)


def _mix(means: Float32Array, pairs: Pairs) -> Float32Array:
    """Weighted means of the pairs, float32 ``[n, C]``."""
    weights = pairs.weights[:, None].astype(np.float32)
    mixed: Float32Array = weights * means[pairs.images] + (1 - weights) * means[pairs.partners]
    return mixed


def _rotate(
    rows: Float32Array,
    center: npt.NDArray[np.floating],
    synthesis: Float32Array,
    kept: npt.NDArray[np.bool_],
) -> Float32Array:
    """Rows less ``center`` in the basis, float32 ``[n, r]``; component 0 is the offset."""
    rotated = np.empty((len(rows), len(synthesis)), np.float32)
    length = max(float(synthesis[0].max()), BASIS_UNIT)
    for part in parts(len(rows)):
        offset, shape = apart(rows[part] - center, kept)
        np.matmul(shape.astype(np.float32), synthesis.T, out=rotated[part])
        rotated[part, 0] = offset / length
    return rotated


def _code(rotated: Float32Array, gains: Float32Array, calibration: Calibration) -> npt.NDArray[np.int16]:
    """Codes of means in the basis, int16 ``[n, r]``."""
    codes = np.empty(rotated.shape, np.int16)
    for part in parts(len(rotated)):
        codes[part] = np.clip(np.rint(rotated[part] * (gains / calibration.mean_step)), -MAX_CODE, MAX_CODE)
    return codes


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


def _used(codes: npt.NDArray[Any]) -> int:
    """Components up to the last that leaves zero."""
    used = np.flatnonzero(codes.any(axis=0))
    return int(used[-1]) + 1 if len(used) else 0


def _shift(rest: Float64Array, codes: Float64Array, low: int, high: int) -> float:
    """The mean distance of values with codes ``low`` to ``high`` from their codes, in steps."""
    chosen = (codes >= low) & (codes <= high)
    return round(float((np.abs(rest[chosen]) - codes[chosen]).mean()), 9) if chosen.any() else 0.0
