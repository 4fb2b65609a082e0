"""Counter-based random numbers: each depends only on its key and its counters (P1).

The generator is Philox4x32-10 (Salmon et al. 2011). A key is the hash of a tuple that starts with what the
numbers are for, so their sequences never overlap; the counters are the image or group, and the attempt.
"""

from __future__ import annotations

import hashlib
import struct
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

Key: TypeAlias = tuple[int, int]
Words: TypeAlias = npt.NDArray[np.uint32]
Counters: TypeAlias = npt.NDArray[np.integer]
Floats: TypeAlias = npt.NDArray[np.float64]
_Wide: TypeAlias = npt.NDArray[np.uint64] | np.uint64  # 32-bit words with room for a product

CHUNK = 8_192  # counters worked on at a time: the intermediate arrays stay in the second-level cache
_MASK, _HALF = np.uint64(0xFFFFFFFF), np.uint64(32)
_MULTIPLIERS = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_ZERO = np.uint64(0)
_WEYL = np.uint64(0x9E3779B9), np.uint64(0xBB67AE85)


def key(purpose: str, *numbers: int) -> Key:
    """The key of a tuple: BLAKE2b-64 of the purpose and the decimal numbers, length-prefixed."""
    digest = hashlib.blake2b(digest_size=8)
    for part in (purpose, *map(str, numbers)):
        encoded = part.encode()
        digest.update(len(encoded).to_bytes(8, "little") + encoded)
    low, high = struct.unpack("<II", digest.digest())
    return low, high


def philox(key: Key, *counters: Counters | int) -> Words:
    """Four random words for each counter.

    Args:
        key: from `key`.
        counters: one to four, below 2**32: arrays ``[n]`` or plain numbers; those left out are 0.

    Returns:
        uint32 ``[4, n]`` (n = 1 when all counters are plain numbers).
    """
    count = max((len(counter) for counter in counters if isinstance(counter, np.ndarray)), default=1)
    words = np.empty((4, count), np.uint32)
    for start in range(0, count, CHUNK):
        part = slice(start, start + CHUNK)
        chunk = [c[part].astype(np.uint64) if isinstance(c, np.ndarray) else np.uint64(c) for c in counters]
        for row, word in zip(words, _rounds(key, *chunk), strict=True):
            row[part] = word
    return words


def _rounds(
    key: Key, c0: _Wide, c1: _Wide = _ZERO, c2: _Wide = _ZERO, c3: _Wide = _ZERO
) -> tuple[_Wide, _Wide, _Wide, _Wide]:
    """The ten rounds; numbers stay numbers until they meet an array."""
    k0, k1 = map(np.uint64, key)
    for _ in range(10):
        low, high = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c2 = (high >> _HALF) ^ c1 ^ k0, (low >> _HALF) ^ c3 ^ k1
        c1, c3 = high & _MASK, low & _MASK
        k0, k1 = (k0 + _WEYL[0]) & _MASK, (k1 + _WEYL[1]) & _MASK
    return c0, c1, c2, c3


def uniform(words: Words) -> Floats:
    """Random words as numbers strictly between 0 and 1, float64, in steps of 2**-32."""
    return (words.astype(np.float64) + 0.5) * 2.0**-32


def integers(words: Words, bound: Counters | Floats | int) -> npt.NDArray[np.uint64]:
    """Random words as integers ``0 <= i < bound``, uint64; ``bound`` is whole and at most 2**32."""
    return words.astype(np.uint64) * np.asarray(bound, np.uint64) >> _HALF


def permutation(key: Key, length: int) -> npt.NDArray[np.int64]:
    """A permutation of ``range(length)``, int64 ``[length]``."""
    order: npt.NDArray[np.int64] = permutations(key, np.zeros(1, np.int64), length)[0]
    return order


def permutations(key: Key, rows: Counters, length: int) -> npt.NDArray[np.int64]:
    """One permutation of ``range(length)`` for each row number: int64 ``[len(rows), length]``.

    Sorts random 64-bit keys, equal keys by index.
    """
    pairs = -(-length // 2)
    words = philox(key, np.tile(np.arange(pairs), len(rows)), np.repeat(rows, pairs)).astype(np.uint64)
    keys = np.stack([words[0] << _HALF | words[1], words[2] << _HALF | words[3]], axis=1)
    keys = keys.reshape(len(rows), 2 * pairs)[:, :length]
    order = np.argsort(keys, axis=1)
    ranked = np.take_along_axis(keys, order, axis=1)
    if (ranked[:, 1:] == ranked[:, :-1]).any():  # argsort is several times faster when it need not be stable
        order = np.argsort(keys, axis=1, kind="stable")
    return order


def beta(key: Key, alpha: float, counters: Counters) -> Floats:
    """Beta(alpha, alpha) for each counter, float64 ``[n]`` in [0, 1]; ``alpha`` is positive."""
    if alpha == 1:
        return uniform(philox(key, counters)[0])
    log_odds = _log_gamma(key, alpha, counters, 0) - _log_gamma(key, alpha, counters, 1)
    return 1 / (1 + np.exp(-np.clip(log_odds, -700, 700)))


def _log_gamma(key: Key, shape: float, counters: Counters, which: int) -> Floats:
    """Logarithms of Gamma(shape) variates by Marsaglia and Tsang (2000), one Philox block an attempt.

    Logarithms, because a small shape puts most variates below the smallest float64.
    """
    boosted = shape if shape >= 1 else shape + 1
    d = boosted - 1 / 3
    result = np.empty(len(counters))
    pending = np.arange(len(counters))
    attempt = 0
    while len(pending):
        u = uniform(philox(key, counters[pending], attempt, which))
        normal = np.sqrt(-2 * np.log(u[0])) * np.cos(2 * np.pi * u[1])
        root = 1 + normal / np.sqrt(9 * d)
        log_v = 3 * np.log(np.maximum(root, np.finfo(np.float64).tiny))
        accepted = (root > 0) & (np.log(u[2]) < normal**2 / 2 + d * (1 - root**3 + log_v))
        boost = np.log(u[3]) / shape if shape < 1 else 0.0
        result[pending[accepted]] = (np.log(d) + log_v + boost)[accepted]
        pending = pending[~accepted]
        attempt += 1
    return result
