"""Files that have their name when they are whole, and take no name that somebody else's file has.

What is written has no name until it is finished, where the file system allows that, so that a call that is killed
leaves no file.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from labelstore.durable import disk, removing
from labelstore.durable.removing import Proof
from labelstore.errors import InputError


@contextmanager
def new_file(path: Path) -> Iterator[BinaryIO]:
    """A file, open for writing and reading, that is named ``path`` when the context ends without an error.

    If a file needs a name from the start, it is ``.NAME.partial``, which only this call can have created.

    Raises:
        InputError: when the name is taken, or a stopped call left a file that is not whole.
    """
    removing.require_absent(path)
    descriptor = disk.open_unnamed(path.parent)
    if descriptor is None:
        with _named(path) as file:
            yield file
        return
    with disk.naming(path), os.fdopen(descriptor, "r+b") as file:
        yield file
        file.flush()
        disk.sync_descriptor(file.fileno())
        try:
            disk.link_unnamed(file.fileno(), path)
        except FileExistsError as error:
            raise removing.taken(path) from error
    removing.published(path)
    disk.sync_folder(path.parent)


@contextmanager
def _named(path: Path) -> Iterator[BinaryIO]:
    partial = path.with_name(f".{path.name}.partial")
    try:
        file = partial.open("x+b")
    except FileExistsError as error:
        raise InputError(
            f"{partial}: is there already: what a stopped call has left of {path.name}, or a file of yours; "
            f"remove it or move it away, then run the same again"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({error.strerror}); give another place") from error
    own = os.fstat(file.fileno())
    mine = Proof("what this call writes", lambda found: os.path.samestat(os.lstat(found), own))
    try:
        with disk.naming(path), file:
            yield file
            file.flush()
            disk.sync_descriptor(file.fileno())
        removing.give_name(partial, path)
        removing.published(path)
        disk.sync_folder(path.parent)
    finally:
        removing.remove(partial, mine)


def write_new(path: Path, content: bytes) -> None:
    """Put a file with this content at ``path``, durably, whole or not at all.

    Raises:
        InputError: when the name is taken.
    """
    with new_file(path) as file:
        file.write(content)


@contextmanager
def new_version(path: Path, proof: Proof) -> Iterator[BinaryIO]:
    """A file that takes the place of the one at ``path`` when the context ends without an error, durably.

    A crash leaves the old file or the new one.

    Args:
        path: where.
        proof: what of an earlier call it may replace; what this process has written there it may replace anyhow.

    Raises:
        InputError: when another file has the name.
    """
    removing.require(path, proof)
    partial = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    own = Proof("what this call writes", lambda _path: True)  # the random 64 bits are unique
    descriptor = disk.open_unnamed(path.parent)
    try:
        with disk.naming(path), partial.open("xb") if descriptor is None else os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            disk.sync_descriptor(file.fileno())
            if descriptor is not None:
                disk.link_unnamed(descriptor, partial)
        removing.replace(partial, path, proof)
    except BaseException:
        removing.remove(partial, own)
        raise
    removing.published(path)
    disk.sync_folder(path.parent)


def write_over(path: Path, content: bytes, proof: Proof) -> None:
    """Put a file with this content at ``path``, as :func:`new_version` does."""
    with new_version(path, proof) as file:
        file.write(content)
