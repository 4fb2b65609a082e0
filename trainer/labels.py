"""Where the labels of a run come from: `LabelSource`, and labels stored for each crop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from labelstore.encodings import Codes, Pairs
from labelstore.format.columns import CropRows
from labelstore.store import LabelStore
from labelstore.writing.encoding import pairs_of
from pipeline.device.codes import DeviceCodes
from trainer.crops import Crops, Int64Array

LABEL_BYTES = 256 << 20  # of encoded labels, read ahead of the crops that they belong to

Request = tuple[int, Int64Array]
"""A view, and positions in it, whole groups of them."""


class LabelSource(Protocol):
    """Labels of crops."""

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


def decoder_for(store: LabelStore, device: torch.device, *, any_scale: bool) -> Callable[[Codes, Pairs], Tensor] | None:
    """What makes labels of codes on a device; None where the encoding itself does, on a CPU."""
    as_stored = any_scale and store.encoding.scaled
    if device.type == "cpu" and not as_stored:
        return None
    codes = DeviceCodes(store.encoding, device)
    return codes.directions if as_stored else codes.decode
