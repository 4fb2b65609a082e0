"""The image files that an address names: one file, those of a pattern, or those of the only split in a folder."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from labelstore.command.names import natural_key, printable
from labelstore.durable.http import HttpStorage
from labelstore.errors import InputError
from labelstore.storage_table import Address, as_typed
from pipeline.images.class_folder import named
from pipeline.images.members import named_as_image
from pipeline.images.patterns import SUFFIXES, expanded, has_wildcards, matching, named_kind, pattern_of
from pipeline.images.remote import RemoteFiles, listed_storage, storage_of

_METADATA = "metadata.parquet"  # which Hugging Face's class folders may have
_LOOKED_AT = 1000  # files, by which a folder is recognised: what one request lists
_SHOWN = 12  # patterns in a message


def kind_at(path: Path) -> str | None:
    """The kind of the images at an address, by its name, or else by the first files there; None of a class folder.

    Raises:
        InputError: when the folder cannot be listed.
        AddressError: it cannot be read.
    """
    if kind := named_kind(path):
        return kind
    if "{" in path.name:
        return "tar"
    found = listed_storage(path).tags(_LOOKED_AT)
    if any(_is_of(name, "parquet") for name in found):
        return "parquet"
    return "tar" if any(_is_of(name, "tar") for name in found) and not any(map(named_as_image, found)) else None


def files_at(path: Path, kind: str) -> RemoteFiles:
    """The tar, ZIP or Parquet files that an address names, in order.

    Args:
        path: the address of a file, of a pattern of files, or of a folder in which those of one split are.
        kind: ``tar``, ``zip`` or ``parquet``.

    Raises:
        InputError: one is not there, or the folder has several splits.
        AddressError: the address cannot be read.
    """
    address = Address(as_typed(path))
    folder, pattern = _parted(address, kind)
    storage = storage_of(folder) if pattern and not has_wildcards(pattern) else listed_storage(folder)
    shown = f"--images {printable(str(address))}"
    names = expanded(pattern)
    found = storage.tags_of(names) if isinstance(storage, HttpStorage) else storage.tags()
    if not pattern:
        names = _only_split(shown, address, found, kind)
    elif has_wildcards(pattern):
        names = list(dict.fromkeys(name for each in names for name in matching(found, each)))
        if not names:
            raise InputError(f"{shown}: expected files, found none{_instead(found, kind)}; check the address")
    elif absent := [name for name in names if name not in found]:
        wanted = "a file" if len(names) == 1 else f"{len(names):,} files"
        raise InputError(
            f"{shown}: expected {wanted}, {len(absent):,} {'is' if len(absent) == 1 else 'are'} not there: "
            f"{printable(absent[0])}{_instead(found, kind)}; check the address"
        )
    return RemoteFiles(storage, sorted(names, key=natural_key), found)


def _parted(address: Address, kind: str) -> tuple[Path, str]:
    """The folder of an address, and the name or pattern in it; an empty one where it names a folder."""
    parts = address.parts
    marked = [place for place, part in enumerate(parts) if "{" in part or (place > 1 and has_wildcards(part))]
    if not marked and address.name.lower().endswith(SUFFIXES[kind]):
        marked = [len(parts) - 1]
    if not marked:
        return address, ""
    return address.parents[len(parts) - 1 - marked[0]], "/".join(parts[marked[0] :])


def _only_split(shown: str, address: Address, found: Collection[str], kind: str) -> list[str]:
    """The files of a folder that has those of one split."""
    patterns = _patterns(found, kind)
    if not patterns:
        raise InputError(f"{shown}: expected {kind} files, found none; check the address")
    if len(patterns) > 1:
        one = next((pattern for pattern in patterns if "train" in pattern), patterns[0])
        raise InputError(
            f"{shown}: expected the files of one split, found {named(patterns, _SHOWN)}; give one of them: "
            f"--images '{printable(f'{address}/{one}')}'"
        )
    return [name for name in found if _is_of(name, kind)]


def _instead(found: Collection[str], kind: str) -> str:
    """Existing files, for the end of a message."""
    patterns = _patterns(found, kind)
    return f"; there are {named(patterns, _SHOWN)}" if patterns else ""


def _patterns(found: Collection[str], kind: str) -> list[str]:
    """The patterns that take all files of a kind, each those of a split."""
    suffixes = SUFFIXES[kind]
    files = ((name, next((each for each in suffixes if name.lower().endswith(each)), "")) for name in found)
    return sorted({pattern_of(name, suffix) for name, suffix in files if suffix and _is_of(name, kind)})


def _is_of(name: str, kind: str) -> bool:
    """Whether a file is of a kind, by its name."""
    return name.lower().endswith(SUFFIXES[kind]) and name.rpartition("/")[2] != _METADATA
