"""Choose the label encoding of a new store by estimated size, before the first label."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labelstore.command.console import byte_count
from labelstore.encodings import ENCODINGS
from labelstore.encodings.components import MEAN_STEPS
from labelstore.encodings.transform import DEFAULT_FIDELITY, GROUP, MAX_COMPONENTS, MAX_EXACT
from pipeline.build.calibrate import MEAN_CROPS, rows_to_fit

SCALE = 0.4  # bytes of a label's scale, in transform
# Measured on a MobileNetV2's labels at a fidelity of 0.98 (columns drawn from its 1,000; 50 and 200 photographs): 0.19
# bytes a column at 64 to 200 columns, 0.16 at 400, 0.1 at 1,000; as many components as columns up to 400, 720 to 800 of
# 1,000; codes of a mean label take twice the bytes of a label's. At 0.95 a label takes 0.53 times, at 0.92 0.36 times
# as much.
COLUMN_BYTES, WIDE_BYTES, WIDE_POWER = 0.2, 6.3, 0.6
COMPONENTS = 24  # times the square root of the columns
MEAN_LABELS = 2.0
# Steps of the means in one of the labels, at 0.95: with 4 a label takes 0.88 times the bytes and a mean 1.6 times, with
# 8 0.86 and 2.1 times, with 16 0.82 and 3.1 times.
FINE_LABEL, FINE_LABEL_POWER, FINE_MEAN_POWER = 0.82, 1.5, 0.55
FIDELITY_POWER = 0.7
MIXED = 1.15  # factor for labels of mixed crops
ROW_BYTES, ROWS_ONCE = 5.0, 1000.0  # bytes of a crop row, and the overhead of a small number of rows
SMALL = 1.5  # if a label's part of the calibration exceeds so many times its codes, a note is printed


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """The estimated size of a store's labels.

    Attributes:
        name: name of the encoding.
        label: bytes of a label's codes and scale.
        once: bytes of the calibration.
        labels: number of labels that use it.
    """

    name: str
    label: float
    once: float
    labels: int

    @property
    def each(self) -> float:
        """Bytes a label."""
        return self.label + self.once / self.labels


def estimate(
    name: str,
    columns: int,
    images: int,
    labels: int,
    *,
    fidelity: float | None = None,
    mixed: bool = False,
    mean_steps: int | None = None,
) -> Estimate:
    """Estimate the size of labels in an encoding.

    For ``transform`` the error is about a fifth for photographs at the teacher's size. Labels of 64 px crops by a
    teacher of 224 px took up to 1.4 times the estimate; at a fidelity of 0.92, up to 1.6 times.

    Args:
        name: of the encoding.
        columns: columns C of a label.
        images: number of images N.
        labels: N times the views.
        fidelity: target fidelity of ``transform``.
        mixed: whether crops are mixed.
        mean_steps: option of ``transform``.
    """
    if (each := ENCODINGS[name].label_bytes(columns)) is not None:
        return Estimate(name=name, label=each, once=0.0, labels=labels)
    rate = ((1 - (fidelity or DEFAULT_FIDELITY)) / (1 - DEFAULT_FIDELITY)) ** -FIDELITY_POWER
    codes = rate * columns * min(COLUMN_BYTES, WIDE_BYTES / columns**WIDE_POWER)
    most = columns if columns <= MAX_EXACT else MAX_COMPONENTS
    components = -(-min(most, COMPONENTS * min(rate, 1) * columns**0.5) // GROUP) * GROUP
    # Rows of length 2^15 hold numbers of 2^15 / sqrt(C): as many bits as such normal numbers need.
    basis = components * columns * math.log2(2**15 / columns**0.5 * math.sqrt(2 * math.pi * math.e)) / 8
    finer = (mean_steps or MEAN_STEPS) / MEAN_STEPS
    once = basis + 8 * columns + 8 * components + images * MEAN_LABELS * codes * finer**FINE_MEAN_POWER
    codes *= FINE_LABEL + (1 - FINE_LABEL) * finer**-FINE_LABEL_POWER
    return Estimate(name=name, label=codes * (MIXED if mixed else 1) + SCALE, once=once, labels=labels)


def estimates(
    columns: int, images: int, labels: int, *, fidelity: float | None, mixed: bool, mean_steps: int | None = None
) -> dict[str, Estimate]:
    """An `estimate` for each encoding that is possible with so many columns."""
    names = [name for name, encoding in ENCODINGS.items() if columns >= encoding.least_columns]
    return {
        name: estimate(name, columns, images, labels, fidelity=fidelity, mixed=mixed, mean_steps=mean_steps)
        for name in names
    }


def smaller(found: dict[str, Estimate]) -> str:
    """Choose ``int8`` or ``transform``. ``float16`` is never chosen, though below 4 columns it is a byte smaller."""
    return min((found[name] for name in ("int8", "transform") if name in found), key=lambda each: each.each).name


def describe(chosen: str, found: dict[str, Estimate], images: int, columns: int, why: str) -> str:
    """A line about the choice: its size, and the sizes of the others.

    Args:
        chosen: name of the encoding.
        found: the estimates.
        images: number of images N.
        columns: columns C of a label.
        why: reason for the choice.
    """
    others = ", ".join(f"{name} {each.each:,.1f} B" for name, each in found.items() if name != chosen)
    own = found[chosen]
    text = f"encoding: {chosen} ({why}), about {own.each:,.1f} B a label"
    if own.once and own.each > SMALL * own.label:
        text += (
            f": {own.label:,.1f} B of codes, and of a calibration of {byte_count(own.once)} a share of each of only "
            f"{own.labels:,} labels; more --views make it smaller"
        )
    elif own.once:
        text += f", its share of a calibration of {byte_count(own.once)} included"
    text += f"; {others}"
    if chosen == "transform":
        crops = MEAN_CROPS * images + sum(rows_to_fit(images, columns))
        text += f"; calibrating labels {crops:,} crops more, once"
    elif (other := found.get("transform")) and other.each > own.each:
        text += f" (its calibration of {byte_count(other.once)} would be shared by only {other.labels:,} labels)"
    return f"{text}; the numbers of each crop add about {ROW_BYTES + ROWS_ONCE / own.labels:.0f} B"
