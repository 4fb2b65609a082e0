"""The blocks of a store and the expected files: from seals below ``views_sealed``, from markers above."""

from __future__ import annotations

import math
import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from labelstore.durable.storage import ReadStorage, names_in
from labelstore.errors import DamagedError
from labelstore.format.arrays import StoreLayout
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.seals import PART_BLOCKS, Marker, Seal, SealTable, read_marker, read_seal, read_table
from labelstore.spec import Identity, State

MAX_TABLES = 8  # parts of seals that are kept, some 5 MB each


class SealedViews(NamedTuple):
    """Views ``first`` to ``stop`` of one seal; ``seal`` is None if it is damaged."""

    first: int
    stop: int
    seal: Seal | None


def sealed_views(
    storage: ReadStorage, grid: BlockGrid, sealed: int, read: Callable[[int], Seal | None]
) -> list[SealedViews]:
    """The sealed views, from the last seal down.

    Args:
        storage: where the store is read from.
        grid: its blocks.
        sealed: views that the state calls sealed.
        read: returns the seal that ends at a view, or None if it is damaged. The first view of a damaged seal is then
            the end of the next seal file below it.
    """
    numbers = [int(name) for name in names_in(storage, "seals", ".json") if name.isdecimal()]
    ends = [end for end in numbers if end == grid.whole_views(end)]
    found: list[SealedViews] = []
    stop = sealed
    while stop > 0:
        seal = read(stop)
        first = seal.first if seal else max((end for end in ends if end < stop), default=0)
        found.append(SealedViews(first, stop, seal))
        stop = first
    return found


class BlockTable:
    """Looks blocks up; seals are read once, and the parts of their tables when a block of them is looked up.

    Args:
        storage: where the store is read from.
        identity: the store's identity.
    """

    def __init__(self, storage: ReadStorage, identity: Identity) -> None:
        self._storage, self._identity = storage, identity
        self._grid, self._layout = BlockGrid.of(identity), StoreLayout.of(identity)
        self._seals: list[Seal] = []
        self._tables: OrderedDict[tuple[int, int], SealTable] = OrderedDict()
        self._lock = threading.Lock()

    def marker(self, block: BlockIndex, state: State) -> Marker | None:
        """The marker of a block, from its seal if it is sealed; None if the block does not exist.

        Raises:
            DamagedError: when marker or seal is not what was published.
        """
        first = self._grid.views(block)[0]
        if not 0 <= first < state.views_sealed or block in state.missing:
            return read_marker(self._storage, self._identity, block)
        return self.sealed_marker(block, state)

    def sealed_marker(self, block: BlockIndex, state: State) -> Marker:
        """The marker of a block of sealed views, from its seal."""
        seal = self.seal(self._grid.views(block)[0], state)
        part, at = divmod(self._grid.ordinal(block, seal.first), PART_BLOCKS)
        return seal.marker(block, self._part(seal, part), at)

    def seal(self, view: int, state: State) -> Seal:
        """The seal of a sealed view."""
        return self._down_to(view, state)[-1]

    def published(self, state: State) -> list[BlockIndex]:
        """Blocks that are not sealed and have a marker, in stored order, by the names of the markers."""
        try:
            names = [name.removesuffix(".json") for name in self._storage.list("markers") if name.endswith(".json")]
        except FileNotFoundError as error:
            raise DamagedError.of(
                self._storage.root / "markers", "is not there, nor are the markers of what was published"
            ) from error
        found = (block for name in names if (block := BlockIndex.parse(name)) and self._grid.holds(block))
        missing = set(state.missing)
        return sorted(
            block
            for block in found
            if state.views_sealed <= self._grid.views(block)[0] < state.views_target or block in missing
        )

    def calibration(self, state: State) -> str | None:
        """Digest of the calibration of the blocks; None if there are no blocks."""
        if state.views_sealed:
            return self._down_to(0, state)[-1].calibration
        markers = (read_marker(self._storage, self._identity, block) for block in self.published(state))
        return next((marker.calibration for marker in markers if marker), None)

    def bytes(self, state: State) -> tuple[dict[str, int], int]:
        """Bytes of the shards that exist, by array, and the number of labels in them."""
        totals = dict.fromkeys((array.name for array in self._layout.blocks), 0)
        labels = 0
        for seal in self._down_to(0, state):
            labels += (seal.stop - seal.first) * self._identity.images
            for part in range(max(len(seal.parts), 1)):
                shards = self._part(seal, part).shards
                totals = {name: total + int(shards[name].bytes.sum()) for name, total in totals.items()}
        for block in self.published(state):
            if block not in state.missing and (marker := read_marker(self._storage, self._identity, block)):
                totals = {name: total + marker.shards[name].bytes for name, total in totals.items()}
                labels += math.prod(self._grid.extent(block).values())
        return totals, labels

    def _part(self, seal: Seal, part: int) -> SealTable:
        key = (seal.stop, part)
        with self._lock:
            if key not in self._tables:
                self._tables[key] = read_table(self._storage, self._identity, seal, part)
                while len(self._tables) > MAX_TABLES:
                    self._tables.popitem(last=False)
            self._tables.move_to_end(key)
            return self._tables[key]

    def _down_to(self, view: int, state: State) -> list[Seal]:
        """The seals from the last one down to the one that holds ``view``."""
        held = [seal for seal in self._seals if seal.stop <= state.views_sealed]
        if state.views_sealed not in {seal.stop for seal in held}:
            held = []
        stop = held[-1].first if held else state.views_sealed
        while stop > view:
            held.append(read_seal(self._storage, self._identity, stop))
            stop = held[-1].first
        self._seals = held
        return [seal for seal in held if seal.stop > view]

    def parts(self, state: State) -> set[str] | None:
        """The files of the parts of all seals; None if a seal is damaged."""
        try:
            return {file for seal in self._down_to(0, state) for file in seal.files}
        except DamagedError:
            return None

    def forget(self) -> None:
        """Read seals again, after one was made again."""
        self._seals, self._tables = [], OrderedDict()
