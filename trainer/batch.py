"""One batch of crops and labels."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from labelstore.format.columns import CropRows

TENSORS = ("images", "logits", "targets", "targets2", "lam", "index", "view", "position")


@dataclass(frozen=True, slots=True, repr=False)
class TrainBatch:
    """One batch of n crops and their labels, or one process's slice of it.

    Attributes:
        images: the student's input, ``[n, 3, S, S]``, normalised as the teacher's was.
        logits: the teacher's logits, float32 ``[n, C]``, without temperature or softmax; ``[n, 0]`` where crops have no
            labels. With ``any_scale`` as they are stored: each row has an unknown positive scale.
        targets: hard labels, as column indexes into ``logits``, int64 ``[n]``.
        targets2: hard labels of the partners, int64 ``[n]``; equal to ``targets`` for unmixed crops.
        lam: weight of ``targets``, float32 ``[n]``; ``targets2`` has weight ``1 - lam``. 1 for unmixed crops.
        index: image index of each crop, int64 ``[n]``.
        view: view of each crop, int64 ``[n]``.
        position: position of each crop in its view, int64 ``[n]``; ``store.read(view, position)`` finds it again.
        total: number of crops in the whole batch, over all processes.
        share: weight of the mean loss of these n crops where gradients are averaged over W processes: ``n W / total``;
            0 for a crop that only pads the slice of a process that would otherwise be empty.
        rows: the rows of the crops, if they are augmented further after the normalisation; else None.
    """

    images: Tensor
    logits: Tensor
    targets: Tensor
    targets2: Tensor
    lam: Tensor
    index: Tensor
    view: Tensor
    position: Tensor
    total: int = 0
    share: float = 1.0
    rows: CropRows | None = None

    def __len__(self) -> int:
        return len(self.targets)

    def __repr__(self) -> str:
        images, logits = (f"{str(each.dtype)[6:]} {[*each.shape]}" for each in (self.images, self.logits))
        return f"TrainBatch({len(self)} crops: images {images}, logits {logits}, on {self.images.device})"

    def __getitem__(self, rows: slice) -> TrainBatch:
        return replace(self.change(lambda tensor: tensor[rows]), rows=self.rows and self.rows.take(rows))

    def change(self, to: Callable[[Tensor], Tensor]) -> TrainBatch:
        """The batch with a function applied to every tensor."""
        changed: dict[str, Any] = {name: to(getattr(self, name)) for name in TENSORS}
        return replace(self, **changed)

    def to(self, device: torch.device | str | int, *, non_blocking: bool = False) -> TrainBatch:
        """The batch on a device; Lightning and Accelerate call this."""
        return self.change(lambda tensor: tensor.to(device, non_blocking=non_blocking))

    def pin_memory(self) -> TrainBatch:
        """The batch in pinned memory, from which copies to a GPU are asynchronous."""
        return self.change(Tensor.pin_memory)

    def pieces(self, count: int) -> Iterator[TrainBatch]:
        """At most ``count`` pieces whose sizes differ by at most one, the weight ``share`` divided among them."""
        for rows in slices(len(self), min(count, len(self))):
            piece = self[rows]
            yield replace(piece, share=self.share * len(piece) / len(self))


@dataclass(frozen=True, slots=True)
class _Beside:
    """The fields of a batch that are not tensors: part of the pytree structure, compared by value."""

    total: int
    share: float
    rows: CropRows | None

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Beside):
            return NotImplemented
        ours, theirs = self.rows, other.rows
        if ours is None or theirs is None:
            same = ours is theirs
        else:
            same = ours.names == theirs.names and np.array_equal(ours.values, theirs.values)
        return same and (self.total, self.share) == (other.total, other.share)


def _flat(batch: TrainBatch) -> tuple[list[Tensor], _Beside]:
    return [getattr(batch, name) for name in TENSORS], _Beside(batch.total, batch.share, batch.rows)


def _flat_with_keys(batch: TrainBatch) -> tuple[list[tuple[Any, Tensor]], _Beside]:
    tensors, beside = _flat(batch)
    return [(pytree.GetAttrKey(name), tensor) for name, tensor in zip(TENSORS, tensors, strict=True)], beside


def _whole(tensors: Iterable[Any], beside: _Beside) -> TrainBatch:
    fields: dict[str, Any] = dict(zip(TENSORS, tensors, strict=True))
    return TrainBatch(**fields, total=beside.total, share=beside.share, rows=beside.rows)


# Functions such as torch.utils._pytree.tree_map treat a batch as its tensors.
pytree.register_pytree_node(TrainBatch, _flat, _whole, flatten_with_keys_fn=_flat_with_keys)


def concatenate(batches: list[TrainBatch]) -> TrainBatch:
    """Join batches end to end."""
    if len(batches) == 1:
        return batches[0]
    joined: dict[str, Any] = {name: torch.cat([getattr(batch, name) for batch in batches]) for name in TENSORS}
    rows = [batch.rows for batch in batches if batch.rows is not None]
    return TrainBatch(**joined, rows=reduce(CropRows.join, rows) if rows else None)


def slices(count: int, parts: int) -> list[slice]:
    """``range(count)`` in ``parts`` slices, the first ones longer by at most one; some are empty if count < parts."""
    each, longer = divmod(count, parts)
    starts = [part * each + min(part, longer) for part in range(parts + 1)]
    return [slice(*pair) for pair in itertools.pairwise(starts)]
