"""Errors: what was expected, what was found, where, and what to do next."""

from __future__ import annotations

import re
from pathlib import Path

_OBJECT = re.compile(r" ?<[\w.]+ object at 0x[0-9a-f]+>")
_CODES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]|[\x00-\x1f\x7f-\x9f]")


class GiftwrapError(Exception):
    """Base of every error that giftwrap raises on purpose; commands print it without a traceback."""

    exit_code = 1


class InputError(GiftwrapError, ValueError):
    """Invalid input of the user: a flag, a folder, a file, a teacher."""

    exit_code = 2


class MismatchError(InputError):
    """A store is used with other images, another teacher, another plan or another engine than its own."""


class FormatError(InputError):
    """Something is not a store, or is a store of a format that this version does not read."""


class DamagedError(GiftwrapError):
    """Bytes on disk are not the bytes that were published.

    Attributes:
        why: what was expected and found, without the file and what to do; None where only the message has it.
    """

    why: str | None = None

    @classmethod
    def of(cls, file: Path, why: str) -> DamagedError:
        """A file of a store is damaged."""
        error = cls(
            f"{file}: {why}; `python -m labelstore check STORE` lists all damage, with --repair it mends what it can"
        )
        error.why = why
        return error


class NotStoredError(GiftwrapError, LookupError):
    """The requested views or positions are not in the store (yet)."""

    exit_code = InputError.exit_code


class LeaseError(GiftwrapError):
    """Another build holds the store."""


class AddressError(GiftwrapError):
    """An address cannot be read: no connection, a timeout, or an invalid response."""


def reason(error: BaseException) -> str:
    """The message of another library's error, in one printable line; of an OSError, the file and the reason.

    Such texts may have many lines, terminal codes, addresses and numbers of errors, and none at all.
    """
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    else:
        text = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return _CODES.sub("", _OBJECT.sub("", text))
