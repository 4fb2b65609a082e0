"""Make a damaged store one that a build can finish: what can be made again from the store is, damaged blocks go.

Every step leaves a store that opens, and that a second repair finishes. Damaged files are removed while the others
still prove their damage; then the state is lowered before its seals are removed, and a marker is removed before its
shards.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path

from labelstore.durable import disk, documents, publish, removing
from labelstore.durable.places import require_local
from labelstore.durable.removing import Proof
from labelstore.format import calibration
from labelstore.format.arrays import StoreLayout, group_metadata
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.leftovers import is_shard
from labelstore.format.root import ROOT, Root, folders, root_document
from labelstore.format.seals import (
    PART_BLOCKS,
    Seal,
    marker_file,
    read_marker,
    read_seal,
    read_table,
    seal_documents,
    seal_file,
)
from labelstore.format.table import SealedViews, sealed_views
from labelstore.operations.check import CheckReport, check
from labelstore.spec import Json
from labelstore.store import LabelStore
from labelstore.writer import StoreWriter


@dataclass(frozen=True, slots=True)
class RepairReport:
    """The result of a repair.

    Attributes:
        before: what the check found.
        made_again: files written again from other files of the store.
        removed: blocks that are gone, and that a build fills.
        calibration: whether the calibration is gone, which a build makes again.
        unsealed: views that were sealed and are not until a build has finished; 0 when all still are. Views that only
            lack removed blocks stay sealed, and readable but for these.
        maker: the command that made the store.
        left: tables of the images, which only a copy or another store of the same images has.
    """

    before: CheckReport
    made_again: tuple[str, ...]
    removed: tuple[BlockIndex, ...]
    calibration: bool
    unsealed: int
    maker: str
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
        progress: as of :func:`labelstore.operations.check.check`.

    Raises:
        InputError: when it is given by an address, where nothing can be written.
        DamagedError: when its root metadata is damaged; only a copy has that.
        LeaseError: when a build holds the store.
    """
    require_local(Path(path))
    store = LabelStore.open(path)
    for folder in folders(StoreLayout.of(store.identity)):
        disk.make_folder(store.path / folder)
    with store.lease(take_over=take_over) as writer:
        return _Repair(store, writer, check(path, progress)).run()


