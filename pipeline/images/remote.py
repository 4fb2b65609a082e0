"""Images at an address: a class folder, or tar shards and Parquet files read by ranges; many requests at a time.

What is at an address is listed once. A file that has changed since, by its ETag, is an error when it is read.
"""

from __future__ import annotations

import errno
import io
import threading
from collections.abc import Iterator, Sequence
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.durable.at_once import AT_ONCE, at_once
from labelstore.durable.http import HttpStorage
from labelstore.durable.hub import HubStorage
from labelstore.durable.objects import ObjectStorage
from labelstore.errors import AddressError, InputError
from labelstore.storage_table import STORAGES, Address, as_typed, no_path
from pipeline.images.class_names import refuse_class_names
from pipeline.images.members import Members
from pipeline.images.source import ImageSource, Listing, Stamp
from pipeline.images.source_table import Request, SourceKind

MOST_FILES = 1_000_000  # of a class folder
WINDOW_BYTES = 4 << 20  # that are read for the headers of a tar
_NUMBER = 2**62


class Tagged(Protocol):
    """Files at an address, each with a tag that changes when its bytes do."""

    @property
    def root(self) -> Address:
        """The address of their folder."""

    def tagged(self, name: str, start: int, stop: int) -> tuple[bytes, str | None]:
        """Bytes ``start`` to ``stop`` of a file, by one request, and its tag; None if it cannot have changed."""


class RemoteFiles:
    """Files at an address that are read by offset: what `Containers` are of files of this machine.

    Args:
        storage: the folder that they are in.
        names: paths in it.
        found: what the listing has of them.

    Attributes:
        paths: their addresses.
        sizes: in bytes, int64 ``[F]``.
        times: a number for the tag of each, int64 ``[F]``.
    """

    def __init__(self, storage: Tagged, names: Sequence[str], found: dict[str, tuple[int, str]]) -> None:
        self._storage, self._names = storage, names
        self._tags = [found[name][1] for name in names]
        self.paths = tuple(f"{storage.root}/{name}" for name in names)
        self.sizes: npt.NDArray[np.int64] = np.array([found[name][0] for name in names], np.int64)
        self.times: npt.NDArray[np.int64] = np.array([_number(tag) for tag in self._tags], np.int64)
        self._windows: dict[int, tuple[int, bytes]] = {}
        self._lock = threading.Lock()

    def read(self, file: int, offset: int, count: int) -> bytes:
        """``count`` bytes of a file, by one request.

        Raises:
            OSError: they cannot be read, or are not those of the file that was listed.
        """
        try:
            data, tag = self._storage.tagged(self._names[file], offset, offset + count)
        except AddressError as error:
            raise OSError(errno.EIO, str(error)) from error
        if tag not in (None, self._tags[file]) or len(data) != count:
            raise OSError(errno.EIO, "the file has changed since it was listed")
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
        """The number of the listed file; changes are detected when it is read."""
        return int(self.times[file])

    def opened(self, file: int) -> BinaryIO:
        """A file that can be read and sought in."""
        return io.BufferedReader(_Raw(self, file))


class _Raw(io.RawIOBase):
    """A file at an address as one of Python."""

    def __init__(self, files: RemoteFiles, file: int) -> None:
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


class RemoteFolder:
    """A class folder at an address, each image a file: an `ImageSource`."""

    def __init__(self, path: Path, request: Request) -> None:
        """List the files below an address.

        Raises:
            InputError: there are no classes, or far too many files.
            AddressError: the address cannot be read.
        """
        refuse_class_names(path, request.class_names)
        storage = listed_storage(path)
        found = storage.tags(MOST_FILES + 1)
        if not found:
            raise InputError(
                f"--images {storage.root}: expected a class folder, found no file there; check the address"
            )
        if len(found) > MOST_FILES:
            raise InputError(
                f"--images {storage.root}: expected at most {MOST_FILES:,} files, found more: listing them takes "
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
        self._files = RemoteFiles(storage, names, found)
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
        """Size and number of the file that was listed."""
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


FOLDER_KIND = SourceKind(lambda _path: False, RemoteFolder)  # any address may be one


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


def listed_storage(path: Path) -> ObjectStorage | HubStorage:
    """The storage that lists and reads the files below an address.

    Raises:
        InputError: nothing lists it, or the library for it is missing.
        AddressError: it cannot be read.
    """
    storage = storage_of(path)
    if isinstance(storage, HttpStorage):
        raise InputError(
            f"--images {printable(str(storage.root))}: expected the names of tar or Parquet files, since a web server "
            f"lists none; write them out, such as https://HOST/FOLDER/shard-{{000..009}}.tar"
        )
    return storage


def storage_of(path: Path) -> ObjectStorage | HubStorage | HttpStorage:
    """The storage that reads the files below an address; of a hub, their current revision.

    Raises:
        InputError: nothing does, or the library for it is missing.
        AddressError: it cannot be read.
    """
    address = Address(as_typed(path))
    if address.scheme not in STORAGES:
        raise InputError(f"--images {no_path(str(address), STORAGES)}")
    storage = STORAGES[address.scheme](address)
    if isinstance(storage, HubStorage):
        return storage.pinned()
    assert isinstance(storage, ObjectStorage | HttpStorage)  # noqa: S101  as the table has them
    return storage


def _number(tag: str) -> int:
    """A number for a tag."""
    return int.from_bytes(sha256(tag.encode()).digest()[:8], "little") % _NUMBER
