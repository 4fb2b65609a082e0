"""Label storage of other projects, and the error of their decoded labels."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

CENTROIDS = 256  # one byte a part
ROUNDS = 10
MAX_TRAINED = 8_192
ROWS_AT_ONCE = 1_024
INT4_LARGEST = 7
SMALLEST_SHARE = 1e-8  # of a class beyond the k largest, whose probabilities, rounded, may add up to 1 or more

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


class Stored(NamedTuple):
    """Labels as a rival keeps them.

    Attributes:
        bytes: of a label.
        logits: what they are decoded to, float32 ``[n, C]``.
    """

    bytes: float
    logits: Float32Array


def int4(logits: Float32Array) -> Stored:
    """Four bits a column and a float32 scale, max|x| / 7, a label."""
    scale = np.abs(logits).max(axis=1, keepdims=True) / np.float32(INT4_LARGEST)
    codes = np.rint(logits / np.where(scale > 0, scale, 1))
    return Stored(-(-logits.shape[1] // 2) + 4, (codes * scale).astype(np.float32))


def top_k_logits(logits: Float32Array, k: int) -> Stored:
    """The k largest logits in float16 and their columns in uint16; all others are 0."""
    columns = _largest(logits, k)
    decoded = np.zeros_like(logits)
    np.put_along_axis(decoded, columns, _halves(np.take_along_axis(logits, columns, 1)), 1)
    return Stored(4 * k, decoded)


def top_k_probabilities(logits: Float32Array, k: int) -> Stored:
    """As FKD stores them: the k largest probabilities, float16 and uint16; the others share what is left.

    Decoded to their logarithms, which are logits up to a constant: the one that makes their mean 0 is taken.
    """
    columns = _largest(logits, k)
    kept = _halves(np.take_along_axis(np.exp(log_softmax(logits)), columns, 1))
    others = max(logits.shape[1] - k, 1)
    share = np.maximum((1 - kept.sum(axis=1, keepdims=True)) / others, SMALLEST_SHARE)
    decoded = np.repeat(share, logits.shape[1], axis=1)
    np.put_along_axis(decoded, columns, np.maximum(kept, SMALLEST_SHARE), 1)
    decoded = np.log(decoded)
    return Stored(4 * k, (decoded - decoded.mean(axis=1, keepdims=True)).astype(np.float32))


class ProductQuantiser:
    """A byte for each of several runs of columns: which of 256 centroids is nearest (Jégou et al. 2011).

    Args:
        rows: what the centroids are fitted to, ``[n, C]``.
        parts: runs, and bytes a label.
    """

    def __init__(self, rows: Float32Array, parts: int) -> None:
        if not 0 < parts <= rows.shape[1]:
            raise ValueError(f"expected 1 to {rows.shape[1]} parts, found {parts}")
        edges = np.linspace(0, rows.shape[1], parts + 1).astype(int).tolist()
        self._runs = [slice(start, stop) for start, stop in pairwise(edges)]
        trained = rows[:: -(-len(rows) // MAX_TRAINED)]
        self._books = [k_means(np.ascontiguousarray(trained[:, run]), CENTROIDS) for run in self._runs]

    def stored(self, rows: Float32Array) -> Stored:
        """Rows ``[n, C]``, encoded and decoded; the centroids are not counted."""
        each = [book[nearest(rows[:, run], book)] for run, book in zip(self._runs, self._books, strict=True)]
        return Stored(len(self._runs), np.concatenate(each, axis=1))


def k_means(rows: Float32Array, count: int, rounds: int = ROUNDS) -> Float32Array:
    """At most ``count`` centroids of rows ``[n, d]``, by Lloyd's rounds from rows drawn at random."""
    drawn = np.random.Generator(np.random.Philox(0)).permutation(len(rows))[:count]
    centroids = rows[drawn].copy()
    for _ in range(rounds):
        places = nearest(rows, centroids)
        counts = np.bincount(places, minlength=len(centroids))
        sums = np.stack([np.bincount(places, column, len(centroids)) for column in rows.T], axis=1)
        full = counts > 0  # an empty one stays where it is
        centroids[full] = sums[full] / counts[full, None]
    return centroids


def nearest(rows: Float32Array, centroids: Float32Array) -> npt.NDArray[np.intp]:
    """Index of the centroid nearest to each row ``[n]``."""
    half = np.square(centroids).sum(axis=1) / 2
    places = np.empty(len(rows), np.intp)
    for part in _parts(len(rows)):
        np.argmax(rows[part] @ centroids.T - half, axis=1, out=places[part])
    return places


def entropy(codes: npt.NDArray[np.integer[Any]]) -> float:
    """Bytes a row of codes ``[n, r]`` in the limit: the empirical entropy of each column, added up."""
    bits = 0.0
    for column in codes.T:
        counts = np.unique(column, return_counts=True)[1]
        bits += float((counts / len(column) * np.log2(len(column) / counts)).sum())
    return bits / 8


def divergence(exact: Float32Array, decoded: Float32Array, temperature: float) -> float:
    """Mean over the rows of KL(softmax(exact / T) || softmax(decoded / T)), in nats."""
    total = 0.0
    for part in _parts(len(exact)):
        ours, theirs = (log_softmax(logits[part].astype(np.float64) / temperature) for logits in (exact, decoded))
        total += float((np.exp(ours) * (ours - theirs)).sum())
    return max(total / len(exact), 0.0)


def agreement(exact: Float32Array, decoded: Float32Array) -> float:
    """Share of the rows whose largest column is the same."""
    return float((exact.argmax(axis=1) == decoded.argmax(axis=1)).mean())


def log_softmax(logits: npt.NDArray[np.floating]) -> Float64Array:
    """Logarithms of the probabilities ``[n, C]``."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    logs: Float64Array = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return logs


def _largest(logits: Float32Array, k: int) -> npt.NDArray[np.intp]:
    """Columns of the k largest of each row, in no order."""
    return np.argpartition(logits, -k, axis=1)[:, -k:]


def _halves(values: npt.NDArray[np.floating]) -> Float32Array:
    return values.astype(np.float16).astype(np.float32)


def _parts(count: int) -> Iterator[slice]:
    for start in range(0, count, ROWS_AT_ONCE):
        yield slice(start, min(start + ROWS_AT_ONCE, count))
