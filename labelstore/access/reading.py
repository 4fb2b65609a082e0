"""Labels and rows of any positions of a view, straight from the mapped shards.

Runs of positions and single rows go the same way: raw codes are gathered from the maps; the columns of a block, and
compressed codes in units of some 2,048 positions, are unpacked once and kept for a while. Every cache has a stated
limit; all of it may be used from several threads.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from functools import partial
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from labelstore.durable.storage import LocalStorage, ReadStorage
from labelstore.encodings import Pairs
from labelstore.errors import DamagedError, InputError
from labelstore.format.arrays import ArrayLayout, StoreLayout
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.columns import IMAGE_COLUMNS, CropRows
from labelstore.format.seals import Marker
from labelstore.format.shards import Shard
from labelstore.spec import Identity

# A process may have 65,530 maps: a store's reader keeps MAX_MAPS, a stream one for each 64 KiB of its budget.
MAX_MAPS = 1024
MAP_BYTES = 64 << 10
# Compressed codes of 65,536 positions, in which a view is played again, fit up to 4 KiB of codes a row.
MAX_CODE_BYTES = 512 << 20
MAX_HELD_BYTES = 512 << 20  # of shards that are elsewhere, and so copied
MAX_ROW_BYTES = 64 << 20
MAX_ORDER_BYTES = 64 << 20
MAX_SIZES = 4096  # blocks whose markers need not be parsed for every request

LOCAL_THREADS = 2  # one reads from the disk while the other waits for Python's lock to report its result
REMOTE_THREADS = 16  # so many answers are waited for at a time
NOWHERE = 2**32 - 1  # not a position: views have at most 2^32 positions, and the last one is never requested by itself
Int64Array = npt.NDArray[np.int64]
Views = int | Int64Array
"""One view for all positions, or one for each."""
# The blocks that contain positions: (block, which of the positions, their places in the block).
Parts = list[tuple[BlockIndex, slice | Int64Array, Int64Array]]
T = TypeVar("T")


class Cache(Generic[T]):
    """The values used last, within a limit on their summed cost; the newest is always kept.

    A value is made once, by the first thread that needs it; other threads that need the same value wait for it.

    Args:
        limit: the largest sum of costs.
        cost: what a value costs.
    """

    def __init__(self, limit: int, cost: Callable[[T], int]) -> None:
        self._limit, self._cost = limit, cost
        self._values: OrderedDict[Hashable, Future[T]] = OrderedDict()
        self._total = 0
        self._lock = threading.Lock()

    def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """The value of ``key``, made when it is not here."""
        with self._lock:
            future = self._values.get(key)
            first = future is None
            if future is None:
                future = self._values[key] = Future()
            else:
                self._values.move_to_end(key)
        if first:
            self._make(key, future, make)
        return future.result()

    def drop(self, key: Hashable) -> None:
        """Forget the value of ``key``."""
        with self._lock:
            if key in self._values and self._values[key].done():
                self._total -= self._cost(self._values.pop(key).result())

    def _make(self, key: Hashable, future: Future[T], make: Callable[[], T]) -> None:
        try:
            value = make()
        except BaseException as error:
            with self._lock:
                del self._values[key]
            future.set_exception(error)
            return
        with self._lock:
            future.set_result(value)  # from here on it counts, and may be dropped
            self._total += self._cost(value)
            self._values.move_to_end(key)
            while self._total > self._limit:
                # Those that are still being made are few, one a thread.
                made = (name for name, known in self._values.items() if known.done())
                if (oldest := next(made)) == key:
                    return
                self._total -= self._cost(self._values.pop(oldest).result())


class Reader:
    """Reads the blocks that have a marker or a seal.

    Args:
        storage: where the store is read from.
        identity: the store's identity.
        marker: gives the marker of a block, or raises when the block cannot be read.
        components: gives how many codes a row of a planar array really has; its width when None.
        map_bytes: the largest sum of mapped shards, their last ones; a small one counts as 64 KiB.
    """

    def __init__(
        self,
        storage: ReadStorage,
        identity: Identity,
        marker: Callable[[BlockIndex], Marker],
        *,
        components: Callable[[], int] | None = None,
        map_bytes: int | None = None,
    ) -> None:
        self._storage, self._identity, self._marker, self._components = storage, identity, marker, components
        self._grid, self._layout = BlockGrid.of(identity), StoreLayout.of(identity)
        if map_bytes is None:
            least = MAX_HELD_BYTES // MAX_MAPS
            self._maps: Cache[Shard] = Cache(MAX_HELD_BYTES, lambda shard: max(shard.held, least))
        else:
            self._maps = Cache(map_bytes, lambda shard: max(shard.nbytes, MAP_BYTES))
        self._units: Cache[npt.NDArray[Any]] = Cache(MAX_CODE_BYTES, lambda unit: unit.nbytes)
        self._rows: Cache[npt.NDArray[np.uint16]] = Cache(MAX_ROW_BYTES, lambda rows: rows.nbytes)
        self._orders: Cache[npt.NDArray[np.uint32]] = Cache(MAX_ORDER_BYTES, lambda order: order.nbytes)
        self._sizes: Cache[int] = Cache(MAX_SIZES, lambda _: 1)

    def codes(self, view: Views, positions: Int64Array, parts: Parts | None = None) -> dict[str, npt.NDArray[Any]]:
        """Codes of the labels at ``positions``, one array ``[n, ...]`` for each array of the encoding.

        Here and below, ``parts`` is the result of `by_block` for the positions, if already computed.
        """
        parts = parts or self.by_block(view, positions)
        out: dict[str, npt.NDArray[Any]] = {}
        for layout in self._layout.codes:
            found = [
                self._take(layout, block, self._at(block, view, chosen), inside) for block, chosen, inside in parts
            ]
            if len(parts) == 1:
                out[layout.name] = found[0]
                continue
            codes = out[layout.name] = np.empty((len(positions), *self._width(layout)), layout.dtype)
            for (_, chosen, _), rows in zip(parts, found, strict=True):
                codes[chosen] = rows
        return out

    def read_ahead(self, block: BlockIndex) -> None:
        """Read the shards of a block into the system's cache, where no code is checked and nothing is kept here.

        Of a block that is elsewhere, the rows are read, and the codes kept as they come.
        """
        ahead = [self._storage.read_ahead(layout.file(block)) for layout in self._layout.blocks]
        if not all(ahead):
            self._rows.get(block, partial(self._read_rows, block))
            for layout in self._layout.codes:
                self._map(layout, block).load()

    @property
    def threads(self) -> int:
        """The number of blocks to read ahead."""
        return LOCAL_THREADS if isinstance(self._storage, LocalStorage) else REMOTE_THREADS

    def drop(self, block: BlockIndex) -> None:
        """Drop the maps of a block."""
        for layout in self._layout.codes:
            self._maps.drop((block, layout.name))

    def block_bytes(self, block: BlockIndex) -> int:
        """Bytes of the codes of a block, encoded."""
        return self._sizes.get(block, partial(self._sum_bytes, block))

    def blocks(self, view: int, positions: Int64Array) -> list[BlockIndex]:
        """The blocks that contain positions of a view."""
        i = view // self._identity.block.views
        runs = np.bincount(positions // self._identity.block.positions)  # several times as fast as np.unique
        return [BlockIndex(i, j) for j in np.flatnonzero(runs).tolist()]

    def rows(self, view: Views, positions: Int64Array, parts: Parts | None = None) -> npt.NDArray[np.uint16]:
        """Crop rows at ``positions``, uint16 ``[K, n]``."""
        out = np.empty((len(self._identity.crop_columns), len(positions)), np.uint16)
        for block, chosen, inside in parts or self.by_block(view, positions):
            rows = self._rows.get(block, partial(self._read_rows, block))
            out[:, chosen] = rows_at(rows, self._at(block, view, chosen), inside)
        return out

    def pairs(self, view: Views, positions: Int64Array, parts: Parts | None = None) -> Pairs:
        """The images of the crops at ``positions`` ``[n]``."""
        own, partners = np.empty((2, len(positions)), np.int64)
        weights = np.ones(len(positions))
        identity = self._identity
        low, high = (identity.crop_columns.index(name) for name in IMAGE_COLUMNS)
        for block, chosen, inside in parts or self.by_block(view, positions):
            values = self._rows.get(block, partial(self._read_rows, block))
            at = self._at(block, view, chosen)
            crops = CropRows(identity.crop_columns, rows_at(values, at, inside))
            own[chosen] = partners[chosen] = crops.image
            if crops.mixed:
                other = inside // identity.group * identity.group + crops.column("partner")
                partners[chosen] = values[at, low, other] + (values[at, high, other].astype(np.int64) << 16)
                weights[chosen] = crops.weights(identity.size)
        return Pairs(own, partners, weights)

    def positions_of(self, view: Views, images: Int64Array) -> Int64Array:
        """Positions of the crops of ``images`` in one view, or in a view for each image, int64 ``[n]``."""
        of_view = self._identity.block.views
        if isinstance(view, int):
            of_one: Int64Array = self._places_in(view // of_view)[view % of_view, images].astype(np.int64)
            return of_one
        out = np.empty(len(images), np.int64)
        for i in np.unique(view // of_view).tolist():
            chosen = np.flatnonzero(view // of_view == i)
            out[chosen] = self._places_in(i)[view[chosen] % of_view, images[chosen]]
        return out

    def _places_in(self, i: int) -> npt.NDArray[np.uint32]:
        """As `_places`, made once and kept for a while."""
        return self._orders.get(i, partial(self._places, i))

    def shard(self, layout: ArrayLayout, block: BlockIndex) -> Shard:
        """A shard, proven to be there with the size it was published with."""
        entry = self._marker(block).shards[layout.name]
        extent = self._grid.extent(block)
        if layout.planar:
            extent |= {"component": self._width(layout)[0]}
        return Shard(layout, layout.extent(extent), self._storage, layout.file(block), entry)

    def _sum_bytes(self, block: BlockIndex) -> int:
        shards = self._marker(block).shards
        return sum(shards[layout.name].bytes for layout in self._layout.codes)

    def _map(self, layout: ArrayLayout, block: BlockIndex) -> Shard:
        return self._maps.get((block, layout.name), partial(self.shard, layout, block))

    def _width(self, layout: ArrayLayout) -> tuple[int, ...]:
        """Shape of the codes of a row."""
        if layout.planar:
            return (layout.shape[1] if self._components is None else self._components(),)
        return layout.shape[2:]

    def _at(self, block: BlockIndex, view: Views, chosen: slice | Int64Array) -> Views:
        """The views of a block that contain the chosen positions."""
        return (view if isinstance(view, int) else view[chosen]) - self._grid.views(block)[0]

    def _take(self, layout: ArrayLayout, block: BlockIndex, at: Views, inside: Int64Array) -> npt.NDArray[Any]:
        """Codes ``[n, ...]`` at views ``at`` of a block, and at places in it."""
        if layout.codec == "raw":
            return self._map(layout, block).take(at, inside)
        heads, at = np.divmod(at, layout.chunk[0])
        runs, places = np.divmod(inside, layout.chunk[-1 if layout.planar else 1])
        codes = np.empty((len(inside), *self._width(layout)), layout.dtype)
        for head in np.unique(heads).tolist():
            for run in np.unique(runs[heads == head] if np.ndim(heads) else runs).tolist():
                unit = self._units.get((block, layout.name, head, run), partial(self._unit, layout, block, head, run))
                chosen = (runs == run) & (heads == head)
                codes[chosen] = unit[at[chosen] if np.ndim(at) else at, places[chosen]]
        return codes

    def _unit(self, layout: ArrayLayout, block: BlockIndex, head: int, run: int) -> npt.NDArray[Any]:
        return self._map(layout, block).unit(head, run)

    def _read_rows(self, block: BlockIndex) -> npt.NDArray[np.uint16]:
        """All crop rows of a block, uint16 ``[v, K, p]``."""
        return self.shard(self._layout.rows, block).read()

    def by_block(self, view: Views, positions: Int64Array) -> Parts:
        """Split positions of one view, or of a view for each, by block."""
        size, of_view, per_view = self._identity.block.positions, self._identity.block.views, self._grid.runs
        runs, inside = np.divmod(positions, size)
        if not isinstance(view, int):
            blocks, which = np.unique(view // of_view * per_view + runs, return_inverse=True)
            each = [np.flatnonzero(which == number) for number in range(len(blocks))]
            names = [BlockIndex(*divmod(block, per_view)) for block in blocks.tolist()]
            return [(block, chosen, inside[chosen]) for block, chosen in zip(names, each, strict=True)]
        i = view // of_view
        counts = np.bincount(runs)  # several times as fast as np.unique
        found = np.flatnonzero(counts).tolist()
        if len(found) == 1:
            return [(BlockIndex(i, found[0]), slice(None), inside)]
        order, stops = np.argsort(runs, kind="stable"), np.cumsum(counts).tolist()
        inside = inside[order]
        parts = [slice(stops[j] - int(counts[j]), stops[j]) for j in found]
        return [(BlockIndex(i, j), order[part], inside[part]) for j, part in zip(found, parts, strict=True)]

    def _places(self, i: int) -> npt.NDArray[np.uint32]:
        """Position of every image in the views of the i-th blocks, uint32 ``[v, N]``.

        Reads only the image columns, unless all rows of a block are needed next.
        """
        identity, runs = self._identity, self._grid.runs
        names = identity.crop_columns
        each = np.arange(identity.block.views)[:, None]
        places = np.full((identity.block.views, identity.images), NOWHERE, np.uint32)
        for j in range(runs):
            block = BlockIndex(i, j)
            start, stop = self._grid.positions(block)
            if runs == 1:  # the row of a position that is searched is read as well
                rows = self._rows.get(block, partial(self._read_rows, block))
                low, high = (rows[:, names.index(name)] for name in IMAGE_COLUMNS)
            else:
                shard = self.shard(self._layout.rows, block)
                low, high = (shard.read(0, names.index(name))[:, 0] for name in IMAGE_COLUMNS)
            images = low + (high.astype(np.int64) << 16)
            if images.max() >= identity.images:
                raise DamagedError.of(self._storage.root / self._layout.rows.file(block), f"shows image {images.max()}")
            places[each, images] = np.arange(start, stop, dtype=np.uint32)
        if (places == NOWHERE).any():
            view, image = (int(place) for place in np.argwhere(places == NOWHERE)[0])
            view += self._grid.views(BlockIndex(i, 0))[0]
            raise DamagedError.of(self._storage.root, f"view {view} has no crop of image {image}")
        return places


def rows_at(rows: npt.NDArray[np.uint16], view: int | Int64Array, positions: Int64Array) -> npt.NDArray[np.uint16]:
    """Of rows ``[v, K, p]`` those at some positions, of one view or of a view each, ``[K, n]``."""
    found: npt.NDArray[np.uint16] = rows[view][:, positions] if isinstance(view, int) else rows[view, :, positions].T
    return found


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
