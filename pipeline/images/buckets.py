"""Images in a bucket: a class folder of objects, or tar shards that are read by ranges; many requests at a time.

What is at an address is listed once. An object that has changed since, by its ETag, is an error when it is read.
"""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatchcase
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from labelstore.command.names import natural_key, printable
from labelstore.durable.at_once import AT_ONCE, at_once
from labelstore.durable.objects import ObjectStorage
from labelstore.errors import AddressError, InputError
from labelstore.storage_table import Address, as_typed
from pipeline.images.class_names import refuse_class_names
from pipeline.images.members import Members
from pipeline.images.opening import Request, SourceKind
from pipeline.images.source import ImageSource, Listing, Stamp

MOST_OBJECTS = 1_000_000  # of a class folder
WINDOW_BYTES = 4 << 20  # that are read for the headers of a tar
_NUMBER = 2**62


class BucketFiles:
    """Objects that are read by offset: what `Containers` are of files.

    Args:
        root: the address of the folder that they are in.
        names: paths in it.
        found: what the listing has of them.

    Attributes:
        paths: their addresses.
        sizes: in bytes, int64 ``[F]``.
        times: a number for the ETag of each, int64 ``[F]``.
    """

    def __init__(self, storage: ObjectStorage, names: Sequence[str], found: dict[str, tuple[int, str]]) -> None:
        self._storage, self._names = storage, names
        self._tags = [found[name][1] for name in names]
        self.paths = tuple(f"{storage.root}/{name}" for name in names)
        self.sizes: npt.NDArray[np.int64] = np.array([found[name][0] for name in names], np.int64)
        self.times: npt.NDArray[np.int64] = np.array([_number(tag) for tag in self._tags], np.int64)
        self._windows: dict[int, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def read(self, file: int, offset: int, count: int) -> bytes:
        """``count`` bytes of an object, by one request.

        Raises:
            OSError: they cannot be read, or are not those of the object that was listed.
        """
        try:
            data, tag = self._storage.tagged(self._names[file], offset, offset + count)
        except AddressError as error:
            raise OSError(errno.EIO, str(error)) from error
        if tag != self._tags[file] or len(data) != count:
            raise OSError(errno.EIO, "the object has changed since it was listed")
        return data

    def near(self, file: int, offset: int, count: int) -> bytes:
        """As :meth:`read`, of places that follow each other: megabytes are read at a time."""
        if count >= WINDOW_BYTES:
            return self.read(file, offset, count)
        with self._lock:
            start, window = self._windows.get(file, (0, b""))
            if not start <= offset <= offset + count <= start + len(window):
                size = int(self.sizes[file])
                window = self.read(file, offset, min(WINDOW_BYTES, size - offset)) if offset < size else b""
                start = offset
                self._windows = {file: (start, window)}  # of one file at a time
        return window[offset - start : offset - start + count]

    def stamp(self, file: int) -> int:
        """The number of the object that was listed; that it has not changed is found out by reading it."""
        return int(self.times[file])

    def opened(self, file: int) -> BinaryIO:
        """An object as a seekable file."""
        return io.BufferedReader(_Raw(self, file))


class _Raw(io.RawIOBase):
    """An object as a file."""

    def __init__(self, files: BucketFiles, file: int) -> None:
        self._files, self._file, self._at = files, file, 0
        self._size = int(files.sizes[file])

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size}[whence]
        return self._at

    def readinto(self, buffer: bytearray | memoryview) -> int:  # type: ignore[override]
        count = max(min(len(buffer), self._size - self._at), 0)
        buffer[:count] = self._files.near(self._file, self._at, count)
        self._at += count
        return count


