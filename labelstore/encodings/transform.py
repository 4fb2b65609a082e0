"""Predictive transform coding: every label, tens of times smaller than float16, at a fidelity that the user chooses.

A label ``x`` of a crop that shows image i with weight w, and image j with the rest, becomes codes as follows::

    o = mean(x - center)                          what all its logits have in common, which softmax ignores
    s = x - center - o                            what classes differ by
    y = B s                                       its KLT: rows of B are components, by falling variance
    p = w m_i + (1 - w) m_j                       the prediction: mean labels of the images, in the same basis
    q = sign(e) round(|e|)                        codes, of e = (y - p) / (step scale)

Component 0 is the offset o, so that an offset of any size does not change the other codes. The step grows with what
classes differ by, since fidelity is a cosine: ``scale`` is ``|s| / reference`` in quarter octaves, and is stored beside
the codes. Cells are moved outwards where that saves more bytes than it costs fidelity, by as much as is fitted for each
component; a code decodes to the centroid of its cell. Logits, center and basis are integers of a fixed unit, so that
``y`` is exact in float64: codes do not depend on threads, order or device.

Columns that were constant in the calibration, such as masked ones, come into none of this: they are in ``center``.

With ``keep_top1``, some codes are then moved by one, so that the first choice stays the teacher's
(`labelstore.encodings.first_choice`); labels are decoded the same.
"""

from __future__ import annotations

from copy import copy
from dataclasses import replace
from typing import Any, Literal, TypeGuard

import numpy as np
import numpy.typing as npt

from labelstore.encodings.base import CodeArray, Codes, Encoding, Logits, Pairs
from labelstore.encodings.components import (
    MAX_LOGIT,
    MAX_UNITS,
    MEAN_STEPS,
    SCALES,
    Calibration,
    UncodableError,
    quantise,
    require_codes,
)
from labelstore.encodings.first_choice import keep_first_choice
from labelstore.errors import InputError, NotStoredError
from labelstore.spec import Json

GROUP = 16  # neighbouring components that are compressed together
MAX_EXACT = 4096  # classes; of more, only MAX_COMPONENTS components are made
MAX_COMPONENTS = 1024
MIN_COLUMNS = 64  # with fewer, int8 is about as small
DEFAULT_FIDELITY = 0.98
LEAST_FIDELITY, MOST_FIDELITY = 0.5, 0.9999
MOST_MEAN_STEPS = 64
ROWS_AT_ONCE = 1024


