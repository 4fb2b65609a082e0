"""Stores of drawn labels: what reading and writing are measured on."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore import AuditRows, BlockData, BlockIndex, BlockShape, Identity, LabelStore
from labelstore.format.columns import CROP_COLUMNS, CUTMIX_COLUMNS
from labelstore.spec import Json
from labelstore.writing.encoding import pairs_of

SIZE = 16
RANK = 400  # of what a crop adds to its image's label


class Drawn:
    """Labels that look like a teacher's: a mean for each image, and for each crop a change of falling variance.

    Args:
        images: N.
        columns: C.
        views: of every store that is made of them.
        group: crops that are mixed with each other; 1 mixes none.
        spread: length of a change over that of a mean; means then fall off over the same components as changes do.
    """

    def __init__(self, images: int, columns: int, views: int, *, group: int = 1, spread: float | None = None) -> None:
        self.images, self.columns, self.views, self.group = images, columns, views, group
        rng = np.random.default_rng(0)
        self._means = rng.standard_normal((images, columns), np.float32)
        rank = min(RANK, columns) if spread is None else columns
        self._basis = (
            rng.standard_normal((rank, columns), np.float32) * np.geomspace(1, 0.02, rank, dtype="f4")[:, None]
        )
        if spread is not None:
            self._basis /= np.sqrt(np.square(self._basis).sum() / columns)
            self._means = self._means[:, :rank] @ self._basis
            self._basis *= np.float32(spread)
        self._targets = rng.integers(0, columns, images)
        self._means[np.arange(images), self._targets] += 8 if spread is None else np.sqrt(columns) / 4

    def create(self, path: Path, encoding: dict[str, Json]) -> LabelStore:
        """An empty store."""
        identity = Identity(
            images=self.images,
            classes=tuple(f"class {number}" for number in range(self.columns)),
            columns=self.columns,
            size=SIZE,
            seed=0,
            group=self.group,
            manifest="00",
            skipped=(),
            teacher={"name": "drawn"},
            engine={"name": "drawn"},
            plan={"crop": "resized"},
            crop_columns=CROP_COLUMNS if self.group == 1 else (*CROP_COLUMNS, *CUTMIX_COLUMNS),
            encoding=encoding,
            renderer={"name": "none"},
            block=BlockShape.choose(self.images, self.columns, self.group, self.views),
        )
        digests = np.zeros((self.images, 32), np.uint8)
        return LabelStore.create(path, identity, image_digests=digests, targets=self._targets, views=self.views)

    def store(self, path: Path, encoding: dict[str, Json]) -> LabelStore:
        """A finished store."""
        store = self.create(path, encoding)
        with store.lease() as writer:
            with writer.queue() as write:
                for block in store.missing():
                    write(block, self.block(store, block))
            writer.seal()
        return store

    def block(self, store: LabelStore, block: BlockIndex) -> BlockData:
        """The labels of a block; the same ones in every store."""
        views, (start, stop) = range(*store.block_views(block)), store.positions(block)
        rng = np.random.default_rng([block.i, block.j])
        orders = [np.random.default_rng([1, view]).permutation(self.images)[start:stop] for view in views]
        rows = np.stack([self._rows(order, rng) for order in orders])
        changes = rng.standard_normal((len(views), stop - start, len(self._basis)), np.float32) @ self._basis
        pairs = pairs_of(store.identity, rows)
        weights = pairs.weights[..., None].astype(np.float32)
        logits = changes + weights * self._means[pairs.images]
        if self.group > 1:
            logits += (1 - weights) * self._means[pairs.partners]
        kept = min(64, self.images, stop - start)
        pixels = np.zeros((kept, SIZE, SIZE, 3), np.uint8)
        return BlockData(
            logits=logits,
            rows=rows,
            pixels_digest=hashlib.blake2b(digest_size=8).hexdigest(),
            audit=AuditRows(pixels, logits[0, :kept].astype(np.float16)) if block == (0, 0) else None,
        )

    def _rows(self, order: npt.NDArray[np.int64], rng: np.random.Generator) -> npt.NDArray[np.uint16]:
        boxes = rng.integers(0, 224, (len(CROP_COLUMNS) - 3, len(order)))
        rows = [order % 65_536, order // 65_536, *boxes, rng.integers(0, 2, len(order))]
        if self.group > 1:
            inside, groups = np.arange(len(order)) % self.group, np.arange(len(order)) // self.group
            members = np.minimum(self.group, len(order) - groups * self.group)
            top, left, height, width = rng.integers(0, SIZE // 2 + 1, (4, groups[-1] + 1))[:, groups]
            rows += [(inside + 1) % members, top, left, height, width]
        return np.stack(rows).astype(np.uint16)
