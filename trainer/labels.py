"""Where the labels of a run come from: `LabelSource`, and labels stored for each crop."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

import torch
from torch import Tensor

from labelstore.encodings import Codes, Pairs
from labelstore.spec import Json
from labelstore.store import LabelStore
from pipeline.device.codes import DeviceCodes
from trainer.crops import Crops, Int64Array

LABEL_BYTES = 256 << 20  # of encoded labels, read ahead of the crops that they belong to

Request = tuple[int, Int64Array]
"""A view, and positions in it, whole groups of them."""


class LabelSource(Protocol):
    """Labels of crops.

    Attributes:
        identity: everything that decides what the labels are, as JSON; compared when a run is resumed.
    """

    @property
    def identity(self) -> Mapping[str, Json]: ...  # noqa: D102

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

    @property
    def identity(self) -> Mapping[str, Json]:
        """The store's."""
        return self._store.identity.to_json()

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor]:
        """Blocks come ahead of the crops, within `LABEL_BYTES`."""
        batches = self._store.stream(requests, budget_bytes=LABEL_BYTES, decode=self._decode)
        return lambda _crops: torch.as_tensor(next(batches).logits)


def decoder_for(store: LabelStore, device: torch.device, *, any_scale: bool) -> Callable[[Codes, Pairs], Tensor] | None:
    """What makes labels of codes on a device; None where the encoding itself does, on a CPU."""
    as_stored = any_scale and store.encoding.scaled
    if device.type == "cpu" and not as_stored:
        return None
    codes = DeviceCodes(store.encoding, device)
    return codes.directions if as_stored else codes.decode
