"""How labels become codes: one file an encoding, one line in the table.

An encoding turns logits ``[..., C]`` into one or two arrays of codes and back; the first is called ``labels``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from labelstore.encodings.base import Bands, CodeArray, Codec, Codes, Encoding, EncodingClass, Logits, Pairs
from labelstore.encodings.flags import CodecName, CodeOptions, encoding_parameters
from labelstore.encodings.float16 import Float16
from labelstore.encodings.int8 import Int8, Int8Format1
from labelstore.encodings.transform import Transform
from labelstore.errors import FormatError, InputError
from labelstore.spec import FORMAT, Json

__all__ = [
    "ENCODINGS",
    "Bands",
    "CodeArray",
    "CodeOptions",
    "Codec",
    "CodecName",
    "Codes",
    "Encoding",
    "EncodingName",
    "Logits",
    "Pairs",
    "encoding_parameters",
    "make_encoding",
]

ENCODINGS: dict[str, EncodingClass] = {"int8": Int8, "float16": Float16, "transform": Transform}
FORMAT_1: dict[str, EncodingClass] = {"int8": Int8Format1, "float16": Float16, "transform": Transform}

if TYPE_CHECKING:
    EncodingName = str
else:  # choices of the command line
    EncodingName = Literal[tuple(ENCODINGS)]


def make_encoding(parameters: Mapping[str, Json], columns: int, format_number: int = FORMAT) -> Encoding:
    """The encoding that a store's identity describes.

    Args:
        parameters: its ``name``, and what else its ``to_json`` gives.
        columns: columns C of a label.
        format_number: of the store; encodings of earlier formats are read, never written.

    Raises:
        InputError: when there is none of that name, or a parameter is out of its range.
    """
    options: dict[str, Any] = dict(parameters)
    name = options.pop("name", None)
    table = ENCODINGS if format_number == FORMAT else FORMAT_1
    if not isinstance(name, str) or name not in table:
        raise InputError(f"label encoding: expected one of {', '.join(table)}, found {name!r}")
    try:
        return table[name](columns, **options)
    except TypeError as error:
        raise FormatError(f"label encoding {name}: {error}; a newer version may know this parameter") from error
