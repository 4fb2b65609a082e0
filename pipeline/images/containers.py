"""Files that contain many images, read by offset from several threads; changes are detected."""

from __future__ import annotations

import errno
import os
import stat
import threading
import weakref
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.errors import InputError

_KEPT_OPEN = 256  # files; others are opened for each read, since the number of open files is limited


class Containers:
    """The files of a source, as they were when it was opened.

    Attributes:
        paths: of the files.
        sizes: in bytes, int64 ``[F]``.
        times: modification times in ns, int64 ``[F]``.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        """Get the status of the files; nothing is read.

        Raises:
            InputError: when a file is missing or not a regular file.
        """
        self.paths = tuple(paths)
        found = [self._status(path) for path in self.paths]
        self.sizes: npt.NDArray[np.int64] = np.array([status.st_size for status in found], np.int64)
        self.times: npt.NDArray[np.int64] = np.array([status.st_mtime_ns for status in found], np.int64)
        self._open: dict[int, int] = {}
        self._lock = threading.Lock()
        weakref.finalize(self, _close, self._open)

    @staticmethod
    def _status(path: str) -> os.stat_result:
        try:
            status = os.stat(path)  # noqa: PTH116  (thousands of them)
        except OSError as error:
            raise InputError(f"{printable(path)}: cannot be reached ({error.strerror}); check the path") from error
        if not stat.S_ISREG(status.st_mode):
            raise InputError(f"{printable(path)}: expected a file, found something else")
        return status

    def read(self, file: int, offset: int, count: int) -> bytes:
        """``count`` bytes of a file, with one system call.

        Raises:
            OSError: when they cannot be read, or the file is too short.
        """
        descriptor = self._open.get(file)
        if descriptor is None:
            descriptor = self._keep(file)
        if descriptor is None:
            descriptor = os.open(self.paths[file], os.O_RDONLY | os.O_CLOEXEC)
            try:
                return _pread(descriptor, offset, count)
            finally:
                os.close(descriptor)
        return _pread(descriptor, offset, count)

    def _keep(self, file: int) -> int | None:
        """The descriptor of a file that is kept open; None if enough files are."""
        with self._lock:
            if file not in self._open and len(self._open) < _KEPT_OPEN:
                self._open[file] = os.open(self.paths[file], os.O_RDONLY | os.O_CLOEXEC)
            return self._open.get(file)

    near = read

    def opened(self, file: int) -> BinaryIO:
        """A file, which the caller closes."""
        return open(self.paths[file], "rb")  # noqa: PTH123

    def stamp(self, file: int) -> int:
        """The current modification time of a file in ns; -1 if its size has changed since it was opened."""
        status = os.stat(self.paths[file])  # noqa: PTH116  (for each image)
        return status.st_mtime_ns if status.st_size == int(self.sizes[file]) else -1


def _pread(descriptor: int, offset: int, count: int) -> bytes:
    """So many bytes at an offset."""
    data = os.pread(descriptor, count, offset)
    while len(data) < count:
        more = os.pread(descriptor, count - len(data), offset + len(data))
        if not more:
            raise OSError(errno.EIO, "its file ends before it does")
        data += more
    return data


def _close(descriptors: dict[int, int]) -> None:
    for descriptor in descriptors.values():
        os.close(descriptor)
