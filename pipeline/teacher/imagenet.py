"""ImageNet-1k's public list: which of the 1,000 columns of a published network is which WordNet id, and its names."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from labelstore.command.names import printable, same_form
from labelstore.errors import InputError

IMAGENET, FOLDERS = "imagenet", "folders"
"""Special values of flags that select columns: by the public list; column k is folder k."""
COLUMNS = 1_000
SHOWN = 10
_ID = 9  # characters of a WordNet id


@dataclass(frozen=True, slots=True)
class PublicClass:
    """One class of the list.

    Attributes:
        wordnet_id: as ``n01440764``.
        names: its names, the usual one first.
    """

    wordnet_id: str
    names: tuple[str, ...]


@cache
def public_classes() -> tuple[PublicClass, ...]:
    """The 1,000 classes in the order of the columns."""
    text = files("pipeline.teacher").joinpath("imagenet_classes.tsv").read_text(encoding="utf-8")
    rows = [line.split("\t") for line in text.splitlines() if not line.startswith("#")]
    return tuple(PublicClass(wordnet_id, tuple(names.split(", "))) for wordnet_id, names in rows)


def plain(name: str) -> str:
    """The form in which class names are compared: only letters and digits, in lower case."""
    return "".join(c for c in same_form(name).casefold() if c.isalnum())


@cache
def _by_id() -> dict[str, tuple[int, ...]]:
    return {entry.wordnet_id: (column,) for column, entry in enumerate(public_classes())}


@cache
def _by_name() -> dict[str, tuple[int, ...]]:
    """Columns by usual name; by any other name, and by all names in a row, where that is no class's usual name."""
    usual: dict[str, list[int]] = {}
    other: dict[str, list[int]] = {}
    for column, entry in enumerate(public_classes()):
        usual.setdefault(plain(entry.names[0]), []).append(column)
        for name in {plain(name) for name in (*entry.names[1:], "".join(entry.names))}:
            other.setdefault(name, []).append(column)
    return {name: tuple(columns) for name, columns in {**other, **usual}.items()}


def is_public(folders: Sequence[str]) -> bool:
    """Whether all folders are named as classes of the list."""
    return bool(folders) and all(map(_called, folders))


@dataclass(frozen=True, slots=True)
class PublicMapping:
    """Folders, the classes of the list that they are, and the network's columns of these.

    Attributes:
        folders: in target order.
        entries: index of each folder's class in the list.
        columns: of the network, likewise.
    """

    folders: tuple[str, ...]
    entries: tuple[int, ...]
    columns: tuple[int, ...]

    @property
    def in_order(self) -> bool:
        """Whether folder k has column k of the network."""
        return self.columns == tuple(range(len(self.columns)))

    @property
    def text(self) -> str:
        """The first rows: folder, column, and of name and id the one that the folder is not called."""
        rows = []
        for folder, entry, column in zip(self.folders[:SHOWN], self.entries, self.columns, strict=False):
            known = public_classes()[entry]
            also = known.names[0] if folder == known.wordnet_id else known.wordnet_id
            rows.append(f"{printable(folder)} -> column {column} ({also})")
        more = len(self.folders) - SHOWN
        return ", ".join(rows) + (f" and {more:,} more" if more > 0 else "")


def public_mapping(folders: Sequence[str], names: Sequence[str] | None, total: int) -> PublicMapping:
    """The column of each folder by the public list.

    Args:
        folders: WordNet ids (``n02085620``, ``n02085620-Chihuahua``) or class names.
        names: class names of all columns, where known; then they decide where a class of the list is.
        total: columns of the network.

    Raises:
        InputError: a folder is not of the list, a name is that of several classes, two folders are one class, or the
            network's columns are others.
    """
    entries = _entries_of(folders)
    return PublicMapping(tuple(folders), entries, _placed(entries, names, total))


def _entries_of(folders: Sequence[str]) -> tuple[int, ...]:
    """The class of the list that each folder is."""
    seen: dict[int, str] = {}
    for folder in folders:
        found = _called(folder)
        if not found:
            raise InputError(f"{folder!r} is no WordNet id or class name of ImageNet-1k; name the columns themselves")
        if len(found) > 1:
            several = " and ".join(f"{column} ({public_classes()[column].wordnet_id})" for column in found)
            raise InputError(
                f"{folder!r} is the name of the columns {several}; name the folder by its WordNet id, or give the "
                f"columns' indexes in the folders' order"
            )
        other = seen.setdefault(found[0], folder)
        if other != folder:
            raise InputError(f"{other!r} and {folder!r} are one class, column {found[0]}; merge these folders")
    return tuple(seen)


def _placed(entries: Sequence[int], names: Sequence[str] | None, total: int) -> tuple[int, ...]:
    """The columns that hold these classes of the list."""
    if names is None:
        if total != COLUMNS:
            raise InputError(f"expected a network of {COLUMNS:,} columns, found {total:,}; name the columns themselves")
        return tuple(entries)
    called = [_called(name) for name in names]
    agreeing = sum(entry in meant for entry, meant in enumerate(called))
    others = sum(entry not in meant for entry, meant in enumerate(called) if meant)
    if total == COLUMNS and not others and agreeing > COLUMNS / 2:  # in the list's order, some with other words
        return tuple(entries)
    columns: dict[int, list[int]] = {}
    for column, meant in enumerate(called):
        if len(meant) == 1:
            columns.setdefault(meant[0], []).append(column)
    for entry in entries:
        found = columns.get(entry, [])
        if len(found) != 1:
            known = public_classes()[entry]
            raise InputError(
                f"expected one column of the network for {known.wordnet_id} ({known.names[0]}), found "
                f"{f'the columns {found}' if found else 'none'} by its own class names; name the columns themselves"
            )
    return tuple(columns[entry][0] for entry in entries)


def _called(name: str) -> tuple[int, ...]:
    """The classes of the list that a name may mean: a WordNet id, optionally followed by words, or a class name."""
    by_id = () if name[_ID:][:1].isalnum() else _by_id().get(name[:_ID], ())
    return by_id or _by_name().get(plain(name), ())
