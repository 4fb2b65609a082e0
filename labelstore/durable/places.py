"""Check where a command writes: not inside a folder of images or a store, or to a folder that contains one."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from labelstore.durable.removing import require_absent
from labelstore.errors import InputError, reason
from labelstore.storage_table import Address, no_path, scheme_of

SYNTHESIS = "synthesis.json"  # the record of a synthesised image set
HEAD_BYTES = 4096  # of the zarr.json of a store, which hold its format


def require_apart(writes: Mapping[str, Path | None], keeps: Mapping[str, Path | None]) -> None:
    """Refuse places to write that overlap with folders in which nothing may be written, links followed.

    Args:
        writes: files and folders that will be written, by the flags that name them; None if a flag is left out.
        keeps: image folders and stores, likewise.

    Raises:
        InputError: names both flags and both places; or the store or the image set, named by no flag, in which a place
            lies.
    """
    for flag, place in writes.items():
        if place is None:
            continue
        require_local(place)
        for other, kept in keeps.items():
            if kept is not None and (how := _overlap(place, kept)):
                raise InputError(
                    f"{flag} {place}: {how} {other} {kept}, where nothing else may be written; give a place for "
                    f"{flag} that is neither in it nor around it, such as a folder beside it"
                )
        for folder in _real(place).parents:
            kind = "label store" if is_store(folder) else "image set" if is_synthesised(folder) else None
            if kind:
                raise InputError(
                    f"{flag} {place}: lies in the {kind} {folder}, where nothing else may be written; give a place for "
                    f"{flag} beside it"
                )


def require_local(path: Path) -> None:
    """Refuse an address, of which a folder with the name of its scheme would be made here.

    Raises:
        InputError: names it.
    """
    if scheme_of(path):
        raise InputError(no_path(str(Address(path))))


def require_writable(place: Path) -> None:
    """Refuse, before the work that it is for, a folder in which no file can be made.

    Raises:
        InputError: with the system's reason.
    """
    try:
        with tempfile.TemporaryFile(dir=place.parent):
            pass
    except OSError as error:
        raise InputError(
            f"{place}: cannot be written ({error.strerror or reason(error)}); give another place"
        ) from error


def require_new_file(flag: str, path: Path) -> None:
    """Refuse a file that could not be written, or is there already, before the work that it is for.

    Raises:
        InputError: names the place, or the system's reason.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise InputError(f"{flag}: expected the name of a file in a folder that is there, found {path}")
    require_absent(path)
    require_writable(path)


def is_store(folder: Path) -> bool:
    """Whether a folder is a label store, by the head of its zarr.json."""
    path = folder / "zarr.json"
    try:
        if not path.is_file():
            return False
        with path.open("rb") as file:
            return b'"giftwrap_format"' in file.read(HEAD_BYTES)
    except OSError:
        return False


def is_synthesised(folder: Path) -> bool:
    """Whether a folder is an image set that has the record of its synthesis."""
    return (folder / SYNTHESIS).is_file()


def _overlap(place: Path, kept: Path) -> str | None:
    """The kind of overlap between a place and a folder."""
    ours, theirs = _real(place), _real(kept)
    if _same(ours, theirs):
        return "is the same as"
    if any(_same(folder, theirs) for folder in ours.parents):
        return "lies in"
    if any(_same(folder, ours) for folder in theirs.parents):
        return "holds"
    return None


def _real(path: Path) -> Path:
    try:
        return path.resolve()
    except (OSError, RuntimeError):  # links in a circle
        return path.absolute()


def _same(one: Path, other: Path) -> bool:
    """Whether two paths are one place, under another name or mounted twice too."""
    if one == other:
        return True
    try:
        return one.samefile(other)
    except OSError:
        return False
