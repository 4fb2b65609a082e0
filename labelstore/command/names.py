"""Names of files and classes: when two are equal, how they sort, and how to print them on one line of a terminal."""

from __future__ import annotations

import re
import unicodedata

_TOKENS = re.compile(r"(\d+)|(.)", re.DOTALL)
_DIGIT = ord("0")
_DIFFERING = 4  # characters that are named from the first difference on


def same_form(name: str) -> str:
    """The form in which names are compared: NFC, for file systems differ in how they write one letter."""
    return name if name.isascii() else unicodedata.normalize("NFC", name)


def printable(text: str, keep: str = "") -> str:
    r"""Text with every character that does not print escaped as Python does it: ``\n``, ``\x1b``, ``\u202e``.

    Control characters, terminal escape codes, line separators, characters without width or that turn the direction of
    writing, and bytes that are no UTF-8.

    Args:
        text: what is shown.
        keep: characters that are not escaped.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def told_apart(ours: str, theirs: str) -> tuple[str, str]:
    """Two names in quotes; where they may look alike, each with the code points from the first difference on."""
    if ours == theirs or (ours.isascii() and theirs.isascii()):
        return repr(ours), repr(theirs)
    pairs = enumerate(zip(ours, theirs, strict=False))
    first = next((i for i, (a, b) in pairs if a != b), min(len(ours), len(theirs)))
    return _with_points(ours, first), _with_points(theirs, first)


def _with_points(name: str, first: int) -> str:
    points = " ".join(f"U+{ord(c):04X}" for c in name[first : first + _DIFFERING]) or "its end"
    return f"{name!r} ({points} at character {first + 1})"


def natural_key(name: str) -> tuple[list[tuple[int, int]], str]:
    """The key for sorting names in natural order: as in byte order, but neighbouring digits count as one number.

    A run of decimal digits, of any script, is compared with another run by value, and with any other character as 0 is;
    other characters are compared by code point. Where all that is equal, as of ``01`` and ``1``, byte order decides.
    Names that consist of digits sort as integers, and names whose runs have equal lengths sort as in byte order.
    """
    tokens = _TOKENS.findall(name)
    return [(_DIGIT, int(digits)) if digits else (ord(other), 0) for digits, other in tokens], name
