"""Arrays in memory, or in a file without a name where they would take more of it than a budget."""

from __future__ import annotations

import math
import os
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt


def zeros(shape: tuple[int, ...], dtype: npt.DTypeLike, budget: int, *, folder: Path | None = None) -> npt.NDArray[Any]:
    """Zeros in memory, or in a mapped file that is gone when they are.

    The pages of a file are the system's to write out and to drop. Its room is taken when it is made, since a process
    that writes to a page for which there is none is ended; where there is none, the array is in memory after all.

    Args:
        shape: of the array.
        dtype: of the array.
        budget: the most bytes of an array in memory.
        folder: of the file; the one for temporary files when None.
    """
    size = math.prod(shape) * np.dtype(dtype).itemsize
    if size <= budget:
        return np.zeros(shape, dtype)
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            os.posix_fallocate(file.fileno(), 0, size)
            return np.memmap(file, dtype, "r+", shape=shape)
    except OSError:  # no room, or no folder for it
        return np.zeros(shape, dtype)
