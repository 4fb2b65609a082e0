"""The label encoding of a new store: the smaller of two, reckoned before the first label."""

from __future__ import annotations

import math
from dataclasses import dataclass

from labelstore.command.console import byte_count
from labelstore.encodings import ENCODINGS
from labelstore.encodings.components import MEAN_STEPS
from labelstore.encodings.transform import DEFAULT_FIDELITY, GROUP, MAX_COMPONENTS, MAX_EXACT
from pipeline.build.calibrate import MEAN_CROPS, rows_to_fit

SCALE = 0.4  # bytes of a label's scale, in transform
# Of a MobileNetV2's labels at a fidelity of 0.98 (columns drawn from its 1,000; 50 and 200 photographs): 0.19 bytes a
# column at 64 to 200 columns, 0.16 at 400, 0.1 at 1,000; as many components as columns up to 400, 720 to 800 of 1,000;
# codes of a mean label take twice the bytes of a label's. At 0.95 a label takes 0.53 times, at 0.92 0.36 times as much.
COLUMN_BYTES, WIDE_BYTES, WIDE_POWER = 0.2, 6.3, 0.6
COMPONENTS = 24  # times the square root of the columns
MEAN_LABELS = 2.0
# Steps of the means in one of the labels, at 0.95: with 4 a label takes 0.88 times the bytes and a mean 1.6 times, with
# 8 0.86 and 2.1 times, with 16 0.82 and 3.1 times.
FINE_LABEL, FINE_LABEL_POWER, FINE_MEAN_POWER = 0.82, 1.5, 0.55
FIDELITY_POWER = 0.7
MIXED = 1.15  # a mixed label takes so much more
ROW_BYTES, ROWS_ONCE = 5.0, 1000.0  # of the numbers of each crop, and what few of them take together
SMALL = 1.5  # times the bytes of its codes: from here on a label's share of the calibration is worth a note


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """What a store's labels take, reckoned beforehand.

    Attributes:
        name: of the encoding.
        label: bytes of a label's codes and scale.
        once: bytes of the calibration.
        labels: how many share it.
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
    """Bytes of labels in an encoding.

    Of ``transform`` within a fifth or so for labels of photographs at the teacher's own size. Labels of crops of 64 px
    by a teacher of 224 px took up to 1.4 times as much, at a fidelity of 0.92 up to 1.6 times.

    Args:
        name: of the encoding.
        columns: columns C of a label.
        images: number of images N.
        labels: N times the views.
        fidelity: that ``transform`` is to reach.
        mixed: whether crops are.
        mean_steps: of ``transform``.
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
    """Of each encoding that labels of so many columns can have, as ``estimate`` has them."""
    names = [name for name, encoding in ENCODINGS.items() if columns >= encoding.least_columns]
    return {
        name: estimate(name, columns, images, labels, fidelity=fidelity, mixed=mixed, mean_steps=mean_steps)
        for name in names
    }


def smaller(found: dict[str, Estimate]) -> str:
    """``int8`` or ``transform``; ``float16`` is for handing on, though below 4 columns it takes a byte less."""
    return min((found[name] for name in ("int8", "transform") if name in found), key=lambda each: each.each).name


def describe(chosen: str, found: dict[str, Estimate], images: int, columns: int, why: str) -> str:
    """One line about the choice: what it takes, and what the others would take.

    Args:
        chosen: the encoding.
        found: what ``estimates`` found.
        images: number of images N.
        columns: columns C of a label.
        why: what chose it.
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
