"""How labels become codes: one file an encoding, one line in the table.

An encoding turns logits ``[..., C]`` into one or two arrays of codes and back; the first is called ``labels``.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from labelstore import encoding_table
from labelstore.encodings.base import Bands, CodeArray, Codec, Codes, Encoding, EncodingClass, Logits, Pairs
from labelstore.encodings.int8 import Int8Format1
from labelstore.errors import FormatError, InputError
from labelstore.spec import FORMAT, Json

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


def _class_at(place: str) -> EncodingClass:
    """The class at ``module:name``."""
    module, _, name = place.partition(":")
    found: EncodingClass = getattr(import_module(module), name)
    return found


ENCODINGS: dict[str, EncodingClass] = {name: _class_at(place) for name, place in encoding_table.ENCODINGS.items()}
FORMAT_1: dict[str, EncodingClass] = {**ENCODINGS, "int8": Int8Format1}


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
        raise FormatError(f"label encoding {name}: {error}; a newer version may have this parameter") from error
