"""The content of a store: identity and state, existing blocks, and calibration."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.access.reading import Int64Array
from labelstore.durable import publish
from labelstore.durable.storage import ReadStorage
from labelstore.encodings import Encoding, make_encoding
from labelstore.encodings.transform import is_fitted
from labelstore.errors import DamagedError, NotStoredError
from labelstore.format import calibration as calibrations
from labelstore.format.arrays import ArrayLayout, StoreLayout
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.root import ROOT, Root, read_root
from labelstore.format.seals import Marker
from labelstore.format.shards import Shard
from labelstore.format.table import BlockTable
from labelstore.spec import Identity


class Contents:
    """The contents of a store, apart from its labels: what is read of it, and what a writer changes.

    Args:
        storage: where the store is read from.
        root: what its root metadata holds.

    Attributes:
        storage: where the store is read from.
        path: its folder, as errors name it.
        identity: the identity of the store; never changes.
        state: requested views, views sealed, versions, blocks that a repair removed; as of opening, of the last
            :meth:`refresh`, or of the last change by a writer of this object.
        notes: provenance of the images and the like; never compared.
        files: sizes and digests of the shards of the images' tables, by array.
        layout: its arrays.
        grid: its blocks.
        table: looks blocks up.
    """

    def __init__(self, storage: ReadStorage, root: Root) -> None:
        identity = root.identity
        self.storage: ReadStorage = storage
        self.path: Path = storage.root
        self.state, self.notes, self.files = root.state, root.notes, root.files
        self.identity: Identity = identity
        self.layout, self.grid = StoreLayout.of(identity), BlockGrid.of(identity)
        self.table = BlockTable(storage, identity)
        self._encoding: Encoding = make_encoding(identity.encoding, identity.columns, identity.format)
        self._calibration: calibrations.Published | None = None
        self._fitted = False  # whether the arrays of the calibration have been read

    @property
    def encoding(self) -> Encoding:
        """Turns logits into codes and back; calibrated as soon as the store is."""
        if not self._fitted and is_fitted(self._encoding) and (published := self.calibration):
            self._encoding = self._encoding.calibrated(calibrations.read(self.storage, self.layout, published))
            self._fitted = True
        return self._encoding

    @property
    def calibrated(self) -> bool:
        """Whether labels can be encoded: at once, or since the encoding was calibrated."""
        return not self._encoding.needs_calibration or self.calibration is not None

    @property
    def calibration(self) -> calibrations.Published | None:
        """The record of the published calibration, from its marker; None if there is none."""
        if self._calibration is None and self._encoding.needs_calibration:
            self._calibration = calibrations.find(self.storage, self.layout)
        return self._calibration

    def refresh(self) -> None:
        """Read the state again."""
        self.state = read_root(self.storage).state

    @property
    def complete(self) -> bool:
        """Whether all requested views are sealed, and no block of them is missing."""
        return self.state.views_sealed >= self.state.views_target and not self.state.missing

    @property
    def maker(self) -> str:
        """The command that makes missing blocks."""
        converted = "converted_from" in self.state.versions[0]
        if converted:
            return "giftwrap convert"
        if self.identity.origin == "adopted":
            return "giftwrap adopt" if "adopted" in self.notes else "labelstore.from_arrays"
        return "giftwrap build"

    @property
    def begun(self) -> bool:
        """Whether a block was ever published."""
        return self.state.views_sealed > 0 or bool(self.table.published(self.state))

    def block_views(self, block: BlockIndex) -> tuple[int, int]:
        """First view of a block, and the one after its last."""
        return self.grid.views(block)

    def positions(self, block: BlockIndex) -> tuple[int, int]:
        """First position of a block, and the one after its last."""
        return self.grid.positions(block)

    def sealed_blocks(self) -> list[BlockIndex]:
        """The blocks of all sealed views, but those that are missing, in stored order."""
        there = self.table.published(self.state) if self.state.missing else []
        gone = set(self.state.missing).difference(there)
        return [block for block in self.grid.blocks(0, self.state.views_sealed) if block not in gone]

    def missing(self) -> list[BlockIndex]:
        """The blocks that are still to be written, in stored order; those that a repair has removed among them."""
        there = set(self.table.published(self.state))
        removed = (BlockIndex(*block) for block in self.state.missing)
        wanted = self.grid.blocks(self.state.views_sealed, self.state.views_target)
        return [block for block in (*removed, *wanted) if block not in there]

    @property
    def missing_blocks(self) -> int:
        """The number of blocks that are still to be written."""
        views = self.state.views_target - self.state.views_sealed
        wanted = views // self.identity.block.views * self.grid.runs + len(self.state.missing)
        return wanted - len(self.table.published(self.state))

    def marker(self, block: BlockIndex) -> Marker:
        """The marker of a block.

        Raises:
            NotStoredError: when the block is not there.
            DamagedError: when its labels were coded with another calibration than the store has.
        """
        if marker := self.table.marker(block, self.state):
            if (used := self.calibration) and marker.calibration != used.digest:
                raise DamagedError(
                    f"{self.path}: block {block} was coded with calibration {marker.calibration}, "
                    f"{calibrations.FILE} is {used.digest}; restore it from a copy of the store"
                )
            return marker
        if block in self.state.missing:
            first, stop = self.block_views(block)
            raise NotStoredError(
                f"{self.path}: block {block} of views {first} to {stop - 1} was damaged and is removed; run the "
                f"`{self.maker}` that made the store: it fills what is missing"
            )
        raise NotStoredError(f"{self.path}: block {block} is not written yet; continue the build")

    @property
    def targets(self) -> Int64Array:
        """Hard label of each image: the index of its class, int64 ``[N]``, a copy.

        Raises:
            DamagedError: when it is not what was published, or there is no class of an index.
        """
        return self._targets.copy()

    @property
    def target_columns(self) -> Int64Array:
        """Hard label of each image as a column of the labels, int64 ``[N]``, a copy."""
        return self._target_columns.copy()

    @property
    def image_digests(self) -> npt.NDArray[np.uint8]:
        """SHA-256 of each image, uint8 ``[N, 32]``."""
        return self.whole(self.layout.digest, self.files.get(self.layout.digest.name))

    def whole(self, array: ArrayLayout, entry: publish.FileEntry | None) -> npt.NDArray[Any]:
        """All of an array that is one shard; ``entry`` is what was published of it, where that is known."""
        return Shard(array, array.shape, self.storage, array.file(), entry).read()

    @cached_property
    def _targets(self) -> Int64Array:
        found = self.whole(self.layout.target, self.files.get(self.layout.target.name)).astype(np.int64)
        if found.max() >= (known := len(self.identity.classes)):
            raise DamagedError.of(self.path / ROOT, f"has {known} classes, an image is of class {found.max()}")
        return found

    @cached_property
    def _target_columns(self) -> Int64Array:
        return np.array(self.identity.label_columns, np.int64)[self._targets]
