"""Logits rounded to IEEE half precision: 2 C bytes a label."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from labelstore.encodings.base import Bands, CodeArray, Codes, Logits, Pairs, require_codec
from labelstore.spec import Json


class Float16:
    """``labels`` float16 ``[..., C]``.

    Args:
        columns: C.
        codec: ``raw``, whose rows are read straight from the file, or ``zstd``.
    """

    name = "float16"
    limit = 65504.0
    needs_calibration = False
    scaled = True
    least_columns = 1
    bands = Bands(0.9999, 5e-5, 2.5e-7, 0.95)  # as those of int8
    advice = "look at what the teacher's logits are like"

    def __init__(self, columns: int, codec: Literal["raw", "zstd"] = "raw") -> None:
        require_codec("float16", codec, ("raw", "zstd"))
        self.codec = codec
        self.arrays = (CodeArray("labels", "float16", "NaN", columns, "raw" if codec == "raw" else "shuffle"),)

    @staticmethod
    def label_bytes(columns: int) -> float:
        """Two bytes a column."""
        return 2.0 * columns

    def to_json(self) -> dict[str, Json]:
        """The name, and the codec if it is not ``raw``."""
        named: dict[str, Json] = {"name": self.name}
        return named if self.codec == "raw" else {**named, "codec": self.codec}

    def encode(self, logits: Logits, pairs: Pairs) -> dict[str, npt.NDArray[Any]]:  # noqa: ARG002
        """Round to nearest."""
        return {"labels": logits.astype(np.float16)}

    def decode(self, codes: Codes, pairs: Pairs) -> Logits:  # noqa: ARG002
        """Exact."""
        return codes["labels"].astype(np.float32)

    def current(self, codes: Codes) -> Codes:
        """They are in the current format."""
        return codes
