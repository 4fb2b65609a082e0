"""Which blocks of a store exist, and what their files must be: by seals below ``views_sealed``, by markers above."""

from __future__ import annotations

import math
from pathlib import Path

from labelstore.arrays import StoreLayout
from labelstore.blocks import BlockGrid, BlockIndex
from labelstore.seals import Marker, Seal, read_marker, read_seal
from labelstore.spec import Identity, State


class BlockTable:
    """Looks blocks up; seals are read once.

    Args:
        root: folder of the store.
        identity: the store's identity.
    """

    def __init__(self, root: Path, identity: Identity) -> None:
        self._root, self._identity = root, identity
        self._grid, self._layout = BlockGrid.of(identity), StoreLayout.of(identity)
        self._seals: list[Seal] = []

    def marker(self, block: BlockIndex, state: State) -> Marker | None:
        """The marker of a block, from its seal where it is sealed; None when the block does not exist.

        Raises:
            DamagedError: when marker or seal is not what was published.
        """
        first = self._grid.views(block)[0]
        if not 0 <= first < state.views_sealed:
            return read_marker(self._root, self._layout, block)
        seal = self._down_to(first, state)[-1]
        return seal.marker(block, self._grid.ordinal(block, seal.first))

    def calibration(self, state: State) -> str | None:
        """Digest of the calibration that blocks were coded with; None where there are no blocks."""
        markers = (self.marker(block, state) for block in self._grid.blocks(0, state.views_target))
        return next((marker.calibration for marker in markers if marker), None)

    def bytes(self, state: State) -> tuple[dict[str, int], int]:
        """Bytes of the shards that exist, by array, and the number of labels in them."""
        totals = dict.fromkeys((array.name for array in self._layout.blocks), 0)
        labels = 0
        for seal in self._down_to(0, state):
            totals = {name: total + int(seal.shards[name].bytes.sum()) for name, total in totals.items()}
            labels += (seal.stop - seal.first) * self._identity.images
        for block in self._grid.blocks(state.views_sealed, state.views_target):
            if marker := read_marker(self._root, self._layout, block):
                totals = {name: total + marker.shards[name].bytes for name, total in totals.items()}
                labels += math.prod(self._grid.extent(block).values())
        return totals, labels

    def _down_to(self, view: int, state: State) -> list[Seal]:
        """The seals from the last one down to the one that holds ``view``."""
        held = [seal for seal in self._seals if seal.stop <= state.views_sealed]
        if state.views_sealed not in {seal.stop for seal in held}:
            held = []
        stop = held[-1].first if held else state.views_sealed
        while stop > view:
            held.append(read_seal(self._root, self._identity, stop))
            stop = held[-1].first
        self._seals = held
        return [seal for seal in held if seal.stop > view]
