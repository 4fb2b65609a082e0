"""Put files into a store durably, whole, and without overwriting.

A file is written aside, read back and compared, flushed, then linked under its name, which fails when the name is
taken; then the folder is flushed. A reader sees all of a file or none of it, and so does whoever comes after a
power failure.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash

from labelstore import disk
from labelstore.errors import DamagedError, InputError, LeaseError

PARTIAL = ".partial"
# What file systems say that have no hard links, no more of them to a file, or none between folders.
NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV}


class FileEntry(NamedTuple):
    """What is known of a published file.

    Every inner chunk of a shard ends in its own CRC-32C, which brings the CRC-32C of the file back to a constant:
    it finds a changed byte, but is the same for all shards whose chunks have the same lengths. The digest tells
    one shard from another.
    """

    bytes: int
    crc32c: int
    xxh3: str


def describe(pieces: Iterable[disk.Bytes]) -> FileEntry:
    """Size, CRC-32C and XXH3-64 (hex) of the bytes of a file."""
    size = crc = 0
    digest = xxhash.xxh3_64()
    for piece in pieces:
        size += len(piece)
        crc = disk.crc32c(piece, crc)
        digest.update(piece if isinstance(piece, bytes) else piece.data)
    return FileEntry(size, crc, digest.hexdigest())


class Described(NamedTuple):
    """The bytes of a file in pieces, and what is known of them."""

    pieces: Sequence[disk.Bytes]
    entry: FileEntry

    @classmethod
    def of(cls, *pieces: disk.Bytes) -> Described:
        """Describe the pieces."""
        return cls(pieces, describe(pieces))


def publish(root: Path, files: Mapping[str, Described]) -> None:
    """Publish files under their paths relative to the store ``root``.

    Raises:
        LeaseError: when one of the names is taken.
        DamagedError: when a file does not read back as it was described.
    """
    folders = list(dict.fromkeys((root / name).parent for name in files))
    staged = {name: _stage(root, name, file) for name, file in files.items()}
    with ThreadPoolExecutor(len(files)) as pool:  # flushed together, files share the disk's waits
        list(pool.map(disk.sync_file, staged.values()))
        for name, temporary in staged.items():
            link(root, temporary, name)
        list(pool.map(disk.sync_folder, folders))


def link(root: Path, temporary: Path, name: str) -> None:
    """Give a file that was written aside its name; every link of a store is made here.

    Raises:
        LeaseError: when the name is taken.
        InputError: when the file system refuses hard links.
    """
    try:
        disk.link(temporary, root / name)
    except FileExistsError as error:
        raise LeaseError(
            f"{root / name} exists already, so another process is writing this store; "
            f"stop all builds of it, then run one again"
        ) from error
    except OSError as error:
        if error.errno not in NO_LINKS:
            raise
        raise InputError(
            f"{root}: this file system refused a hard link ({error}); "
            f"build the store on a local file system that has them and copy it when it is finished"
        ) from error
    disk.unlink(temporary)


def replace(root: Path, name: str, data: bytes) -> None:
    """Replace a file of the store in one step, durably."""
    temporary = _stage(root, name, Described.of(data))
    disk.sync_file(temporary)
    disk.replace(temporary, root / name)
    disk.sync_folder((root / name).parent)


def _stage(root: Path, name: str, file: Described) -> Path:
    """Write a file aside and check it."""
    temporary = root / PARTIAL / name.replace("/", "~")
    disk.unlink(temporary)
    disk.write_file(temporary, *file.pieces)
    found = 0
    for piece in disk.read_pieces(temporary):
        found = disk.crc32c(piece, found)
    if found != file.entry.crc32c:
        raise DamagedError(
            f"{temporary}: wrote bytes with CRC-32C {file.entry.crc32c}, read back {found}; "
            f"check this disk and this machine's memory"
        )
    return temporary
