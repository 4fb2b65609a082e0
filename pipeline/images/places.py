"""Paths that lead into an archive, and patterns of files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from labelstore.command.names import printable
from labelstore.errors import InputError


@dataclass(frozen=True, slots=True)
class Place:
    """A path, taken apart.

    Attributes:
        file: that is there.
        inside: the folder in it whose folders are the classes; empty if these lie at its top.
    """

    file: Path
    inside: str = ""


def split(path: Path) -> Place | None:
    """The file that a path leads to, or into: ``set.zip`` and ``train`` of ``set.zip/train``; None if none is."""
    parts: list[str] = []
    try:
        while not os.path.lexists(path):
            if path.parent == path:
                return None
            parts.insert(0, path.name)
            path = path.parent
        return Place(path, "/".join(parts)) if path.is_file() else None
    except OSError:
        return None


def not_there(path: Path) -> InputError:
    """The error for a path that is not a file and does not lead into one."""
    if path.is_dir():
        return InputError(
            f"{printable(str(path))}: expected a file, found a folder; give a file in it, or another --images-format"
        )
    return InputError(f"{printable(str(path))}: cannot be reached (No such file or directory); check the path")


def is_there(path: Path) -> bool:
    """Whether a path exists, leads into a file, or is a pattern of files, which the source checks itself."""
    return path.exists() or split(path) is not None or any(mark in str(path) for mark in "{*?[")
