"""Digests of images: of a manifest, which images in which order of which classes (P3); of the images of a block."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

HASHED_AT_ONCE = 1 << 20


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
    """UTF-8 after its length as a little-endian uint32."""
    data = text.encode()
    return len(data).to_bytes(4, "little") + data


def images_digest(images: npt.NDArray[np.integer[Any]]) -> str:
    """Digest of the images that a block shows, in any order, hex.

    Digests of the blocks of some views add up, modulo 2^64, to :func:`whole_digest` where every view shows every image
    once, and to another number otherwise, but for one case in 2^64 or so: the sum of a hash of each image (the
    finaliser of SplitMix64, Steele et al. 2014), each view weighted by a different odd number.

    Args:
        images: image index at each position of each view, ``[v, p]``.
    """
    return f"{_weigh(_hash(images.astype(np.uint64)).sum(axis=1, dtype=np.uint64)):016x}"


def whole_digest(images: int, views: int) -> str:
    """The sum of the digests of all blocks of ``views`` views of N images, hex."""
    total = np.uint64(0)
    with np.errstate(over="ignore"):
        for start in range(0, images, HASHED_AT_ONCE):
            part = np.arange(start, min(start + HASHED_AT_ONCE, images), dtype=np.uint64)
            total += _hash(part).sum(dtype=np.uint64)
    return f"{_weigh(np.full(views, total)):016x}"


def add_digests(digests: Iterable[str]) -> str:
    """The sum of digests modulo 2^64, hex."""
    return f"{sum(int(digest, 16) for digest in digests) % 2**64:016x}"


def _weigh(sums: npt.NDArray[np.uint64]) -> int:
    """The weighted sum of the sums of some views."""
    weights = _hash(np.arange(1, len(sums) + 1, dtype=np.uint64)) | np.uint64(1)
    return int((sums * weights).sum(dtype=np.uint64))


def _hash(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """SplitMix64's output for each state."""
    mixed = numbers + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))