class Transform:
    """``labels`` int16 ``[..., r]``, ``scales`` uint8 ``[...]``.

    Args:
        columns: C.
        codec: ``pcodec``, or ``zstd``, which keeps to Zarr's core codecs at some 20 % more bytes.
        fidelity: that the step is chosen to reach, unless ``step`` is given; 0.98 when both are left out.
        step: in logits.
        mean_steps: steps of the mean labels in one of the labels: with 8, labels take 15 to 20 % less, and the mean of
            each image takes 2.5 times as much, which pays from some 30 views on.
        keep_top1: whether codes are moved where the first choice of a label would be another than the teacher's.
    """

    name = "transform"
    needs_calibration = True
    scaled = False
    least_columns = MIN_COLUMNS
    bands = None
    advice = "look at what the teacher's logits are like, ask for more --fidelity, or use --encoding int8"

    def __init__(
        self,
        columns: int,
        codec: Literal["pcodec", "zstd"] = "pcodec",
        fidelity: float | None = None,
        step: float | None = None,
        mean_steps: int = MEAN_STEPS,
        keep_top1: bool = False,
    ) -> None:
        if columns < MIN_COLUMNS:
            raise InputError(
                f"label encoding transform: expected labels of at least {MIN_COLUMNS} columns, found {columns}; "
                f"int8 is small enough there: --encoding int8"
            )
        if codec not in ("pcodec", "zstd"):
            raise InputError(f"label encoding transform: expected codec pcodec or zstd, found {codec!r}")
        if fidelity is not None and step is not None:
            raise InputError("label encoding transform: expected a fidelity or a step, found both")
        if step is None and fidelity is None:
            fidelity = DEFAULT_FIDELITY
        if fidelity is not None and not LEAST_FIDELITY <= fidelity <= MOST_FIDELITY:
            raise InputError(
                f"label encoding transform: expected a fidelity of {LEAST_FIDELITY} to {MOST_FIDELITY}, "
                f"found {fidelity}"
            )
        if step is not None and not 1e-6 <= step <= 1e6:
            raise InputError(f"label encoding transform: expected a step of 1e-6 to 1e6 logits, found {step}")
        if not (isinstance(mean_steps, int) and 1 <= mean_steps <= MOST_MEAN_STEPS):
            raise InputError(
                f"label encoding transform: expected 1 to {MOST_MEAN_STEPS} steps of means in a step, "
                f"found {mean_steps}"
            )
        if not isinstance(keep_top1, bool):
            raise InputError(f"label encoding transform: keep_top1: expected true or false, found {keep_top1!r}")
        self.columns, self.codec, self.fidelity, self.step = columns, codec, fidelity, step
        self.mean_steps, self.keep_top1 = mean_steps, keep_top1
        self._calibration: Calibration | None = None
        most = columns if columns <= MAX_EXACT else MAX_COMPONENTS
        self.width = -(-most // GROUP) * GROUP
        packed: Literal["pcodec", "bitshuffle"] = "pcodec" if codec == "pcodec" else "bitshuffle"
        self.arrays = (
            CodeArray("labels", "int16", 0, self.width, packed, planar=True),
            CodeArray("scales", "uint8", 255, None, "shuffle"),
        )

    def calibrated(self, calibration: Calibration) -> Transform:
        """The same encoding, ready to code."""
        ready = copy(self)
        # The store's identity has the number, not the files of its calibration.
        same = calibration.mean_steps == self.mean_steps
        ready._calibration = calibration if same else replace(calibration, mean_steps=self.mean_steps)
        return ready

    @property
    def calibration(self) -> Calibration:
        """The calibration; NotStoredError before there is one."""
        if self._calibration is None:
            raise NotStoredError("label encoding transform: not calibrated yet; continue the build")
        return self._calibration

    @property
    def limit(self) -> float:
        """The largest magnitude of a logit; the distance of labels from the center is checked when they are encoded."""
        old = self._calibration is not None and not self._calibration.offset_apart
        return self.calibration.unit * MAX_UNITS if old else MAX_LOGIT

    @staticmethod
    def label_bytes(columns: int) -> None:
        """It depends on the fidelity and on how many labels share the calibration: `pipeline.build.choosing`."""

    def to_json(self) -> dict[str, Json]:
        """Name, what the step is chosen by, and what else is not as usual."""
        chosen: dict[str, Json] = {"fidelity": self.fidelity} if self.step is None else {"step": self.step}
        named: dict[str, Json] = {"name": self.name, **chosen}
        if self.mean_steps != MEAN_STEPS:  # else it is left out, as before there was a choice
            named["mean_steps"] = self.mean_steps
        if self.keep_top1:
            named["keep_top1"] = True
        return named if self.codec == "pcodec" else {**named, "codec": self.codec}

    def encode(self, logits: Logits, pairs: Pairs) -> dict[str, npt.NDArray[Any]]:
        """Rotate what the prediction leaves, and quantise it.

        Raises:
            InputError: when a label lies further from its prediction than codes reach, or has another value in a column
                that was constant in the calibration.
        """
        calibration = self.calibration
        rows, flat = logits.reshape(-1, self.columns), pairs.flat()
        codes = np.empty((len(rows), calibration.components), np.int16)
        scales = np.empty(len(rows), np.uint8)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            try:
                rest, scales[part] = calibration.rest(rows[part], flat.take(part))
                found = quantise(rest, calibration.cells)
                require_codes(found)
                if self.keep_top1:
                    keep_first_choice(calibration, rows[part], flat.take(part), rest, scales[part], found)
            except UncodableError as error:
                row = start + error.row
                raise InputError(f"label {row} of {len(rows)}, of image {flat.images[row]}: {error.why}") from error
            codes[part] = found
        lead = logits.shape[:-1]
        return {"labels": codes.reshape(*lead, calibration.components), "scales": scales.reshape(lead)}

    def decode(self, codes: Codes, pairs: Pairs) -> Logits:
        """Centroids, plus the prediction, times the basis: one matrix product."""
        calibration = self.calibration
        lead = codes["scales"].shape
        rows, scales = codes["labels"].reshape(-1, calibration.components), codes["scales"].reshape(-1)
        flat = pairs.flat()
        logits = np.empty((len(rows), self.columns), np.float32)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            values = calibration.points[rows[part].view(np.uint16)]
            values *= SCALES[scales[part], None]
            values += calibration.prediction(flat.take(part), np.float32)
            np.matmul(values, calibration.synthesis, out=logits[part])
            logits[part] += calibration.center32
        return logits.reshape(*lead, self.columns)

    def current(self, codes: Codes) -> Codes:
        """They are in the current format."""
        return codes


def is_fitted(encoding: Encoding) -> TypeGuard[Transform]:
    """Whether an encoding codes by a calibration; the one that does is this."""
    return encoding.needs_calibration
