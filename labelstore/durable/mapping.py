"""Files mapped into memory, read-only, without a descriptor each.

Python's own maps keep a descriptor for as long as they live, of which a process has 1,024 or fewer.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref

import numpy as np
import numpy.typing as npt

FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]


class _Map:
    """Keeps the map of an array's bytes alive; it is unmapped when no array refers to it."""

    def __init__(self, descriptor: int, size: int) -> None:
        address = _libc.mmap(None, size, mmap.PROT_READ, mmap.MAP_SHARED, descriptor, 0)
        if address == FAILED:
            number = ctypes.get_errno()
            raise OSError(number, f"{os.strerror(number)} while mapping {size} bytes")
        gone = weakref.finalize(self, _libc.munmap, address, size)
        gone.atexit = False  # other threads may still read then
        self.__array_interface__ = {"version": 3, "typestr": "|u1", "shape": (size,), "data": (address, True)}


def map_bytes(descriptor: int, size: int) -> npt.NDArray[np.uint8]:
    """The first ``size`` bytes of an open file, uint8 ``[size]``, read-only; the descriptor may be closed.

    A file that is truncated while its map is read kills the process (SIGBUS), so readers check its size first.

    Raises:
        OSError: when the system has no room for another map.
    """
    return np.asarray(_Map(descriptor, size)) if size else np.empty(0, np.uint8)
