"""Statistics of labels: agreement with the targets, confidence, entropy and confusions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from labelstore.store import LabelStore

ROWS = 20_000  # most labels of a store that are examined
NUMBERS = 20_000_000  # most logits of them, though at least LEAST labels
LEAST = 2_000
AT_ONCE = 2_000_000  # logits that are decoded at a time

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Examined:
    """Statistics of the labels of n crops.

    Attributes:
        targets: column of the target; of a mixed crop that of the image with the larger weight, ``[n]``.
        choices: column with the largest logit, the first choice, ``[n]``.
        confidences: its probability, by softmax at temperature 1, ``[n]``.
        entropies: entropy of that softmax in nats, ``[n]``.
        right: whether the first choice is the target, or one of the two of a mixed crop, ``[n]``.
    """

    targets: Int64Array
    choices: Int64Array
    confidences: Float64Array
    entropies: Float64Array
    right: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.targets)


def examine(
    logits: npt.NDArray[np.floating], targets: Int64Array, mates: Int64Array, weights: npt.NDArray[np.floating]
) -> Examined:
    """Examine the labels of n crops.

    Args:
        logits: raw labels ``[n, C]``.
        targets: column of each crop's target ``[n]``.
        mates: column of its partner's target ``[n]``; its own without mixing.
        weights: weight of its own target, 0 to 1, ``[n]``.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1)
    probabilities = exponentials / sums[:, None]
    choices = logits.argmax(axis=1).astype(np.int64)
    # -sum p log p, with log p = x - log sum exp x: no logarithm of a probability that is zero
    entropies = np.maximum(np.log(sums) - (probabilities * shifted).sum(axis=1), 0.0)
    return Examined(
        targets=np.where(weights >= 0.5, targets, mates),
        choices=choices,
        confidences=np.take_along_axis(probabilities, choices[:, None], axis=1)[:, 0],
        entropies=entropies,
        right=(choices == targets) | (choices == mates),
    )


def joined(parts: Sequence[Examined]) -> Examined:
    """The statistics of several parts, one after the other."""
    return Examined(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Examined)))


def examine_store(store: LabelStore, rows: int = ROWS) -> Examined | None:
    """Examine about ``rows`` labels, of whole views spread over those that can be read.

    Returns:
        None if no view can be read.
    """
    identity = store.identity
    rows = min(rows, max(NUMBERS // identity.columns, LEAST))
    gone = {view for block in store.missing() for view in range(*store.block_views(block))}
    there = [view for view in range(store.state.views_sealed) if view not in gone]
    if not there:
        return None
    count = min(max(rows // identity.images, 1), len(there))
    views = [there[place * len(there) // count] for place in range(count)]
    stop = min(-(-rows // identity.group) * identity.group, identity.images)
    return joined([part for view in views for part in _of_view(store, view, stop)])


def _of_view(store: LabelStore, view: int, stop: int) -> list[Examined]:
    """Examine positions 0 to ``stop`` of a view, some whole groups at a time."""
    identity = store.identity
    step = max(AT_ONCE // identity.columns // identity.group, 1) * identity.group
    parts = []
    for start in range(0, stop, step):
        batch = store.read(view, slice(start, min(start + step, stop)))
        mates = batch.targets[batch.rows.partners(identity.group)] if batch.rows.mixed else batch.targets
        parts.append(examine(batch.logits, batch.targets, mates, batch.rows.weights(identity.size)))
    return parts


def by_class(examined: Examined, columns: Sequence[int]) -> tuple[Int64Array, Int64Array]:
    """How many crops each class has, and how many of them are right: int64 ``[C]`` twice.

    Args:
        examined: the crops.
        columns: columns of the C classes, in the order of the classes.
    """
    size = 1 + max([*columns, 0])
    every = np.bincount(examined.targets, minlength=size)
    right = np.bincount(examined.targets[examined.right], minlength=size)
    return every[[*columns]], right[[*columns]]


def confusions(examined: Examined) -> list[tuple[int, int, int]]:
    """Target, wrong first choice and number of crops of each confusion; the most frequent first."""
    wrong = np.stack([examined.targets[~examined.right], examined.choices[~examined.right]], axis=1)
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[each, 0]), int(pairs[each, 1]), int(counts[each])) for each in order]


def choices_by_class(examined: Examined, columns: Sequence[int]) -> Float64Array:
    """The shares of each class's crops by first choice, ``[C, C]``; first choices of no class are in no column."""
    places = np.full(1 + max(int(examined.targets.max()), int(examined.choices.max()), *columns), len(columns))
    places[[*columns]] = np.arange(len(columns))
    counts = np.zeros((len(columns) + 1, len(columns) + 1))
    np.add.at(counts, (places[examined.targets], places[examined.choices]), 1)
    every: Float64Array = counts[:-1, :-1] / np.maximum(counts[:-1].sum(axis=1, keepdims=True), 1)
    return every
