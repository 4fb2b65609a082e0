"""Make a damaged store one that a build can finish: what can be made again from the store is, damaged blocks go.

Every step leaves a store that opens, and that a second repair finishes: the state goes down before the seals that it
relied on, a marker before the shards that it vouched for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from labelstore import calibration, disk, documents, publish
from labelstore.arrays import StoreLayout, group_metadata
from labelstore.blocks import BlockGrid, BlockIndex
from labelstore.check import CheckReport, check
from labelstore.errors import DamagedError
from labelstore.root import ROOT
from labelstore.seals import Seal, marker_file, read_seal, seal_file
from labelstore.store import LabelStore


@dataclass(frozen=True, slots=True)
class RepairReport:
    """What a repair did.

    Attributes:
        before: what the check found.
        made_again: files written again from what the store knows.
        removed: blocks that are gone, and that a build fills.
        calibration: whether the calibration is gone, which a build makes again.
        unsealed: views that were sealed and are not until a build has finished; 0 when all still are.
        left: files that only a copy of the store has.
    """

    before: CheckReport
    made_again: tuple[str, ...]
    removed: tuple[BlockIndex, ...]
    calibration: bool
    unsealed: int
    left: tuple[str, ...]

    @property
    def needs_build(self) -> bool:
        """Whether a build must fill what was removed."""
        return bool(self.removed or self.calibration or self.unsealed)


def repair(
    path: Path | str, *, take_over: bool = False, progress: Callable[[int, int], None] | None = None
) -> RepairReport:
    """Check a store, and repair what can be repaired, under its lease.

    Args:
        path: folder of the store.
        take_over: take the lease of a build on another host that is known to be dead.
        progress: as of :func:`labelstore.check.check`.

    Raises:
        DamagedError: when its root metadata is damaged; only a copy has that.
        LeaseError: when a build holds the store.
    """
    store = LabelStore.open(path)
    with store.lease(take_over=take_over):
        return _Repair(store, check(path, progress)).run()


class _Repair:
    def __init__(self, store: LabelStore, report: CheckReport) -> None:
        self._store, self._root, self._report = store, store.path, report
        self._grid, self._layout = BlockGrid.of(store.identity), StoreLayout.of(store.identity)
        self._made: list[str] = []

    def run(self) -> RepairReport:
        parts = {damage.part for damage in self._report.damaged}
        self._metadata({damage.file for damage in self._report.damaged if damage.part == "metadata"})
        seals = self._good_seals()
        broken = [
            block for block in sorted(p for p in parts if isinstance(p, BlockIndex)) if not self._kept(block, seals)
        ]
        unsealed = self._unseal(broken, seals)
        for block in broken:
            self._remove(marker_file(block), (array.file(block) for array in self._layout.of_block(block)))
        if "calibration" in parts:
            self._remove(calibration.FILE, (array.file() for array in self._layout.calibration))
        if unsealed and not self._store.missing() and "calibration" not in parts:
            self._store.seal()
            self._made.append(seal_file(self._store.state.views_sealed))
            unsealed = 0
        return RepairReport(
            before=self._report,
            made_again=tuple(self._made),
            removed=tuple(broken),
            calibration="calibration" in parts,
            unsealed=unsealed,
            left=tuple(damage.file for damage in self._report.damaged if damage.part in ("images", "root")),
        )

    def _metadata(self, damaged: set[str]) -> None:
        """Write the zarr.json files again that follow from the identity."""
        views = self._store.state.views_target
        right = {f"{array.name}/{ROOT}": array.metadata(views) for array in self._layout.all}
        for file in sorted(damaged):
            publish.replace(self._root, file, right.get(file, group_metadata({})))
            self._made.append(file)

    def _good_seals(self) -> list[Seal]:
        """The seals from the last one down that are what was published."""
        seals: list[Seal] = []
        damaged = {damage.file for damage in self._report.damaged}
        stop = self._store.state.views_sealed
        while stop > 0 and seal_file(stop) not in damaged:
            seals.append(read_seal(self._root, self._store.identity, stop))
            stop = seals[-1].first
        return seals

    def _kept(self, block: BlockIndex, seals: list[Seal]) -> bool:
        """Whether only the marker of a block was damaged; its seal, which knows what it said, then gives it again."""
        seal = next((seal for seal in seals if seal.first <= self._grid.views(block)[0] < seal.stop), None)
        files = {damage.file for damage in self._report.damaged if damage.part == block}
        if seal is None or files != {marker_file(block)}:
            return False
        marker = seal.marker(block, self._grid.ordinal(block, seal.first))
        publish.replace(self._root, marker_file(block), documents.encode(marker.to_json(self._grid)))
        self._made.append(marker_file(block))
        return True

    def _unseal(self, broken: list[BlockIndex], seals: list[Seal]) -> int:
        """Take the state down below all seals that are damaged or hold a damaged block; returns the views it lost."""
        state = self._store.state
        holding = [
            seal.first for seal in seals for block in broken if seal.first <= self._grid.views(block)[0] < seal.stop
        ]
        intact = seals[-1].first == 0 if seals else not state.views_sealed
        sealed = min([state.views_sealed, *holding, *([] if intact else [self._chain()])])
        if sealed == state.views_sealed:
            return 0
        self._store.unseal(sealed)
        return state.views_sealed - sealed

    def _chain(self) -> int:
        """The last view that seals reach from view 0 on without a gap."""
        found: dict[int, int] = {}
        for path in (self._root / "seals").glob("*.json"):
            try:
                seal = read_seal(self._root, self._store.identity, int(path.stem))
            except (DamagedError, ValueError):
                continue
            found[seal.first] = max(seal.stop, found.get(seal.first, 0))
        stop = 0
        while stop in found:
            stop = found[stop]
        return stop

    def _remove(self, marker: str, shards: Iterable[str]) -> None:
        """Remove a marker, then its shards, durably."""
        disk.unlink(self._root / marker)
        disk.sync_folder((self._root / marker).parent)
        for file in shards:
            disk.unlink(self._root / file)
