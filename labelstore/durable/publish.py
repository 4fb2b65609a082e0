"""Put files into a store durably, whole, and without overwriting.

A file is written aside, read back and compared, flushed, then linked under its name, which fails when the name is
taken; then the folder is flushed. A reader sees all of a file or none of it, after a
power failure too.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import xxhash

from labelstore.durable import disk, removing
from labelstore.durable.documents import Fields
from labelstore.durable.removing import Proof
from labelstore.errors import DamagedError, InputError, LeaseError
from labelstore.spec import Json

PARTIAL = ".partial"
MAX_FLUSHES = 8
MAX_CRC = 2**32 - 1
XXH3 = re.compile("[0-9a-f]{16}")
# Whatever regular file has the name under which a file is written aside, a stopped writer of it left it.
STAGED = Proof("a temporary of this store", lambda _path: True)


class FileEntry(NamedTuple):
    """The record of a published file.

    The CRC-32C finds changed bytes; the digest distinguishes files. For shards of format 1 the CRC-32C
    does not: every inner chunk ends in its own, which brings that of the file back to a constant.
    """

    bytes: int
    crc32c: int
    xxh3: str
    chunks: str | None = None  # of a shard: XXH3-64 (hex) of its table of chunks; None in format 1

    @classmethod
    def read(cls, fields: Fields, *, chunks: bool) -> FileEntry:
        """From the JSON object of a document; of a shard of format 2 with ``chunks``."""
        entry = cls(
            bytes=fields.integer("bytes"),
            crc32c=fields.integer("crc32c", 0, MAX_CRC),
            xxh3=fields.text("xxh3", XXH3),
            chunks=fields.text("chunks", XXH3) if chunks else None,
        )
        fields.end()
        return entry

    def to_json(self) -> dict[str, Json]:
        """As the JSON object of a document."""
        plain: dict[str, Json] = {"bytes": self.bytes, "crc32c": self.crc32c, "xxh3": self.xxh3}
        return plain if self.chunks is None else {**plain, "chunks": self.chunks}


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
    def of(cls, *pieces: disk.Bytes, chunks: str | None = None) -> Described:
        """Describe the pieces; of a shard, ``chunks`` is the digest of its table of chunks."""
        return cls(pieces, describe(pieces)._replace(chunks=chunks))


def publish(root: Path, files: Mapping[str, Described]) -> None:
    """Publish files under their paths relative to the store ``root``.

    Raises:
        LeaseError: when one of the names is taken.
        DamagedError: when a file does not match its description.
    """
    folders = list(dict.fromkeys((root / name).parent for name in files))
    staged = {name: _stage(root, name, file) for name, file in files.items()}
    with ThreadPoolExecutor(min(len(files), MAX_FLUSHES)) as pool:  # flushed together, files share the disk's waits
        list(pool.map(disk.sync_file, staged.values()))
        for name, temporary in staged.items():
            _link(root, temporary, name)
        list(pool.map(disk.sync_folder, folders))


def _link(root: Path, temporary: Path, name: str) -> None:
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
        if error.errno not in disk.NO_LINKS:
            raise
        raise InputError(
            f"{root}: this file system refused a hard link ({error.strerror}); "
            f"build the store on a local file system that has them and copy it when it is finished"
        ) from error
    removing.remove(temporary, STAGED)


def replace(root: Path, name: str, data: bytes, proof: Proof) -> None:
    """Replace a file of the store in one step, durably.

    Raises:
        InputError: when a file of that name is not proven to be ours.
    """
    removing.require(root / name, proof)
    temporary = _stage(root, name, Described.of(data))
    disk.sync_file(temporary)
    removing.replace(temporary, root / name, proof)
    disk.sync_folder((root / name).parent)


def _stage(root: Path, name: str, file: Described) -> Path:
    """Write a file aside and check it."""
    temporary = root / PARTIAL / name.replace("/", "~")
    removing.remove(temporary, STAGED)
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
