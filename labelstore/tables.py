"""Tables of what can be added to: each entry by name, imported when it is looked up."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module
from typing import Generic, TypeVar, cast

Entry = TypeVar("Entry")


class Table(MutableMapping[str, Entry], Generic[Entry]):
    """Entries by name, in order: each a place, ``module`` or ``module:attribute``, or the entry itself.

    Names are listed without importing anything, so that help and the errors of a command line come at once. A new entry
    is one file and one line; from outside, ``table[name] = entry`` before a command line is read.
    """

    def __init__(self, places: Mapping[str, str]) -> None:
        self._entries: dict[str, Entry | str] = dict(places)

    def __getitem__(self, name: str) -> Entry:
        entry = self._entries[name]
        if isinstance(entry, str):
            module, _, attribute = entry.partition(":")
            found = import_module(module)
            entry = self._entries[name] = cast("Entry", getattr(found, attribute) if attribute else found)
        return entry

    def __setitem__(self, name: str, entry: Entry | str) -> None:
        self._entries[name] = entry

    def __delitem__(self, name: str) -> None:
        del self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries  # without importing it

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)
