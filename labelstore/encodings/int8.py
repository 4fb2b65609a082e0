"""Logits as bytes with one scale and one offset a label: C + 8 bytes a label before compression of those two.

Softmax ignores the common offset of a label's logits, so that precision must not be spent on it: a label that lies far
from zero is stored as its distances from a multiple of its step. A value that marks columns that were masked out has a
separate code.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from labelstore.encodings.base import Bands, CodeArray, Codec, Codes, Logits, Pairs, require_codec
from labelstore.errors import InputError
from labelstore.spec import Json

ROWS_AT_ONCE = 1024  # what fits the processor's cache at C = 1000; four times faster than all rows at once
SCALE_BYTES = 4.1  # of a label, compressed
TOP = 127  # the largest code
MASKED_CODE = -128
MAX_OFFSET = 2**23 - 256  # in steps: an offset and a code add up exactly in float32
SMALLEST_STEP = float(np.finfo(np.float32).tiny)  # of a row with an offset: smaller ones are themselves rounded
MASKED_SHARE = 4  # of the rows of a sample, one in so many must show that a value is masked

Float32Array = npt.NDArray[np.float32]


class Int8:
    """``labels`` int8 ``[..., C]``, ``scales`` float32 ``[..., 2]``: a step and an offset k in steps.

    A logit is ``(code + k) * step``. The step is ``max|x| / 127`` and k is 0, unless ``max|x|`` is more than twice half
    the row's range: then the step is half the range over 127, and k the middle of the range in steps. Step and offset
    are those of the values that are not masked; code -128 is the masked value. A row of zeros has step 0.

    Args:
        columns: C.
        codec: of the labels: ``raw``, whose rows are read straight from the file, or ``zstd``.
        masked: the value of columns that are masked out, stored exactly; None if there are none.
    """

    name = "int8"
    limit = 1e38  # 127 times the rounded step must still be a float32
    needs_calibration = False
    scaled = True
    least_columns = 1
    # Of encodings without a choice. The worst of CIFAR-10's ResNet-20 and ResNet-56 (10 columns, 9,980 labels) and of
    # MobileNetV2 (1,000, 5,000), unmixed and CutMix: int8 0.99985, 7.7e-5, 8.5e-7, 0.994; float16 0.99999998, 4.9e-7,
    # 2.4e-9, 0.994 (MobileNetV2 in bfloat16 has ties).
    bands = Bands(0.999, 0.005, 5e-5, 0.95)
    advice = "look at what the teacher's logits are like, or use --encoding float16"

    def __init__(self, columns: int, codec: Literal["raw", "zstd"] = "raw", masked: float | None = None) -> None:
        require_codec("int8", codec, ("raw", "zstd"))
        if masked is not None and not (type(masked) in (int, float) and abs(masked) <= self.limit):
            raise InputError(f"masked value of int8: expected a number of at most {self.limit:g}, found {masked!r}")
        self.codec = codec
        self.masked = None if masked is None else float(np.float32(masked))
        packed: Codec = "raw" if codec == "raw" else "shuffle"
        self.arrays = (
            CodeArray("labels", "int8", MASKED_CODE, columns, packed),
            CodeArray("scales", "float32", "NaN", 2, "shuffle", axis="part"),
        )

    @staticmethod
    def label_bytes(columns: int) -> float:
        """A byte a column, and what the scale takes."""
        return columns + SCALE_BYTES

    def to_json(self) -> dict[str, Json]:
        """The name, the codec if it is not ``raw``, and the masked value if there is one."""
        named: dict[str, Json] = {"name": self.name}
        named |= {} if self.codec == "raw" else {"codec": self.codec}
        return named if self.masked is None else {**named, "masked": self.masked}

    def encode(self, logits: Logits, pairs: Pairs) -> dict[str, npt.NDArray[Any]]:  # noqa: ARG002
        """Round each row to multiples of its step."""
        rows = logits.reshape(-1, logits.shape[-1])
        codes = np.empty(rows.shape, np.int8)
        scales = np.empty((len(rows), 2), np.float32)
        for start in range(0, len(rows), ROWS_AT_ONCE):
            part = slice(start, start + ROWS_AT_ONCE)
            kept = None if self.masked is None else rows[part] != np.float32(self.masked)
            step, offset = _step_and_offset(*_range(rows[part], kept))
            codes[part] = _codes(rows[part], step, offset)
            if kept is not None:
                np.copyto(codes[part], MASKED_CODE, where=~kept)
            scales[part] = np.stack([step, offset], axis=1)
        return {"labels": codes.reshape(logits.shape), "scales": scales.reshape(*logits.shape[:-1], 2)}

    def decode(self, codes: Codes, pairs: Pairs) -> Logits:  # noqa: ARG002
        """Code and offset times step; what was never written is NaN."""
        step, offset = codes["scales"][..., :1], codes["scales"][..., 1:]
        if offset.any():
            logits: Logits = np.add(codes["labels"], offset, dtype=np.float32)
            logits *= step
        else:
            logits = np.multiply(codes["labels"], step, dtype=np.float32)
        if self.masked is not None:
            np.copyto(logits, np.float32(self.masked), where=(codes["labels"] == MASKED_CODE) & ~np.isnan(step))
        return logits

    def current(self, codes: Codes) -> Codes:
        """They are in the current format."""
        return codes


class Int8Format1:
    """``int8`` as format 1 has it: ``scales`` float32 ``[...]``, neither offsets nor masked values; read, not written.

    Args:
        columns: C.
        codec: of labels and scales.
    """

    name = Int8.name
    limit = Int8.limit
    masked = None
    needs_calibration = False
    scaled = True
    least_columns = Int8.least_columns
    bands = Int8.bands
    advice = Int8.advice

    def __init__(self, columns: int, codec: Literal["raw", "zstd"] = "raw") -> None:
        self._now = Int8(columns, codec)
        self.codec = codec
        labels = self._now.arrays[0]
        self.arrays = (labels, CodeArray("scales", "float32", "NaN", None, labels.codec))

    @staticmethod
    def label_bytes(columns: int) -> float:
        """As today's."""
        return Int8.label_bytes(columns)

    def to_json(self) -> dict[str, Json]:
        """The name, and the codec if it is not ``raw``."""
        return self._now.to_json()

    def encode(self, logits: Logits, pairs: Pairs) -> dict[str, npt.NDArray[Any]]:  # noqa: ARG002
        """The codes that are compared with stored ones when a store is verified."""
        rows = logits.reshape(-1, logits.shape[-1])
        step = _largest(*_range(rows, None)) / np.float32(TOP)
        codes = _codes(rows, step, np.zeros_like(step)).astype(np.int8)
        return {"labels": codes.reshape(logits.shape), "scales": step.reshape(logits.shape[:-1])}

    def decode(self, codes: Codes, pairs: Pairs) -> Logits:
        """Code times step."""
        return self._now.decode(self.current(codes), pairs)

    def current(self, codes: Codes) -> Codes:
        """The same codes with an offset for each label, which is 0."""
        scales = codes["scales"]
        return {**codes, "scales": np.stack([scales, np.zeros_like(scales)], axis=-1)}


