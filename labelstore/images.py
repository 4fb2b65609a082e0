"""The digest of a manifest: which images, in which order, of which classes (P3)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt


def manifest_digest(
    classes: Sequence[str], targets: npt.NDArray[np.integer[Any]], digests: npt.NDArray[np.uint8]
) -> str:
    """SHA-256 of the (class name, image digest) rows in order, hex; paths do not enter it.

    Args:
        classes: names, by target.
        targets: class of each image ``[N]``.
        digests: SHA-256 of each image's file, uint8 ``[N, 32]``.
    """
    prefixes = [_field(name) for name in classes]
    whole = hashlib.sha256()
    starts = np.flatnonzero(np.diff(targets.astype(np.int64), prepend=-1, append=-1))
    for start, stop in pairwise(starts):
        prefix = prefixes[targets[start]]
        rows = np.empty((stop - start, len(prefix) + 32), np.uint8)
        rows[:, : len(prefix)] = np.frombuffer(prefix, np.uint8)
        rows[:, len(prefix) :] = digests[start:stop]
        whole.update(rows.tobytes())
    return whole.hexdigest()


def _field(text: str) -> bytes:
    """UTF-8 behind its length as a little-endian uint32."""
    data = text.encode()
    return len(data).to_bytes(4, "little") + data
