"""The manifest cache: a file beside the store with the results of reading each image."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.durable.newfile import new_version
from labelstore.durable.removing import Proof, may_go
from labelstore.storage_table import as_typed, scheme_of
from pipeline.images.decodes import judge
from pipeline.images.source import Listing

_VERSION = 2


@dataclass(frozen=True, eq=False)
class ImageRows:
    """The results of reading each of N images.

    Attributes:
        heights: in pixels, after EXIF orientation, int32 ``[N]``; 0 if nothing has been read yet.
        widths: likewise.
        digests: SHA-256 of each image's bytes, uint8 ``[N, 32]``; zeros where it was not computed.
        decoded: whether the image was found to decode, bool ``[N]``; where it is not, the other arrays mean nothing.
    """

    heights: npt.NDArray[np.int32]
    widths: npt.NDArray[np.int32]
    digests: npt.NDArray[np.uint8]
    decoded: npt.NDArray[np.bool_]

    @classmethod
    def empty(cls, count: int) -> ImageRows:
        """Rows of ``count`` images of which nothing has been read."""
        return cls(
            heights=np.zeros(count, np.int32),
            widths=np.zeros(count, np.int32),
            digests=np.zeros((count, 32), np.uint8),
            decoded=np.zeros(count, np.bool_),
        )

    def arrays(self) -> tuple[npt.NDArray[np.generic], ...]:
        """All arrays, in the order of the attributes."""
        return self.heights, self.widths, self.digests, self.decoded


def cache_in(folder: Path, images: Path) -> Path:
    """The cache of some images in a folder that may hold those of others; its name does not show where they are."""
    place = str(as_typed(images) if scheme_of(images) else images.absolute())
    return folder / f"images-{hashlib.sha256(os.fsencode(place)).hexdigest()[:16]}.npz"


def load(cache: Path, listing: Listing) -> tuple[ImageRows, npt.NDArray[np.uint8]]:
    """Load the rows of the listed images from ``cache``.

    A cache that is absent, damaged or of another version is ignored, and so is one made with another version of Pillow,
    by which other images may decode.

    Returns:
        Rows; of images with the same name, size and stamp in a source at the same location they are filled.
        And the SHA-256 of every content that was found to decode, wherever it was, uint8 ``[n, 32]``.
    """
    rows = ImageRows.empty(len(listing.names))
    try:
        location, paths, sizes, stamps, stored = _read(cache)
    except Exception:  # whatever damaged bytes lead to, the images themselves can be read
        return rows, rows.digests[:0]
    decoded = stored.digests[stored.decoded & stored.digests.any(axis=1)]
    if location != _location_digest(listing):
        return rows, decoded
    if paths == _joined(listing.names):
        place = np.arange(len(listing.names))
    else:
        table = {name: index for index, name in enumerate(paths.decode().split("\0"))}
        place = np.array([table.get(name, -1) for name in listing.names], np.int64)
    same = (place >= 0) & (sizes[place] == listing.sizes) & (stamps[place] == listing.stamps)
    for ours, theirs in zip(rows.arrays(), stored.arrays(), strict=True):
        ours[same] = theirs[place[same]]
    return rows, decoded


def _read(cache: Path) -> tuple[bytes, bytes, npt.NDArray[np.int64], npt.NDArray[np.int64], ImageRows]:
    """Digest of the location, joined names, sizes, stamps and rows of a cache; any exception when it is not one."""
    with cache.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
        if file["version"] != _VERSION or bytes(file["judge"]).decode() != judge():
            raise ValueError("of another version, or other versions of what decodes")
        location = bytes(file["root"])
        sizes, stamps, paths = file["sizes"], file["mtimes"], file["paths"].tobytes()
        rows = ImageRows(file["heights"], file["widths"], file["digests"], file["decoded"])
    count = paths.count(b"\0") + 1
    numbers = np.empty(count, np.int64)
    expected = (numbers, numbers, *ImageRows.empty(count).arrays())
    for found, wanted in zip((sizes, stamps, *rows.arrays()), expected, strict=True):
        if (found.dtype, found.shape) != (wanted.dtype, wanted.shape):
            raise ValueError("arrays of other types or lengths")
    paths.decode()
    return location, paths, sizes, stamps, rows


def _joined(names: Sequence[str]) -> bytes:
    """All names in one string, which takes far less memory than a million strings."""
    return "\0".join(names).encode(errors="surrogatepass")


def save(cache: Path, listing: Listing, rows: ImageRows) -> None:
    """Replace ``cache`` by these rows in one step.

    A folder that cannot be written, or another file of that name, is no error: the next command reads all images again.
    """
    if is_foreign(cache):
        return
    with suppress(OSError):
        cache.parent.mkdir(parents=True, exist_ok=True)
        with new_version(cache, CACHE) as file:
            np.savez(
                file,
                version=np.array(_VERSION),
                root=np.frombuffer(_location_digest(listing), np.uint8),
                judge=np.frombuffer(judge().encode(), np.uint8),
                paths=np.frombuffer(_joined(listing.names), np.uint8),
                sizes=listing.sizes,
                mtimes=listing.stamps,
                heights=rows.heights,
                widths=rows.widths,
                digests=rows.digests,
                decoded=rows.decoded,
            )


def is_foreign(cache: Path) -> bool:
    """Whether something else than a cache has the name of one; it is never overwritten."""
    return not may_go(cache, CACHE)


def _is_cache(path: Path) -> bool:
    """Whether a file begins as caches of every version do; a file that is damaged after that is one too."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"PK\3\4") and head[30:41] == b"version.npy" and b"root.npy" in head


CACHE = Proof("a cache of images", _is_cache)


def _location_digest(listing: Listing) -> bytes:
    """Digest of the location of the images, which does not reveal their path."""
    return hashlib.sha256(os.fsencode(listing.location)).digest()
