"""Sources of labels: the `LabelSource` protocol, labels stored for each crop or for each image, and none."""

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

LABEL_BYTES = 256 << 20  # most bytes of encoded labels that are read ahead of their crops

Request = tuple[int, Int64Array]
"""A view, and positions in it, in whole groups."""


class LabelSource(Protocol):
    """Labels of crops. Whatever constructs a source also records what determines its labels: see `trainer.material`."""

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor | None]:
        """Start to label the crops of ``requests``.

        Args:
            requests: all requests that will be played, generated lazily; a source may read them ahead or ignore them.

        Returns:
            A function that is called with the crops of each request, in order, and returns their labels: raw logits
            ``[n, C]`` on any device, or None if crops have no labels.
        """
        ...


class StoredLabels:
    """The labels stored for each crop of a store.

    Args:
        store: the store from which the crops are replayed.
        device: where labels are decoded, since codes are several times smaller than logits.
        any_scale: whether labels may be returned without their scales.
    """

    def __init__(self, store: LabelStore, device: torch.device, *, any_scale: bool) -> None:
        self._store = store
        self._decode = decoder_for(store, device, any_scale=any_scale)

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor]:
        """Read encoded labels ahead, within `LABEL_BYTES`; decode them with the rows of the crops."""
        codes = self._store.stream_codes(requests, budget_bytes=LABEL_BYTES)
        decode = self._decode or self._store.encoding.decode
        return lambda crops: torch.as_tensor(decode(next(codes), self._pairs(crops.rows)))

    def _pairs(self, rows: CropRows) -> Pairs:
        """The images and weights of the crops of whole groups, if the encoding uses them."""
        if not self._store.encoding.needs_calibration:
            return Pairs.unmixed(rows.image)
        return pairs_of(self._store.identity, rows.values[None]).flat()


class NoLabels:
    """No labels, for losses on hard targets."""

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], None]:  # noqa: ARG002
        """Return None for all crops."""
        return lambda _crops: None


class ImageLabels:
    """One label for each image, for all of its crops; mixed crops get the mean of both probabilities.

    Args:
        logits: logits of the images, float32 ``[N, C]``.
        group: consecutive crops that mix with each other.
        drawn_size: side for which the rows of the crops were drawn.
    """

    def __init__(self, logits: Tensor, group: int, drawn_size: int) -> None:
        self._logits, self._group, self._drawn_size = logits, group, drawn_size

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor]:  # noqa: ARG002
        """Look the label of each crop up."""
        return self.of

    def of(self, crops: Crops) -> Tensor:
        """The raw logits for unmixed crops; for mixed ones the logarithm of the weighted mean of probabilities."""
        own = self._logits[torch.from_numpy(crops.rows.image.astype(np.int64))]
        if not crops.rows.mixed:
            return own
        weight = torch.from_numpy(crops.rows.weights(self._drawn_size))[:, None]
        own = own.log_softmax(1)
        partners = own[torch.from_numpy(crops.rows.partners(self._group))]
        return torch.logaddexp(own + weight.log(), partners + (1 - weight).log())


def logits_of_images(store: LabelStore, view: int | None) -> Tensor:
    """The label of each image of a store, float32 ``[N, C]``.

    Args:
        store: a store of one view, unless ``view`` is given.
        view: the view whose labels are taken.

    Raises:
        InputError: when the store has several views, or its crops are mixed.
        NotStoredError: when the view is not stored.
    """
    there = store.state.views_sealed
    if view is None and there > 1:
        raise InputError(
            f"--labels image: expected a store of one view, found {there} in {store.path}; build one with --views 1 "
            f"--crop center --flip 0, or choose a view: --label-view 0"
        )
    if not 0 <= (view or 0) < there:
        raise NotStoredError(f"--labels image: {store.path} has {there} sealed views, and no view {view or 0}")
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
    """The function that decodes codes on a device; None on a CPU, where the encoding decodes them."""
    as_stored = any_scale and store.encoding.scaled
    if device.type == "cpu" and not as_stored:
        return None
    codes = DeviceCodes(store.encoding, device)
    return codes.directions if as_stored else codes.decode
