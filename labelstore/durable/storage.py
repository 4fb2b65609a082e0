"""Storages from which stores are read: all reading goes through :class:`ReadStorage`; writing is local.

Files are named by their paths relative to the store, with ``/``. Requests are few, and by ranges: a document is one
request, a shard is mapped once, and a folder is listed only for blocks that are not sealed yet.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from labelstore.durable import disk
from labelstore.durable.mapping import map_bytes
from labelstore.errors import DamagedError, InputError
from labelstore.storage_table import STORAGES, Address, no_path, scheme_of

PIECE_BYTES = 8 << 20
Range = tuple[int, int]  # first byte, and the one after the last


@dataclass(frozen=True, slots=True)
class Mapped:
    """Bytes of a file that can be read in any order.

    Attributes:
        data: uint8 ``[n]``, read-only; a map of the file, or a copy of its bytes.
        size: bytes that the file has now, FileNotFoundError if it is gone. A local file that was cut must not be read
            through its map: the system ends a process that does. Of a copy, the size that the file had.
        held: bytes of memory that it takes; 0 of a map.
        fetch: if ``data`` is filled on demand, the function that fills some ranges of it, once more if its second
            argument is true; AddressError or FileNotFoundError when they cannot be read. None if all of it is there.
    """

    data: npt.NDArray[np.uint8]
    size: Callable[[], int]
    held: int = 0
    fetch: Callable[[Sequence[Range], bool], None] | None = None

    @classmethod
    def of(cls, data: bytes, size: int) -> Mapped:
        """A copy of the first bytes of a file of ``size`` bytes."""
        return cls(np.frombuffer(data, np.uint8), lambda: size, held=len(data))


class ReadStorage(Protocol):
    """The files of a store, read-only. Threads share one; processes get a pickled copy.

    Every method raises FileNotFoundError for what is not there.
    """

    @property
    def root(self) -> Path:
        """The place of the store, for errors."""
        ...

    def size(self, name: str) -> int:
        """Bytes of a file."""
        ...

    def read(self, name: str, start: int, stop: int) -> bytes:
        """Bytes ``start`` to ``stop`` of a file; fewer where the file ends before."""
        ...

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """Several ranges of a file, as :meth:`read` gives each."""
        ...

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:
        """The first ``size`` bytes of a file, fewer where it ends before; a map, or a copy in memory.

        ``digest`` is its XXH3-64 (hex), where that is known: bytes may be kept by it.
        """
        ...

    def list(self, folder: str) -> list[str]:
        """Names of the files and folders in a folder, in any order."""
        ...

    def read_ahead(self, name: str) -> bool:
        """Prepare for :meth:`map`, in a separate thread; returns whether that was done.

        Where it was not, a reader that will need a file maps it ahead.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalStorage:
    """A store in a folder of this machine. Symbolic links in it are refused.

    Args:
        root: the folder.
    """

    root: Path

    def size(self, name: str) -> int:
        """As of :class:`ReadStorage`; DamagedError for what is no regular file, and so for all methods."""
        descriptor = disk.open_file(self.root / name)
        try:
            return os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)

    def read(self, name: str, start: int, stop: int) -> bytes:
        """As of :class:`ReadStorage`."""
        (data,) = self.read_many(name, [(start, stop)])
        return data

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        """As of :class:`ReadStorage`; the file is opened once."""
        found = []
        with os.fdopen(disk.open_file(self.root / name), "rb") as file:
            size = os.fstat(file.fileno()).st_size
            for start, stop in ranges:
                file.seek(start)
                found.append(file.read(max(min(stop, size) - start, 0)))
        return found

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:  # noqa: ARG002  of the protocol
        """As of :class:`ReadStorage`: a map of the file, without a descriptor."""
        path = self.root / name
        descriptor = disk.open_file(path)
        try:
            found = os.fstat(descriptor).st_size
            with disk.naming(path):
                return Mapped(map_bytes(descriptor, min(found, size)), partial(_size, str(path)))
        finally:
            os.close(descriptor)

    def list(self, folder: str) -> list[str]:
        """As of :class:`ReadStorage`."""
        return os.listdir(self.root / folder)  # noqa: PTH208  names, not paths

    def read_ahead(self, name: str) -> bool:
        """As of :class:`ReadStorage`: the system reads the file into its cache."""
        disk.read_ahead(self.root / name)
        return True


def storage_at(place: Path | str) -> ReadStorage:
    """The storage of a path, or of an address whose scheme is in `STORAGES`.

    Raises:
        InputError: when nothing reads addresses of its scheme.
    """
    scheme = scheme_of(place)
    if scheme is None:
        return LocalStorage(Path(place))
    address = Address(place)
    if scheme not in STORAGES:
        raise InputError(no_path(str(address), STORAGES))
    made: ReadStorage = STORAGES[scheme](address)
    return made


def read_whole(storage: ReadStorage, name: str, limit: int) -> bytes:
    """The bytes of a file of at most ``limit`` bytes, in one request.

    Raises:
        DamagedError: when it has more.
    """
    data = storage.read(name, 0, limit + 1)
    if len(data) > limit:
        raise DamagedError(f"{storage.root / name}: expected at most {limit} bytes, found {storage.size(name)}")
    return data


def read_pieces(storage: ReadStorage, name: str) -> Iterator[bytes]:
    """The bytes of a file, some megabytes at a time."""
    size = storage.size(name)
    for start in range(0, size, PIECE_BYTES):
        yield storage.read(name, start, min(start + PIECE_BYTES, size))


def names_in(storage: ReadStorage, folder: str, suffix: str) -> list[str]:
    """Names in a folder that end in ``suffix``, without it; empty if there is no such folder."""
    try:
        return [name.removesuffix(suffix) for name in storage.list(folder) if name.endswith(suffix)]
    except FileNotFoundError:
        return []


def _size(path: str) -> int:
    return os.stat(path).st_size  # noqa: PTH116  half the time of Path.stat
