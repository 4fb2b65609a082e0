"""What labels must have in common with the blocks that are there already: the same labels, each image once a view."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from labelstore.encodings import Pairs
from labelstore.errors import InputError, MismatchError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockIndex
from labelstore.store import LabelStore
from labelstore.writing.encoding import images_of
from pipeline.adopt.labels import Labels

COMPARED = 64  # crops of a block


def require_same_labels(labels: Labels, store: LabelStore) -> None:
    """Refuse to continue a store with other labels, or with the same ones of other images.

    The first crops of the first and of the last block that are there are compared.

    Args:
        labels: that are given.
        store: that is continued, opened to follow.

    Raises:
        MismatchError: names the view that differs.
    """
    missing = set(store.missing())
    if AUDIT_BLOCK in missing:
        return
    there = [block for block in store.grid.blocks(0, store.state.views_target) if block not in missing]
    for block in (there[0], there[-1]):
        view, (start, last) = store.grid.views(block)[0], store.grid.positions(block)
        stop = min(start + -(-COMPARED // labels.group) * labels.group, last)
        given = labels.crops(view, start, stop)
        alike = np.array_equal(given.rows.values, store.rows(view, slice(start, stop)).values)
        alike &= _same_codes(store, view, (start, stop), given.logits, given.rows.image)
        if block == AUDIT_BLOCK:
            stored = store.audit().logits
            alike &= np.array_equal(given.logits[: len(stored)].astype(np.float16), stored)
        if not alike:
            raise MismatchError(
                f"other labels, or other images of them: those at positions {start} to {stop - 1} of view {view} "
                f"differ from what {store.path} holds; give the folder and the order that it was adopted from, or "
                f"another --store"
            )


def _same_codes(
    store: LabelStore,
    view: int,
    positions: tuple[int, int],
    logits: npt.NDArray[np.floating],
    images: npt.NDArray[np.uint32],
) -> bool:
    """Whether labels are stored as they would be stored now."""
    made = store.encoding.encode(logits.astype(np.float32), Pairs.unmixed(images))
    stored = store.encoding.current(store.codes(view, slice(*positions)))
    return all(np.array_equal(made[name], codes) for name, codes in stored.items())


class Shown:
    """Which images each view has shown: labels that store their images may show one twice.

    Args:
        store: that is written, opened to follow.
        missing: the blocks that are still to be written; the others are read.
        names: of the images, for messages.
    """

    def __init__(self, store: LabelStore, missing: Sequence[BlockIndex], names: Sequence[str]) -> None:
        self._store, self._missing, self._names = store, set(missing), names
        self._first, self._seen = -1, np.zeros((0, 0), bool)

    def add(self, block: BlockIndex, rows: npt.NDArray[np.uint16]) -> None:
        """Add a block's rows, uint16 ``[v, K, p]``; blocks come in stored order.

        Raises:
            InputError: names the image that a view shows twice.
        """
        views = self._store.grid.views(block)
        if views[0] != self._first:
            self._begin(views)
        for view, images in enumerate(images_of(self._store.identity, rows), start=views[0]):
            self._show(view, images)

    def _begin(self, views: tuple[int, int]) -> None:
        """Start with the images of the blocks of these views that are there."""
        store = self._store
        self._first, self._seen = views[0], np.zeros((views[1] - views[0], store.identity.images), bool)
        for block in store.grid.blocks(*views):
            if block not in self._missing:
                for view in range(*views):
                    self._show(view, store.rows(view, slice(*store.grid.positions(block))).image)

    def _show(self, view: int, images: npt.NDArray[np.uint32]) -> None:
        seen = self._seen[view - self._first]
        twice = images[seen[images]]
        if len(twice):
            raise InputError(
                f"view {view}: expected every image once, found {self._names[twice[0]]} twice; take the labels from "
                f"where they come from again"
            )
        seen[images] = True
