"""The arguments of the small programs: a mistake ends in one line and exit code 2, as in `giftwrap`."""

from __future__ import annotations

import sys

from labelstore.errors import InputError


def arguments(usage: str, least: int, most: int) -> list[str]:
    """What was typed after the name of a program.

    Args:
        usage: how the program is typed, for the message.
        least: number of arguments that it needs.
        most: number of arguments that it takes.

    Raises:
        InputError: there are fewer or more.
    """
    words = sys.argv[1:]
    if not least <= len(words) <= most:
        expected = f"{least}" if least == most else f"{least} or {most}"
        raise InputError(f"expected {expected} arguments, found {len(words)}; usage: {usage}")
    return words


def whole_number(name: str, word: str, least: int = 0) -> int:
    """An argument that is a whole number.

    Raises:
        InputError: it is none, or below ``least``.
    """
    if not word.isdecimal() or int(word) < least:
        raise InputError(f"{name}: expected a whole number of at least {least}, found {word!r}")
    return int(word)
