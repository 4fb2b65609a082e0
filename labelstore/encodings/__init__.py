"""Encodings of labels: one file for each, and one line in the table.

An encoding turns logits ``[..., C]`` into one or two arrays of codes and back; the first is called ``labels``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from labelstore import encoding_table
from labelstore.encodings.base import Bands, CodeArray, Codec, Codes, Encoding, EncodingClass, Logits, Pairs
from labelstore.encodings.int8 import Int8Format1
from labelstore.errors import FormatError, InputError
from labelstore.spec import FORMAT, Json
from labelstore.tables import Table

__all__ = [
    "ENCODINGS",
    "Bands",
    "CodeArray",
    "Codec",
    "Codes",
    "Encoding",
    "Logits",
    "Pairs",
    "make_encoding",
]


ENCODINGS: Table[EncodingClass] = encoding_table.ENCODINGS
# Encodings of format 1 that are others in this one.
FORMAT_1: dict[str, EncodingClass] = {"int8": Int8Format1}


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
    if not isinstance(name, str) or name not in ENCODINGS:
        raise InputError(f"label encoding: expected one of {', '.join(ENCODINGS)}, found {name!r}")
    earlier = FORMAT_1.get(name) if format_number != FORMAT else None
    try:
        return (earlier or ENCODINGS[name])(columns, **options)
    except TypeError as error:
        raise FormatError(f"label encoding {name}: {error}; a newer version may have this parameter") from error
