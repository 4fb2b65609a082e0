"""The table of storages: what reads a store at an address, by the scheme of the address; read without importing numpy.

A new scheme is one file and one line here. Its class is called with the :class:`Address` and gives a
:class:`labelstore.durable.storage.ReadStorage`.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path, PosixPath
from typing import Any

from labelstore.tables import Table

STORAGES: Table[Any] = Table(
    {
        "http": "labelstore.durable.http:HttpStorage",
        "https": "labelstore.durable.http:HttpStorage",
        "s3": "labelstore.durable.objects:ObjectStorage",
        "gs": "labelstore.durable.objects:ObjectStorage",
        "az": "labelstore.durable.objects:ObjectStorage",
        "hf": "labelstore.durable.hub:HubStorage",
    }
)

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):/")  # as a Path has it, with one of its slashes
_PATH = "a path on this machine"
# With a password that has a slash too; a port is none.
_CREDENTIALS = re.compile(r"\b([A-Za-z][A-Za-z0-9+.-]*:/{1,2})(?:[^/\s]*@|[^/\s:@]+:(?!\d+(?:/|$))[^\s@]*@)")


class Address(PosixPath):
    """The address of a store, ``http://host/folder``; files below it are named with ``/``, as those of a folder are.

    A plain path drops one of the two slashes. As text it has no ``user:password@``, so that no message, summary or
    file of flags has them; :attr:`complete` has.
    """

    __slots__ = ()

    @property
    def complete(self) -> str:
        """The address with all that is in it; never to be printed."""
        scheme, *rest = self.parts
        return f"{scheme}//{'/'.join(rest)}"

    @property
    def scheme(self) -> str:
        """Such as ``https``, in lower case."""
        return self.parts[0].removesuffix(":").lower()

    def __str__(self) -> str:
        return without_credentials(self.complete)


def scheme_of(place: Path | str) -> str | None:
    """The scheme of an address, in lower case; None of a path."""
    found = _ADDRESS.match(place.complete if isinstance(place, Address) else str(place))
    return found[1].lower() if found else None


def meant_address(text: str) -> str | None:
    """The correct form of a misspelt address such as ``s3:bucket`` or ``s3//bucket``; None for any other text."""
    found = re.fullmatch(rf"({'|'.join(STORAGES)})(?::/*|//+)(.*)", text, re.IGNORECASE)
    if found is None or (found[2] and scheme_of(text)):
        return None
    return without_credentials(f"{found[1]}://{found[2] or 'NAME/FOLDER'}")


def as_typed(path: Path) -> Path:
    """The address from which a path was made; other paths are returned unchanged."""
    return path if isinstance(path, Address) or not scheme_of(path) else Address(path)


def no_path(word: str, schemes: Iterable[str] = ()) -> str:
    """The message about an address where a path is expected, or an address of some schemes."""
    known = ", ".join(f"{scheme}://" for scheme in schemes)
    expected, found = (f"{_PATH}, or an address with {known}", "another one") if known else (_PATH, "an address")
    return f"{without_credentials(word)}: expected {expected}, found {found}; copy it here and give its path"


def without_credentials(text: str) -> str:
    """A text in which no address has a ``user:password@``."""
    return _CREDENTIALS.sub(r"\1", text)
