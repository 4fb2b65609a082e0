"""The calibration of ``transform``: from labels to the coefficients that are coded, and back.

`labelstore.encodings.transform` describes the code; `labelstore.encodings.fitting` makes calibrations.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from labelstore.encodings.base import Logits, Pairs
from labelstore.errors import InputError

BASIS_UNIT = 2.0**-15
UNITS_A_STEP = 64
MAX_UNITS = 2**23  # of a logit: its product with a component stays below 2**53 for 2**20 classes
MAX_OFFSET_UNITS = 2**36  # of a logit with its offset: the sum of 2**16 of them stays below 2**53
MAX_LOGIT = 1e30
MEAN_STEPS = 2  # steps of the means in one of the labels, unless a store has its own number
MAX_SCALE = 4  # quarter octaves: the step is at most doubled or halved
SCALES = np.array([2 ** (k / 4) for k in range(-MAX_SCALE, MAX_SCALE + 1)], np.float32)
# Squares of the lengths, in references, at which one scale ends and the next begins: midway between octaves' quarters.
BOUNDS = np.array([2 ** ((k + 0.5) / 2) for k in range(-MAX_SCALE, MAX_SCALE)])
MAX_CODE = 32767

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]
Int16Array = npt.NDArray[np.int16]
F = TypeVar("F", np.float32, np.float64)


class UncodableError(InputError):
    """A label that the calibration cannot code.

    Args:
        row: which of the labels.
        why: what was expected and found, after its name.
    """

    def __init__(self, row: int, why: str) -> None:
        super().__init__(f"label {row}: {why}")
        self.row, self.why = row, why


@dataclass(frozen=True, eq=False, kw_only=True)
class Calibration:
    """A calibration: fitted once for a store, and published before its first label.

    Attributes:
        step: of the codes of a label of length ``reference``, in logits.
        reference: the length of a label, less center and offset, whose scale is 1.
        centroids: how far the values of a cell lie outside its middle, on average, in steps: of codes 1, and above.
        center: what is taken off every label, in logits, float64 ``[C]``: whole units, or the value of a column that
            was constant.
        basis: components, in 1 / 2**15, int16 ``[r, C]``; a multiple of 16 of them.
        cells: where codes begin, in steps, float32 ``[r, 2]``: the smallest magnitude that becomes 1, and by how much
            cells above are moved outwards.
        means: codes of the mean labels of all images, int16 ``[N, r]``, or int8 where that holds them.
        mean_steps: how many of their steps are one step of the labels.
        fidelity: mean fidelity of the labels that the step was chosen by.
        kl_1: their mean KL divergence at temperature 1; None if it was not measured, in format 1.
        kl_20: the same at temperature 20.
        top1: their top-1 agreement.
        offset_apart: whether component 0 is the offset; not so in calibrations that come from format 1.
    """

    step: float
    reference: float
    centroids: tuple[float, float]
    center: Float64Array
    basis: Int16Array
    cells: Float32Array
    means: Int16Array | npt.NDArray[np.int8]
    fidelity: float
    kl_1: float | None = None
    kl_20: float | None = None
    top1: float | None = None
    offset_apart: bool = True
    mean_steps: int = MEAN_STEPS

    @cached_property
    def kept(self) -> npt.NDArray[np.bool_]:
        """The columns that components combine, bool ``[C]``; the others were constant in the calibration."""
        every = np.ones(self.basis.shape[1], np.bool_)
        return self.basis[0] != 0 if self.offset_apart else every

    @cached_property
    def center_units(self) -> Float64Array:
        """The center in units, float64 ``[C]``; whole numbers in the columns that are kept."""
        return self.center / self.unit

    @property
    def offset_length(self) -> float:
        """Component 0 of a label whose logits are all one unit above the center."""
        return self.unit / BASIS_UNIT / max(float(self.basis[0].max()), 1.0)

    @cached_property
    def projection(self) -> Float64Array:
        """The basis that labels are coded with, in 1 / 2**15, float64 ``[C, r]``."""
        return np.ascontiguousarray(self.basis.T, np.float64)

    @cached_property
    def synthesis(self) -> Float32Array:
        """The basis that labels are decoded with, float32 ``[r, C]``."""
        table: Float32Array = self.basis.astype(np.float32)
        table *= np.float32(BASIS_UNIT)
        return table

    @cached_property
    def points(self) -> Float32Array:
        """The values of codes, in logits, float32 ``[65536]``: at the code as uint16."""
        codes = np.arange(2**16).astype(np.uint16).view(np.int16).astype(np.float64)
        shift = np.where(np.abs(codes) > 1, self.centroids[1], np.where(codes == 0, 0.0, self.centroids[0]))
        points: Float32Array = (self.step * (codes + np.sign(codes) * shift)).astype(np.float32)
        return points

    @cached_property
    def center32(self) -> Float32Array:
        """The center that labels are decoded with, float32 ``[C]``."""
        return self.center.astype(np.float32)

    @property
    def unit(self) -> float:
        """The unit of logits and center: a power of two near 1/64 of the step."""
        return unit_of(self.step)

    @property
    def mean_step(self) -> float:
        """The step of the codes of the means."""
        return self.step / self.mean_steps

    @property
    def components(self) -> int:
        """Number r of components."""
        return len(self.basis)

    def analysed(self, logits: Logits) -> tuple[Float64Array, npt.NDArray[np.uint8]]:
        """Logits ``[n, C]`` in the basis, float64 ``[n, r]``, and their index into ``SCALES``, uint8 ``[n]``.

        Raises:
            UncodableError: when a label has another value in a column that was constant, or lies too far from the
                center.
        """
        units = logits.astype(np.float64)
        units /= self.unit
        np.rint(units, out=units)
        if not self.offset_apart:
            squares = np.square(logits, dtype=np.float64).sum(axis=1)
            return self._rotated(units - self.center_units), scales_of(squares, self.reference)
        self._require_constant(logits)
        units -= self.center_units
        offset, shape = self.apart(units)
        self._require_near(offset, shape)
        squares = np.square(shape).sum(axis=1) * self.unit**2
        found = self._rotated(shape)
        found[:, 0] = offset * self.offset_length
        return found, scales_of(squares, self.reference)

    def apart(self, units: Float64Array) -> tuple[Float64Array, Float64Array]:
        """The offset of rows of units ``[n]``, rounded to units, and what is left of their kept columns ``[n, C]``."""
        kept = self.kept
        if not kept.all():
            units = np.where(kept, units, 0.0)
        offset = np.rint(units.sum(axis=1) / max(np.count_nonzero(kept), 1))
        shape = units - offset[:, None]
        if not kept.all():
            shape *= kept
        return offset, shape

    def _require_constant(self, logits: Logits) -> None:
        """Refuse another value in a column that was constant."""
        if self.kept.all():
            return
        other = (logits != self.center32) & ~self.kept
        if other.any():
            row, column = (int(places[0]) for places in np.nonzero(other))
            raise UncodableError(
                row,
                f"has {logits[row, column]:.9g} in column {column}, which was {self.center32[column]:.9g} in every "
                f"label of the calibration and is not stored; use --encoding int8",
            )

    def _require_near(self, offset: Float64Array, shape: Float64Array) -> None:
        """Refuse what the fixed unit does not hold."""
        for far, limit, what in (
            (np.abs(shape).max(axis=1, initial=0), MAX_UNITS, ""),
            (np.abs(offset), MAX_OFFSET_UNITS, " with all its logits"),
        ):
            if (rows := np.flatnonzero(~(far <= limit))).size:
                raise UncodableError(
                    int(rows[0]),
                    f"lies {far[rows[0]] * self.unit:.4g} logits from the center{what}, codes of step {self.step:.4g} "
                    f"reach {limit * self.unit:.4g}; the crops of the calibration were of another kind: look at the "
                    f"teacher, or use --encoding int8",
                )

    def _rotated(self, units: Float64Array) -> Float64Array:
        rotated: Float64Array = units @ self.projection
        rotated *= self.unit * BASIS_UNIT
        return rotated

    def prediction(self, pairs: Pairs, dtype: type[F] = np.float64) -> npt.NDArray[F]:  # type: ignore[assignment]
        """Predicted coefficients of crops ``[n, r]``; codes are made with float64."""
        step = dtype(self.mean_step)
        own: npt.NDArray[F] = self.means[pairs.images].astype(dtype)
        own *= step
        mixed = np.flatnonzero(pairs.weights != 1)
        if len(mixed):
            weight = pairs.weights[mixed, None].astype(dtype)
            own[mixed] = weight * own[mixed] + (1 - weight) * (self.means[pairs.partners[mixed]].astype(dtype) * step)
        return own

    def rest(self, logits: Logits, pairs: Pairs) -> tuple[Float64Array, npt.NDArray[np.uint8]]:
        """Residuals of the prediction, in steps, float64 ``[n, r]``, and the labels' index into ``SCALES`` ``[n]``.

        Raises:
            UncodableError: as ``analysed``.
        """
        rest, scales = self.analysed(logits)
        rest -= self.prediction(pairs)
        rest /= self.step * SCALES[scales, None].astype(np.float64)
        return rest, scales


def require_codes(found: Float64Array) -> None:
    """Refuse codes ``[n, r]`` that int16 does not hold.

    Raises:
        UncodableError: names the first such row.
    """
    far = np.flatnonzero(np.abs(found).max(axis=1) > MAX_CODE)
    if len(far):
        raise UncodableError(
            int(far[0]),
            f"lies {np.abs(found[far[0]]).max():.3g} steps from its prediction, codes reach {MAX_CODE}; the crops of "
            f"the calibration were of another kind: look at the teacher, or use --encoding int8",
        )


def scales_of(squares: Float64Array, reference: float) -> npt.NDArray[np.uint8]:
    """Index into ``SCALES`` of lengths whose squares are given ``[n]``: in quarter octaves around ``reference``."""
    return np.searchsorted(BOUNDS * reference**2, squares).astype(np.uint8)


def unit_of(step: float) -> float:
    """The power of two at or below 1/64 of a step."""
    return float(2.0 ** np.floor(np.log2(step / UNITS_A_STEP)))


def quantise(values: Float64Array, cells: Float32Array) -> Float64Array:
    """Codes of values ``[n, r]`` in steps."""
    magnitudes = np.abs(values)
    codes = np.floor(magnitudes + (0.5 - cells[:, 1].astype(np.float64)))
    np.maximum(codes, 1, out=codes)
    codes[magnitudes < cells[:, 0]] = 0
    return np.copysign(codes, values, out=codes)
