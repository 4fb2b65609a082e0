"""Where the labels of a run come from: `LabelSource`, labels stored for each crop or for each image, and none."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from labelstore.encodings import Codes, Pairs
from labelstore.errors import InputError, NotStoredError
from labelstore.format.columns import CropRows
from labelstore.store import LabelStore
from labelstore.writing.encoding import pairs_of
from pipeline.device.codes import DeviceCodes
from trainer.crops import Crops, Int64Array

LABEL_BYTES = 256 << 20  # of encoded labels, read ahead of the crops that they belong to

Request = tuple[int, Int64Array]
"""A view, and positions in it, whole groups of them."""


class LabelSource(Protocol):
    """Labels of crops. What decides them is recorded by whoever makes the source: see `trainer.material`."""

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor | None]:
        """Begin to label the crops of ``requests``.

        Args:
            requests: all that will be played, to be read ahead of the crops, or ignored; made as they are taken.

        Returns:
            A function that is called with the crops of each request, in their order, and gives their labels: raw
            logits ``[n, C]`` on any device, or None where crops have none.
        """
        ...


class StoredLabels:
    """The label that a store has for each of its crops.

    Args:
        store: the store that the crops are replayed from.
        device: where labels are decoded: codes are several times smaller than what they decode to.
        any_scale: whether labels may come in any scale, as they are stored.
    """

    def __init__(self, store: LabelStore, device: torch.device, *, any_scale: bool) -> None:
        self._store = store
        self._decode = decoder_for(store, device, any_scale=any_scale)

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor]:
        """Blocks of codes come ahead of the crops, within `LABEL_BYTES`; the crops have their rows already."""
        codes = self._store.stream_codes(requests, budget_bytes=LABEL_BYTES)
        decode = self._decode or self._store.encoding.decode
        return lambda crops: torch.as_tensor(decode(next(codes), self._pairs(crops.rows)))

    def _pairs(self, rows: CropRows) -> Pairs:
        """Which images the crops of whole groups show, as far as the encoding needs to know."""
        if not self._store.encoding.needs_calibration:
            return Pairs.unmixed(rows.image)
        return pairs_of(self._store.identity, rows.values[None]).flat()


class NoLabels:
    """Crops alone, for losses on hard targets."""

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], None]:  # noqa: ARG002
        """Nothing."""
        return lambda _crops: None


class ImageLabels:
    """One label an image, whatever crop of it is played; of mixed crops the mean of both probabilities.

    Args:
        logits: of the images, float32 ``[N, C]``.
        group: consecutive crops that mix with each other.
        drawn_size: side that the rows of the crops are drawn for.
    """

    def __init__(self, logits: Tensor, group: int, drawn_size: int) -> None:
        self._logits, self._group, self._drawn_size = logits, group, drawn_size

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor]:  # noqa: ARG002
        """Looked up for each crop."""
        return self.of

    def of(self, crops: Crops) -> Tensor:
        """The raw logits of unmixed crops; of mixed ones the logarithm of the mean, by weight, of probabilities."""
        own = self._logits[torch.from_numpy(crops.rows.image.astype(np.int64))]
        if not crops.rows.mixed:
            return own
        weight = torch.from_numpy(crops.rows.weights(self._drawn_size))[:, None]
        own = own.log_softmax(1)
        partners = own[torch.from_numpy(crops.rows.partners(self._group))]
        return torch.logaddexp(own + weight.log(), partners + (1 - weight).log())


def logits_of_images(store: LabelStore, view: int | None) -> Tensor:
    """The labels of a store's images, float32 ``[N, C]``.

    Args:
        store: of one view, unless ``view`` is given.
        view: the one whose labels are taken.

    Raises:
        InputError: when the store has more views, or labels of mixed crops.
        NotStoredError: when the view is not there.
    """
    there = store.state.views_sealed
    if view is None and there > 1:
        raise InputError(
            f"--labels image: expected a store of one view, found {there} in {store.path}; build one with --views 1 "
            f"--crop center --flip 0, or choose a view: --label-view 0"
        )
    if not 0 <= (view or 0) < there:
        raise NotStoredError(f"--labels image: {store.path} has {there} sealed views, none of number {view or 0}")
    if "partner" in store.identity.crop_columns:
        raise InputError(
            f"--labels image: the crops of {store.path} are mixed, and their labels are of two images each; "
            f"build a store with --mix none"
        )
    labels = store.read(view or 0, slice(None))
    logits = torch.empty(labels.logits.shape)
    logits[torch.from_numpy(labels.rows.image.astype(np.int64))] = torch.from_numpy(labels.logits)
    return logits


def decoder_for(store: LabelStore, device: torch.device, *, any_scale: bool) -> Callable[[Codes, Pairs], Tensor] | None:
    """What makes labels of codes on a device; None where the encoding itself does, on a CPU."""
    as_stored = any_scale and store.encoding.scaled
    if device.type == "cpu" and not as_stored:
        return None
    codes = DeviceCodes(store.encoding, device)
    return codes.directions if as_stored else codes.decode