def masked_value(logits: npt.NDArray[np.floating]) -> float | None:
    """The value of masked columns in a sample of labels ``[n, C]``; None if there is none.

    It is the smallest value, if at least a quarter of the rows hold it and span less than half without it; a single
    logit shows nothing.
    """
    if not logits.size:
        return None
    value = logits.min()
    masked = logits == value
    others = np.where(masked, np.inf, logits).min(axis=1).astype(np.float64)
    largest = logits.max(axis=1).astype(np.float64)
    shown = masked.any(axis=1) & (others < np.inf) & (largest - others < (largest - value) / 2)
    enough = MASKED_SHARE * np.count_nonzero(shown) >= len(logits) and np.count_nonzero(masked) > 1
    return float(value) if enough else None


def _range(rows: Float32Array, kept: npt.NDArray[np.bool_] | None) -> tuple[Float32Array, Float32Array]:
    """The smallest and the largest value of each row ``[n]``, of those that are kept; zeros where none is."""
    if kept is None:
        return rows.min(axis=1), rows.max(axis=1)
    some = kept.any(axis=1)
    low, high = rows.min(axis=1, where=kept, initial=np.inf), rows.max(axis=1, where=kept, initial=-np.inf)
    return np.where(some, low, np.float32(0)), np.where(some, high, np.float32(0))


def _largest(low: Float32Array, high: Float32Array) -> Float32Array:
    """The largest magnitude of each row."""
    # Of zeros, one may be negative; which of them is the larger depends on the processor.
    largest: Float32Array = np.abs(np.maximum(high, -low))
    return largest


def _step_and_offset(low: Float32Array, high: Float32Array) -> tuple[Float32Array, Float32Array]:
    """Step and offset of rows whose values lie between ``low`` and ``high``, ``[n]`` each."""
    largest = _largest(low, high)
    span = high.astype(np.float64) - low
    # Of a row that is all but constant, the step is what float32 resolves there.
    narrow = np.maximum(span / (2 * TOP), largest.astype(np.float64) / MAX_OFFSET).astype(np.float32)
    moved = (largest > span) & (narrow >= np.float32(SMALLEST_STEP))
    step = np.where(moved, narrow, largest / np.float32(TOP))
    middle = (high.astype(np.float64) + low) / 2
    offset = np.rint(np.divide(middle, step, out=np.zeros_like(middle), where=moved)).astype(np.float32)
    return step, offset


def _codes(rows: Float32Array, step: Float32Array, offset: Float32Array) -> Float32Array:
    """Codes of rows ``[n, C]``, whole numbers in float32."""
    steps = np.where(step > 0, step, np.float32(np.inf))
    with np.errstate(over="ignore"):  # of masked values
        codes: Float32Array = np.divide(rows, steps[:, None], dtype=np.float32)
    np.rint(codes, out=codes)
    if offset.any():
        codes -= offset[:, None]
    # The step of a row of subnormal numbers is itself rounded so far that quotients pass 127.
    return np.clip(codes, -TOP, TOP, out=codes)
