"""Natural order: as byte order, but digits that stand together count as one number."""

from __future__ import annotations

import re

_TOKENS = re.compile(r"(\d+)|(.)", re.DOTALL)
_DIGIT = ord("0")


def natural_key(name: str) -> tuple[list[tuple[int, int]], str]:
    """What names are sorted by.

    A run of decimal digits, of any script, is compared with another run by value, and with any other character as 0
    is; other characters are compared by code point. Where all that is equal, as of ``01`` and ``1``, byte order
    decides. Names of digits alone sort as integers, and names whose runs have equal lengths sort as in byte order.
    """
    tokens = _TOKENS.findall(name)
    return [(_DIGIT, int(digits)) if digits else (ord(other), 0) for digits, other in tokens], name
