"""Messages of libjpeg and libpng on standard error while DALI decodes: captured, not printed, and treated as an error.

They write a line when data are damaged, one for each time that these are decoded, which names no file and reaches the
caller in no other way. They write through C's ``stderr``, which is replaced by a file in memory while a `Listener` is
started. Python's own ``sys.stderr`` and file descriptor 2 stay what they are; lines of others are passed to the latter.
"""

from __future__ import annotations

import ctypes
import os
import threading
from functools import cache

_NO_BUFFER = 2  # _IONBF of C's setvbuf
_BEGINNINGS = (  # of their messages
    b"Corrupt JPEG data",
    b"Premature end of JPEG file",
    b"Input file read error",
    b"Inconsistent progression sequence",
    b"Invalid SOS parameters",
    b"Unknown Adobe color transform",
    b"Warning: unknown JFIF",
    b"libpng warning:",
    b"libpng error:",
)


class DamagedDataError(RuntimeError):
    """A file was decoded, with a warning that its data are damaged."""


class Listener:
    """Finds out what is written between `start` and `stop`; several may be started at a time, and all find the same."""

    def __init__(self) -> None:
        self._since: int | None = None

    def start(self) -> None:
        """Begin to catch messages."""
        self._since = _capture().open()

    def stop(self) -> bool:
        """End that; whether they wrote anything since `start`."""
        if self._since is None:
            return False
        since, self._since = self._since, None
        return _capture().close(since)


class _Capture:
    """A file in memory that takes the place of C's ``stderr`` while any `Listener` is started."""

    def __init__(self) -> None:
        c = ctypes.CDLL(None)
        c.fdopen.restype, c.fdopen.argtypes = ctypes.c_void_p, [ctypes.c_int, ctypes.c_char_p]
        c.setvbuf.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
        self._file = os.memfd_create("giftwrap-complaints")
        self._stream = c.fdopen(self._file, b"a")
        c.setvbuf(self._stream, None, _NO_BUFFER, 0)
        self._stderr = ctypes.c_void_p.in_dll(c, "stderr")
        self._real: int | None = None
        self._listeners = 0
        self._lock = threading.Lock()

    def open(self) -> int:
        """Add a listener; the number of bytes written so far."""
        with self._lock:
            if not self._listeners:
                self._real, self._stderr.value = self._stderr.value, self._stream
            self._listeners += 1
            return os.fstat(self._file).st_size

    def close(self, since: int) -> bool:
        """Remove a listener; whether the decoders wrote anything after byte ``since``."""
        with self._lock:
            self._listeners -= 1
            size = os.fstat(self._file).st_size
            written = os.pread(self._file, size - since, since).splitlines(keepends=True) if size > since else []
            if not self._listeners:
                self._stderr.value = self._real
                if size:
                    self._pass_on(os.pread(self._file, size, 0).splitlines(keepends=True))
                    os.ftruncate(self._file, 0)
            return any(line.startswith(_BEGINNINGS) for line in written)

    def _pass_on(self, lines: list[bytes]) -> None:
        """Write what others wrote to the real standard error."""
        others = b"".join(line for line in lines if line.strip() and not line.startswith(_BEGINNINGS))
        if others:
            os.write(2, others)


_making = threading.Lock()


def _capture() -> _Capture:
    """The one of this process; made when it is first needed, for where DALI is absent nothing of it may be there."""
    with _making:
        return _made()


@cache
def _made() -> _Capture:
    return _Capture()
