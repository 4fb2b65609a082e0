"""What libjpeg and libpng say on standard error while DALI decodes: heard instead of printed, and taken for a refusal.

They write a line when data are damaged, one for each time that these are decoded, which names no file and reaches the
caller in no other way. They write through C's ``stderr``, which is another stream while somebody listens. Python's own
``sys.stderr`` and file descriptor 2 stay what they are; lines of others are handed on to the latter.
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
    """Hears what is written between `start` and `stop`; several may listen at a time, and all hear the same."""

    def __init__(self) -> None:
        self._since: int | None = None

    def start(self) -> None:
        """Begin to listen."""
        self._since = _ear().open()

    def stop(self) -> bool:
        """Listen no more; whether they wrote anything since `start`."""
        if self._since is None:
            return False
        since, self._since = self._since, None
        return _ear().close(since)


class _Ear:
    """A file in memory that takes the place of C's ``stderr`` while anybody listens."""

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
        """One more listens; the number of bytes heard until now."""
        with self._lock:
            if not self._listeners:
                self._real, self._stderr.value = self._stderr.value, self._stream
            self._listeners += 1
            return os.fstat(self._file).st_size

    def close(self, since: int) -> bool:
        """One less listens; whether the decoders wrote anything behind byte ``since``."""
        with self._lock:
            self._listeners -= 1
            size = os.fstat(self._file).st_size
            heard = os.pread(self._file, size - since, since).splitlines(keepends=True) if size > since else []
            if not self._listeners:
                self._stderr.value = self._real
                if size:
                    self._hand_on(os.pread(self._file, size, 0).splitlines(keepends=True))
                    os.ftruncate(self._file, 0)
            return any(line.startswith(_BEGINNINGS) for line in heard)

    def _hand_on(self, lines: list[bytes]) -> None:
        """Write what others wrote."""
        others = b"".join(line for line in lines if line.strip() and not line.startswith(_BEGINNINGS))
        if others:
            os.write(2, others)


_making = threading.Lock()


def _ear() -> _Ear:
    """The one of this process; made when it is first needed, for where DALI is absent nothing of it may be there."""
    with _making:
        return _made()


@cache
def _made() -> _Ear:
    return _Ear()