class BucketFolder:
    """A class folder of objects: an `ImageSource`."""

    def __init__(self, path: Path, request: Request) -> None:
        """List the objects below an address.

        Raises:
            InputError: there are no classes, or far too many objects.
            AddressError: the bucket cannot be read.
        """
        refuse_class_names(path, request.class_names)
        storage = storage_of(path)
        found = storage.tags(MOST_OBJECTS + 1)
        if not found:
            raise InputError(
                f"--images {storage.root}: expected a class folder, found no object there; check the address"
            )
        if len(found) > MOST_OBJECTS:
            raise InputError(
                f"--images {storage.root}: expected at most {MOST_OBJECTS:,} objects, found more: listing them takes "
                f"longer than reading them from tar shards; make these with `giftwrap import` and --shards"
            )
        members = Members(printable(str(storage.root)))
        whole = {}
        for name in found:
            if (shown := members.path(name)) and members.is_image(shown, None):
                members.paths.append(shown)
                whole[shown] = name
        members.sort()
        chosen = members.choose("", request.class_order, request.leave_out)
        names = [whole[members.paths[image]] for image in chosen.images.tolist()]
        self._files = BucketFiles(storage, names, found)
        self.listing = Listing(
            location=str(storage.root),
            classes=chosen.classes,
            names=chosen.names,
            targets=chosen.targets,
            sizes=self._files.sizes,
            stamps=self._files.times,
            left_out=members.left_out,
            remote=True,
        )

    def place(self, image: int) -> str:
        """The address of an image."""
        return self._files.paths[image]

    def stamp(self, image: int) -> Stamp:
        """Size and number of the object that was listed."""
        return int(self._files.sizes[image]), self._files.stamp(image)

    def open(self, image: int) -> BytesIO:
        """The image in memory."""
        return BytesIO(self.read(image))

    def read(self, image: int) -> bytes:
        """The bytes of an image."""
        return self._files.read(image, 0, int(self._files.sizes[image]))

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The bytes of some images, many requests at a time."""
        return read_together(self, images)


FOLDER_KIND = SourceKind(lambda _path: False, BucketFolder)  # any address may be one


def read_together(source: ImageSource, images: Sequence[int]) -> Iterator[bytes]:
    """The bytes of some images of a source, many requests at a time; an error is raised in the place of its image."""

    def attempt(image: int) -> bytes | OSError:
        try:
            return source.read(image)
        except OSError as error:
            return error

    for start in range(0, len(images), AT_ONCE):
        for found in at_once(attempt, images[start : start + AT_ONCE]):
            if isinstance(found, OSError):
                raise found
            yield found


def tars_of(path: Path, expanded: Callable[[str], list[str]]) -> BucketFiles:
    """The tars that an address names; ``expanded`` gives the names of a pattern.

    Raises:
        InputError: one is not there.
    """
    address = as_typed(path)
    storage = storage_of(address.parent)
    names = expanded(address.name)
    sizes = storage.tags(None)
    if absent := [name for name in names if name not in sizes]:
        wanted = "an object" if len(names) == 1 else f"{len(names):,} objects"
        raise InputError(
            f"--images {printable(str(address))}: expected {wanted}, {len(absent):,} "
            f"{'is' if len(absent) == 1 else 'are'} not there: {printable(absent[0])}; check the address"
        )
    return BucketFiles(storage, sorted(names, key=natural_key), sizes)


def named_like(path: Path) -> BucketFiles:
    """The objects whose names a pattern matches, such as ``s3://bucket/data/train-*.parquet``, in order.

    Raises:
        InputError: there is none.
    """
    address = as_typed(path)
    storage = storage_of(address.parent)
    found = storage.tags()
    names = [name for name in found if "/" not in name and fnmatchcase(name, address.name)]
    if not names:
        raise InputError(f"--images {printable(str(address))}: expected objects, found none; check the address")
    return BucketFiles(storage, sorted(names, key=natural_key), found)


def storage_of(path: Path) -> ObjectStorage:
    """What reads an address of images.

    Raises:
        InputError: it is none of a bucket.
    """
    address = as_typed(path)
    if not isinstance(address, Address) or address.scheme not in ("s3", "gs", "az"):
        raise InputError(
            f"--images {printable(str(address))}: expected a path on this machine, or images in a bucket (s3://, "
            f"gs://, az://); download these, and give their folder"
        )
    return ObjectStorage(address)


def _number(tag: str) -> int:
    """A number for an ETag."""
    return int.from_bytes(sha256(tag.encode()).digest()[:8], "little") % _NUMBER
