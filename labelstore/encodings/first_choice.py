"""Keep the first choice of labels: move few codes, those that cost least, until the teacher's choice leads again.

A quantiser that minimises squared error loses the first choice of one label in eight at a fidelity of 0.95: a small
error exchanges two classes that are nearly equal. Moving a handful of the label's codes to a neighbouring cell brings
the choice back. Codes whose values lie near the edge of their cell cost next to nothing, in error and in bytes: those
with the most effect for their cost are moved.

Only the writer does this: labels are decoded as ever. Whether a choice is kept is decided by whole numbers in float64,
so that codes depend neither on threads nor on order.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.encodings.base import Logits, Pairs
from labelstore.encodings.components import BASIS_UNIT, MAX_CODE, SCALES, Calibration

LEAD = 0.6
"""Share of its lead over every other class that the first choice keeps: a lead of nothing would be lost again."""
LEAST_LEAD = 2.0  # units: more than decoders round
PASSES = 8  # in each, one of the other classes is overtaken; less than one label in 1,000 takes more
MOVES = 32  # codes of a label in a pass
NEAR = 1e-3  # steps: values nearer to the edge of their cell cost the same

Float64Array = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]


class Shortfall(NamedTuple):
    """The class over which a label's first choice has too small a lead, and the missing amount.

    Attributes:
        first: the teacher's choice ``[n]``.
        other: the class that it leads too little ``[n]``.
        missing: by how much, in units times 1 / BASIS_UNIT; at most 0 where the lead is kept ``[n]``.
    """

    first: IntArray
    other: IntArray
    missing: Float64Array

    def take(self, rows: npt.NDArray[np.bool_]) -> Shortfall:
        """That of some of the labels."""
        return Shortfall(self.first[rows], self.other[rows], self.missing[rows])


def keep_first_choice(
    calibration: Calibration,
    logits: Logits,
    pairs: Pairs,
    rest: Float64Array,
    scales: npt.NDArray[np.uint8],
    codes: Float64Array,
) -> None:
    """Move codes until the first choice of each label keeps its lead.

    Labels that ``PASSES`` do not fix are left unchanged.

    Args:
        calibration: that the labels are coded with.
        logits: float32 ``[n, C]``.
        pairs: what the crops show ``[n]``.
        rest: what predictions leave, in steps ``[n, r]``.
        scales: index into ``SCALES`` ``[n]``.
        codes: of these, within int16; changed in place ``[n, r]``.
    """
    steps = SCALES[scales, None].astype(np.float64)
    predicted = calibration.prediction(pairs)
    quantised = codes.copy()
    left = np.arange(len(codes))
    for _ in range(PASSES):
        components = _values(calibration, codes[left]) * steps[left] + predicted[left]
        found = shortfall(calibration, logits[left], components)
        bad = found.missing > 0
        if not bad.any():
            return
        left, short = left[bad], found.take(bad)
        codes[left] = _moved(calibration, rest[left], quantised[left], codes[left], steps[left], short)


def shortfall(calibration: Calibration, logits: Logits, components: Float64Array) -> Shortfall:
    """The largest missing lead of the teacher's choice, in labels of decoded components ``[n, r]``."""
    row = np.arange(len(logits))
    # Sums of whole numbers below 2**53, however they are ordered.
    decoded = np.rint(components / calibration.unit) @ calibration.projection.T
    decoded += calibration.center_units / BASIS_UNIT
    first = logits.argmax(axis=1)
    exact = logits.astype(np.float64)
    lead = (exact[row, first, None] - exact) * (LEAD / (calibration.unit * BASIS_UNIT))
    own = decoded[row, first]
    decoded += np.maximum(lead, LEAST_LEAD / BASIS_UNIT, out=lead)
    decoded[row, first] = -np.inf
    other = decoded.argmax(axis=1)
    return Shortfall(first, other, decoded[row, other] - own)


def _moved(
    calibration: Calibration,
    rest: Float64Array,
    quantised: Float64Array,
    codes: Float64Array,
    steps: Float64Array,
    short: Shortfall,
) -> Float64Array:
    """Codes ``[n, r]`` of which some are moved by one, so that the first choice gains what is missing."""
    towards = calibration.projection[short.first] - calibration.projection[short.other]
    sign = np.sign(towards)
    moved = codes + sign
    reachable = np.abs(moved) <= MAX_CODE
    gained = (_values(calibration, np.where(reachable, moved, codes)) - _values(calibration, codes)) * steps
    gains = towards * np.rint(gained / calibration.unit)
    costs = np.maximum(_edges(calibration.cells, codes * sign) - rest * sign, 0) + NEAR
    # What was moved for one class is not taken back for another.
    costs[(moved - quantised) * sign <= 0] = np.inf
    worth = np.minimum(gains, short.missing[:, None]) / costs
    chosen = np.argsort(-worth, axis=1, kind="stable")[:, :MOVES]
    each = np.take_along_axis(gains, chosen, axis=1)
    before = np.cumsum(each, axis=1) - each
    rows, places = np.nonzero((before < short.missing[:, None]) & (np.take_along_axis(worth, chosen, axis=1) > 0))
    found = codes.copy()
    found[rows, chosen[rows, places]] = moved[rows, chosen[rows, places]]
    return found


def _edges(cells: npt.NDArray[np.float32], codes: Float64Array) -> Float64Array:
    """The upper edges of the cells of codes ``[n, r]``, in steps."""
    lower = np.where(codes >= 0, codes, -codes - 1)  # magnitude of the one of both that is nearer to 0
    first, shift = cells.T.astype(np.float64)
    edges = np.where(lower == 0, first, lower + (0.5 + shift))
    signed: Float64Array = np.copysign(edges, codes + 0.5)
    return signed


def _values(calibration: Calibration, codes: Float64Array) -> Float64Array:
    """Logits of codes at scale 1, as decoded."""
    return calibration.points[codes.astype(np.int16).view(np.uint16)].astype(np.float64)
