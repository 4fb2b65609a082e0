"""The table of encodings: where the class of each is; read without importing numpy.

A new encoding is one file in `labelstore/encodings/` and one line here.
"""

from __future__ import annotations

from typing import Any

from labelstore.tables import Table

ENCODINGS: Table[Any] = Table(
    {
        "int8": "labelstore.encodings.int8:Int8",
        "float16": "labelstore.encodings.float16:Float16",
        "transform": "labelstore.encodings.transform:Transform",
    }
)