class _Repair:
    def __init__(self, store: LabelStore, writer: StoreWriter, report: CheckReport) -> None:
        self._store, self._writer, self._root, self._report = store, writer, store.path, report
        self._grid, self._layout = BlockGrid.of(store.identity), StoreLayout.of(store.identity)
        self._damaged = {damage.file for damage in report.damaged}
        self._made: list[str] = []

    def run(self) -> RepairReport:
        parts = {damage.part for damage in self._report.damaged}
        before = self._store.state.views_sealed
        self._metadata()
        sealed = sealed_views(self._store.storage, self._grid, before, self._seal)
        broken = [block for block in self._report.blocks if not self._restore_marker(block, sealed)]
        shards = {array.file(block) for block in broken for array in self._layout.of_block(block)}
        if "calibration" in parts and before:
            self._unseal(0)  # nothing can be decoded until a build has made the same one again
        else:
            self._writer.remove(broken)
        # While markers and seals still prove that these are damaged: a file that is no shard proves nothing by itself.
        self._remove(sorted(self._damaged & shards))
        for of in sealed:
            if self._is_damaged(of) and of.stop <= self._store.state.views_sealed:
                self._seal_again(of)
        self._remove([marker_file(block) for block in broken])
        self._remove(sorted(shards))
        self._remove(self._report.unpublished)
        if "calibration" in parts:
            files = [array.file() for array in self._layout.calibration]
            self._remove([file for file in files if file in self._damaged])
            self._remove([calibration.FILE])
            self._remove(files)
        return RepairReport(
            before=self._report,
            made_again=tuple(self._made),
            removed=tuple(broken),
            calibration="calibration" in parts,
            unsealed=before - self._store.state.views_sealed,
            maker=self._store.maker,
            left=tuple(damage.file for damage in self._report.damaged if damage.part == "images"),
        )

    def _metadata(self) -> None:
        """Write the zarr.json files again that follow from the identity and the state."""
        state = self._store.state
        right = {f"{array.name}/{ROOT}": array.metadata(state.views_target) for array in self._layout.all}
        right[ROOT] = root_document(Root(self._store.identity, self._store.files, self._store.notes, state))
        for file in sorted(damage.file for damage in self._report.damaged if damage.part == "metadata"):
            self._replace(file, right.get(file, group_metadata({})))

    def _seal(self, stop: int) -> Seal | None:
        return None if seal_file(stop) in self._damaged else read_seal(self._store.storage, self._store.identity, stop)

    def _unseal(self, views: int) -> None:
        """Seal only the views below ``views``; damaged seals are removed first, since nothing else identifies them."""
        seals = (file for file in sorted(self._damaged) if file.startswith("seals/"))
        self._remove([file for file in seals if int(Path(file).name.partition(".")[0]) > views])
        self._writer.unseal(views)

    def _is_damaged(self, of: SealedViews) -> bool:
        return of.seal is None or not self._damaged.isdisjoint(of.seal.files)

    def _restore_marker(self, block: BlockIndex, sealed: Sequence[SealedViews]) -> bool:
        """Whether only the marker of a block was damaged; it is then written again from the block's seal."""
        first = self._grid.views(block)[0]
        seal = next((of.seal for of in sealed if of.first <= first < of.stop), None)
        files = {damage.file for damage in self._report.damaged if damage.part == block}
        if seal is None or files != {marker_file(block)}:
            return False
        part, at = divmod(self._grid.ordinal(block, seal.first), PART_BLOCKS) if seal.parts else (0, None)
        if seal.parts and seal.files[part] in self._damaged:
            return False
        table = read_table(self._store.storage, self._store.identity, seal, part)
        marker = seal.marker(block, table, self._grid.ordinal(block, seal.first) if at is None else at)
        self._replace(marker_file(block), documents.encode(marker.to_json(self._grid)))
        return True

    def _seal_again(self, of: SealedViews) -> None:
        """Make a damaged seal again from its markers, if all markers of its views exist.

        Views from there on are not sealed then: what they lack is not known.
        """
        blocks = list(self._grid.blocks(of.first, of.stop))
        good = (block for block in blocks if marker_file(block) not in self._damaged)
        found = (read_marker(self._store.storage, self._store.identity, block) for block in good)
        markers = [marker for marker in found if marker]
        if len(markers) < len(blocks):
            self._unseal(of.first)
            return
        state = self._store.state
        # Versions that came after it are not in a seal: they begin with the first view that was missing then.
        early = sum(1 for _ in takewhile(lambda version: _first_view(version) < of.stop, state.versions))
        count = max(early, 1 + max(marker.version for marker in markers))
        then = dataclasses.replace(state, versions=state.versions[:count])
        for file, made in seal_documents(self._store.identity, then, markers, (of.first, of.stop)):
            path = self._root / file
            if not path.exists() or publish.describe(disk.read_pieces(path)) != made.entry:
                self._damaged.add(file)  # a part that no check could look for, since the seal was damaged too
                self._replace(file, b"".join(map(bytes, made.pieces)))

    def _replace(self, file: str, data: bytes) -> None:
        publish.replace(self._root, file, data, self._proof(file))
        self._made.append(file)

    def _proof(self, file: str) -> Proof:
        """Removable is what the check has proven damaged, and a whole shard whose marker is removed."""
        folder, _, name = file.rpartition("/")
        arrays = [array for array in self._layout.all if array.name == folder and array.block(name) is not None]
        damaged = file in self._damaged
        markers = {marker_file(block) for block in self._report.blocks}
        if any(damage.part == "calibration" for damage in self._report.damaged):
            markers.add(calibration.FILE)

        def holds(path: Path) -> bool:
            return damaged or file in markers or any(is_shard(array, path) for array in arrays)

        return Proof("what the check found damaged", holds, damaged=damaged)

    def _remove(self, files: Sequence[str]) -> None:
        """Remove files, durably before anything that comes next; what is not proven to be the store's stays."""
        paths = [self._root / file for file in files]
        for file, path in zip(files, paths, strict=True):
            if removing.may_go(path, self._proof(file)):
                removing.remove(path, self._proof(file))
        for folder in sorted({path.parent for path in paths}):
            disk.sync_folder(folder)


def _first_view(version: Mapping[str, Json]) -> int:
    first = version["first_view"]
    return first if isinstance(first, int) else 0
