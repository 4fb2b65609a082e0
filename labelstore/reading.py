"""Labels and rows of any positions of a view, straight from the mapped shards.

Runs of positions and single rows go the same way: raw codes are gathered from the maps, and the columns of a block
are unpacked once and kept for a while. Every cache has a stated limit; all of it may be used from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from labelstore.arrays import ArrayLayout, StoreLayout
from labelstore.blocks import BlockGrid, BlockIndex
from labelstore.columns import IMAGE_COLUMNS, CropRows
from labelstore.encodings import Pairs
from labelstore.errors import InputError
from labelstore.seals import Marker
from labelstore.shards import Shard
from labelstore.spec import Identity

# A map holds a descriptor, of which a process has 1,024 by default.
MAX_MAPS = 256
MAX_ROW_BYTES = 64 << 20
MAX_ORDER_BYTES = 64 << 20

Int64Array = npt.NDArray[np.int64]
T = TypeVar("T")


class Cache(Generic[T]):
    """The values used last, within a limit on their summed cost; the newest is always kept.

    Args:
        limit: the largest sum of costs.
        cost: what a value costs.
    """

    def __init__(self, limit: int, cost: Callable[[T], int]) -> None:
        self._limit, self._cost = limit, cost
        self._values: OrderedDict[Hashable, T] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``, made when it is not here."""
        with self._lock:
            if key in self._values:
                self._values.move_to_end(key)
                return self._values[key]
            value = self._values[key] = make()
            self._total += self._cost(value)
            while self._total > self._limit and len(self._values) > 1:
                self._total -= self._cost(self._values.popitem(last=False)[1])
            return value


class Reader:
    """Reads what markers and seals vouch for.

    Args:
        root: folder of the store.
        identity: the store's identity.
        marker: gives the marker of a block, or raises when the block cannot be read.
    """

    def __init__(self, root: Path, identity: Identity, marker: Callable[[BlockIndex], Marker]) -> None:
        self._root, self._identity, self._marker = root, identity, marker
        self._grid, self._layout = BlockGrid.of(identity), StoreLayout.of(identity)
        self._maps: Cache[Shard] = Cache(MAX_MAPS, lambda _: 1)
        self._rows: Cache[npt.NDArray[np.uint16]] = Cache(MAX_ROW_BYTES, lambda rows: rows.nbytes)
        self._orders: Cache[npt.NDArray[np.uint32]] = Cache(MAX_ORDER_BYTES, lambda order: order.nbytes)

    def codes(self, view: int, positions: Int64Array) -> dict[str, npt.NDArray[Any]]:
        """Codes of the labels at ``positions``, one array ``[n, ...]`` for each array of the encoding."""
        out: dict[str, npt.NDArray[Any]] = {}
        for layout in self._layout.codes:
            codes = np.empty((len(positions), *layout.shape[2:]), layout.dtype)
            for block, chosen, inside in self._by_block(view, positions):
                shard = self._maps.get((block, layout.name), partial(self.shard, layout, block))
                rows = shard.take(view - self._grid.views(block)[0], inside)
                if isinstance(chosen, slice):
                    codes = rows
                else:
                    codes[chosen] = rows
            out[layout.name] = codes
        return out

    def rows(self, view: int, positions: Int64Array) -> npt.NDArray[np.uint16]:
        """Columns of the crops at ``positions``, uint16 ``[K, n]``."""
        out = np.empty((len(self._identity.crop_columns), len(positions)), np.uint16)
        for block, chosen, inside in self._by_block(view, positions):
            rows = self._rows.get(block, partial(self._read_rows, block))
            out[:, chosen] = rows[view - self._grid.views(block)[0]][:, inside]
        return out

    def pairs(self, view: int, positions: Int64Array) -> Pairs:
        """Which images the crops at ``positions`` show ``[n]``."""
        own, partners = np.empty((2, len(positions)), np.int64)
        weights = np.ones(len(positions))
        identity = self._identity
        for block, chosen, inside in self._by_block(view, positions):
            values = self._rows.get(block, partial(self._read_rows, block))[view - self._grid.views(block)[0]]
            rows = CropRows(identity.crop_columns, values)
            images, crops = rows.image, rows.take(inside)
            own[chosen] = partners[chosen] = crops.image
            if rows.mixed:
                partners[chosen] = images[inside // identity.group * identity.group + crops.column("partner")]
                weights[chosen] = crops.weights(identity.size)
        return Pairs(own, partners, weights)

    def positions_of(self, view: int, images: Int64Array) -> Int64Array:
        """Positions of the crops of ``images`` in a view, int64 ``[n]``."""
        return self._orders.get(view, partial(self._places, view))[images].astype(np.int64)

    def shard(self, layout: ArrayLayout, block: BlockIndex) -> Shard:
        """A shard, proven to be there with the size it was published with."""
        entry = self._marker(block).shards[layout.name]
        path = self._root / layout.file(block)
        return Shard(layout, layout.extent(self._grid.extent(block)), path, entry.bytes)

    def _read_rows(self, block: BlockIndex) -> npt.NDArray[np.uint16]:
        """All crop rows of a block, uint16 ``[v, K, p]``."""
        return self.shard(self._layout.rows, block).read()

    def _by_block(
        self, view: int, positions: Int64Array
    ) -> list[tuple[BlockIndex, slice | npt.NDArray[np.bool_], Int64Array]]:
        """The blocks that positions lie in: (block, which of the positions, their places in the block)."""
        i = view // self._identity.block.views
        runs, inside = np.divmod(positions, self._identity.block.positions)
        found = np.unique(runs)
        if len(found) == 1:
            return [(BlockIndex(i, int(found[0])), slice(None), inside)]
        return [(BlockIndex(i, int(j)), runs == j, inside[runs == j]) for j in found]

    def _places(self, view: int) -> npt.NDArray[np.uint32]:
        """Position of every image in a view, uint32 ``[N]``; reads the image columns alone."""
        names = self._identity.crop_columns
        places = np.zeros(self._identity.images, np.uint32)
        for j in range(self._grid.runs):
            block = BlockIndex(view // self._identity.block.views, j)
            start, stop = self._grid.positions(block)
            shard = self.shard(self._layout.rows, block)
            at = view - self._grid.views(block)[0]
            low, high = (shard.read(0, names.index(name))[at, 0] for name in IMAGE_COLUMNS)
            places[low + (high.astype(np.int64) << 16)] = np.arange(start, stop, dtype=np.uint32)
        return places


def require_indexes(name: str, indexes: slice | npt.ArrayLike, count: int) -> Int64Array:
    """Indexes below ``count`` as int64 ``[n]``; a slice is cut as Python cuts it.

    Raises:
        InputError: names the first one out of range.
    """
    if isinstance(indexes, slice):
        return np.arange(*indexes.indices(count), dtype=np.int64)
    given = np.asarray(indexes)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise InputError(f"{name}: expected a slice or integers [n], found {given.dtype} {list(given.shape)}")
    array = given.astype(np.int64)
    bad = (array < 0) | (array >= count)
    if bad.any():
        raise InputError(f"{name}: expected 0 to {count - 1}, found {given[bad][0]}")
    return array
