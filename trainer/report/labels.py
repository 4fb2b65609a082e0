"""What the labels of some crops are like: whether their first choices are the targets, how sure they are, what for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from labelstore.store import LabelStore

ROWS = 20_000  # crops that are looked at, where a store has more
NUMBERS = 20_000_000  # and numbers of their labels, but at least LEAST crops
LEAST = 2_000
AT_ONCE = 2_000_000  # numbers that are decoded at a time

Int64Array = npt.NDArray[np.int64]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Looked:
    """What the labels of n crops are like.

    Attributes:
        targets: column of the class that most of a crop shows, ``[n]``.
        choices: the column with the largest logit, ``[n]``.
        confidences: its probability, softmax at temperature 1, ``[n]``.
        entropies: of that softmax, in nats, ``[n]``.
        right: whether the first choice is the target, of a mixed crop one of its two, ``[n]``.
    """

    targets: Int64Array
    choices: Int64Array
    confidences: Float64Array
    entropies: Float64Array
    right: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.targets)


def look(
    logits: npt.NDArray[np.floating], targets: Int64Array, mates: Int64Array, weights: npt.NDArray[np.floating]
) -> Looked:
    """Look at the labels of n crops.

    Args:
        logits: ``[n, C]``.
        targets: the target of each crop as a column ``[n]``.
        mates: the target of its partner ``[n]``; the same where nothing is mixed.
        weights: of the own target ``[n]``.
    """
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    exponentials = np.exp(shifted)
    sums = exponentials.sum(axis=1)
    probabilities = exponentials / sums[:, None]
    choices = logits.argmax(axis=1).astype(np.int64)
    # -sum p log p, with log p = x - log sum exp x: no logarithm of a probability that is zero
    entropies = np.maximum(np.log(sums) - (probabilities * shifted).sum(axis=1), 0.0)
    return Looked(
        targets=np.where(weights >= 0.5, targets, mates),
        choices=choices,
        confidences=np.take_along_axis(probabilities, choices[:, None], axis=1)[:, 0],
        entropies=entropies,
        right=(choices == targets) | (choices == mates),
    )


def joined(parts: Sequence[Looked]) -> Looked:
    """All parts in a row."""
    return Looked(*(np.concatenate([getattr(part, each.name) for part in parts]) for each in fields(Looked)))


def look_at_store(store: LabelStore, rows: int = ROWS) -> Looked | None:
    """Look at about as many labels as asked for, of whole views spread over those that can be read.

    Returns:
        None where no view can be read.
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


def _of_view(store: LabelStore, view: int, stop: int) -> list[Looked]:
    """What the labels of the first positions of a view are like, some at a time, in whole groups."""
    identity = store.identity
    step = max(AT_ONCE // identity.columns // identity.group, 1) * identity.group
    parts = []
    for start in range(0, stop, step):
        batch = store.read(view, slice(start, min(start + step, stop)))
        mates = batch.targets[batch.rows.partners(identity.group)] if batch.rows.mixed else batch.targets
        parts.append(look(batch.logits, batch.targets, mates, batch.rows.weights(identity.size)))
    return parts


def by_class(looked: Looked, columns: Sequence[int]) -> tuple[Int64Array, Int64Array]:
    """How many crops each class has, and how many of them are right: int64 ``[C]`` twice.

    Args:
        looked: the crops.
        columns: of the C classes, in their order.
    """
    size = 1 + max([*columns, 0])
    every = np.bincount(looked.targets, minlength=size)
    right = np.bincount(looked.targets[looked.right], minlength=size)
    return every[[*columns]], right[[*columns]]


def confusions(looked: Looked) -> list[tuple[int, int, int]]:
    """Pairs of a target and a wrong first choice, with their number of crops; the most frequent first."""
    wrong = np.stack([looked.targets[~looked.right], looked.choices[~looked.right]], axis=1)
    pairs, counts = np.unique(wrong, axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(pairs[each, 0]), int(pairs[each, 1]), int(counts[each])) for each in order]


def choices_by_class(looked: Looked, columns: Sequence[int]) -> Float64Array:
    """The share of each class's crops whose first choice is each class, ``[C, C]``; choices of no class are in none."""
    places = np.full(1 + max(int(looked.targets.max()), int(looked.choices.max()), *columns), len(columns))
    places[[*columns]] = np.arange(len(columns))
    counts = np.zeros((len(columns) + 1, len(columns) + 1))
    np.add.at(counts, (places[looked.targets], places[looked.choices]), 1)
    every: Float64Array = counts[:-1, :-1] / np.maximum(counts[:-1].sum(axis=1, keepdims=True), 1)
    return every
