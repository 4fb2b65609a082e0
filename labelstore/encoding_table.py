"""The table of encodings: where the class of each is; read without importing numpy.

A new encoding is one file in `labelstore/encodings/` and one line here.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

ENCODINGS: dict[str, str] = {
    "int8": "labelstore.encodings.int8:Int8",
    "float16": "labelstore.encodings.float16:Float16",
    "transform": "labelstore.encodings.transform:Transform",
}

if TYPE_CHECKING:
    EncodingName = str
else:  # choices of the command line
    EncodingName = Literal[tuple(ENCODINGS)]
