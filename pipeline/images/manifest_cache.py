"""What was read of each image file, kept in one file beside the store, so that it is read once."""

from __future__ import annotations

import hashlib
import os
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.durable.newfile import new_version
from labelstore.durable.removing import Proof, may_go
from pipeline.images.class_folder import Listing
from pipeline.images.decodes import judge

_VERSION = 2


@dataclass(frozen=True, eq=False)
class FileRows:
    """What has been read of each of N files.

    Attributes:
        heights: rows after EXIF orientation, int32 ``[N]``; 0 where nothing has been read yet.
        widths: columns after EXIF orientation, int32 ``[N]``.
        digests: SHA-256 of each file, uint8 ``[N, 32]``; zeros where it was not computed.
        decoded: whether the file is known to decode, bool ``[N]``; where it is not, the other columns mean nothing.
    """

    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]
    decoded: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, count: int) -> FileRows:
        """Rows of ``count`` files of which nothing has been read."""
        return cls(
            heights=np.zeros(count, np.int32),
            widths=np.zeros(count, np.int32),
            digests=np.zeros((count, 32), np.uint8),
            decoded=np.zeros(count, np.bool_),
        )

    def columns(self) -> tuple[npt.NDArray[np.generic], ...]:
        """All columns, in the order of the attributes."""
        return self.heights, self.widths, self.digests, self.decoded


def load(cache: Path, listing: Listing) -> tuple[FileRows, set[bytes]]:
    """What ``cache`` knows of the listed files.

    A cache that is absent, damaged or of another version is ignored, and so is one made with another version of Pillow,
    to which other files may have decoded.

    Returns:
        Rows, those of files with the same path, size and modification time in the same folder; the others are empty.
        And the SHA-256 of every content that is known to decode, wherever it was.
    """
    rows = FileRows.empty(len(listing.paths))
    try:
        root, paths, sizes, mtimes, stored = _read(cache)
    except Exception:  # whatever damaged bytes lead to, the images themselves can be read
        return rows, set()
    hashed = stored.digests[stored.decoded & stored.digests.any(axis=1)]
    decoded = set(map(bytes, hashed))
    if root != _root_digest(listing.root):
        return rows, decoded
    if paths == listing.paths:
        place = np.arange(len(paths))
    else:
        table = {path: index for index, path in enumerate(paths)}
        place = np.array([table.get(path, -1) for path in listing.paths], np.int64)
    same = (place >= 0) & (sizes[place] == listing.sizes) & (mtimes[place] == listing.mtimes)
    for ours, theirs in zip(rows.columns(), stored.columns(), strict=True):
        ours[same] = theirs[place[same]]
    return rows, decoded


def _read(cache: Path) -> tuple[bytes, list[str], npt.NDArray[np.int64], npt.NDArray[np.int64], FileRows]:
    """Root's digest, paths, sizes, modification times and rows of a cache; any exception when it is not one."""
    with cache.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        if file["version"] != _VERSION or bytes(file["judge"]).decode() != judge():
            raise ValueError("of another version, or other versions of what decodes")
        root = bytes(file["root"])
        sizes, mtimes, paths = file["sizes"], file["mtimes"], bytes(file["paths"]).decode().split("\0")
        rows = FileRows(file["heights"], file["widths"], file["digests"], file["decoded"])
    times = np.empty(len(paths), np.int64)
    expected = (times, times, *FileRows.empty(len(paths)).columns())
    for found, wanted in zip((sizes, mtimes, *rows.columns()), expected, strict=True):
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            raise ValueError("columns of other types or lengths")
    return root, paths, sizes, mtimes, rows


def save(cache: Path, listing: Listing, rows: FileRows) -> None:
    """Replace ``cache`` by these rows in one step.

    A folder that cannot be written, or another file of that name, is no error: the next command reads the images again.
    """
    if is_foreign(cache):
        return
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with new_version(cache, CACHE) as file:
            np.savez(
                file,
                version=np.array(_VERSION),
                root=np.frombuffer(_root_digest(listing.root), np.uint8),
                judge=np.frombuffer(judge().encode(), np.uint8),
                paths=np.frombuffer("\0".join(listing.paths).encode(), np.uint8),
                sizes=listing.sizes,
                mtimes=listing.mtimes,
                heights=rows.heights,
                widths=rows.widths,
                digests=rows.digests,
                decoded=rows.decoded,
            )


def is_foreign(cache: Path) -> bool:
    """Whether something else than a cache has the name of one; it is never overwritten."""
    return not may_go(cache, CACHE)


def _is_cache(path: Path) -> bool:
    """Whether a file begins as caches of every version do; what is damaged behind that is one too."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"PK\3\4") and head[30:41] == b"version.npy" and b"root.npy" in head


CACHE = Proof("a cache of images", _is_cache)


def _root_digest(root: Path) -> bytes:
    """Which folder the rows speak of, without telling its path to whoever is given the cache."""
    return hashlib.sha256(os.fsencode(root)).digest()
