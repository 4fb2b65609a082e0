"""Check that every byte of a store is the byte that was published."""

from __future__ import annotations

import errno
import itertools
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import numpy.typing as npt

from labelstore.durable import documents, publish
from labelstore.durable.publish import PARTIAL, FileEntry
from labelstore.durable.removing import may_go
from labelstore.durable.storage import LocalStorage, ReadStorage, names_in, read_pieces, read_whole
from labelstore.errors import DamagedError, LeaseError
from labelstore.format import calibration
from labelstore.format.arrays import ArrayLayout, StoreLayout, group_metadata
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.images import manifest_digest
from labelstore.format.leftovers import shard_of
from labelstore.format.root import ROOT, groups
from labelstore.format.seals import (
    PART,
    Marker,
    Seal,
    marker_file,
    read_marker,
    read_seal,
    read_table,
    seal_file,
    seal_of,
)
from labelstore.format.shards import Shard
from labelstore.format.table import SealedViews, sealed_views
from labelstore.spec import Json
from labelstore.store import LabelStore
from labelstore.writing.lease import LEASE, require_free

ATTEMPTS = 3  # of a check during builds and repairs, each of which changes the state a few times
# Errors of the system that mean lost content. All others (permissions, descriptors, an unreachable server) do not: a
# check ends with them, since a repair would otherwise remove files that are whole.
LOST = {errno.EIO, errno.EBADMSG, getattr(errno, "EUCLEAN", errno.EIO), errno.ENOTDIR, errno.EISDIR, errno.ELOOP}
SHA256 = re.compile("[0-9a-f]{64}")
T = TypeVar("T")
Part: TypeAlias = Literal["root", "metadata", "images", "calibration", "seal"] | BlockIndex


@dataclass(frozen=True, slots=True)
class Damage:
    """One file that is not what was published.

    Attributes:
        file: its path in the store.
        why: what was expected and found.
        part: what it belongs to; for a block, which one.
    """

    file: str
    why: str
    part: Part = "root"


@dataclass(frozen=True, slots=True)
class CheckReport:
    """The result of a check.

    Attributes:
        damaged: files that are not what was published, and why.
        unpublished: shards without a marker, which no reader sees; the next build replaces them.
        stray: files that do not belong to the store; they harm nothing.
        missing: blocks of the requested views that are not written yet.
        files: number of files read.
        bytes: their bytes.
        fidelity: of the encoding, as the first block has it; None if that is not there or damaged.
    """

    damaged: tuple[Damage, ...]
    unpublished: tuple[str, ...]
    stray: tuple[str, ...]
    missing: int
    files: int
    bytes: int
    fidelity: Json = None

    @property
    def blocks(self) -> list[BlockIndex]:
        """The damaged blocks, in stored order."""
        return sorted({damage.part for damage in self.damaged if isinstance(damage.part, BlockIndex)})

    @property
    def ok(self) -> bool:
        """Whether nothing is damaged."""
        return not self.damaged


def check(path: Path | str | ReadStorage, progress: Callable[[int, int], None] | None = None) -> CheckReport:
    """Read every file of a store and compare it with its marker, its seal and the identity.

    Args:
        path: folder of the store; or its address, or what else it is read from: then nothing looks for files that do
            not belong to it.
        progress: called with blocks done and blocks in all.

    Raises:
        FormatError: when it is not a store, or one of another format.
        OSError: when a file cannot be read for a reason other than damage, such as permissions.
    """
    for _ in range(ATTEMPTS):
        try:
            store = LabelStore.open(path)
            report = _Check(store).run(progress or (lambda _done, _total: None))
            checked = store.state
            store.refresh()
        except DamagedError as error:
            return CheckReport((Damage(ROOT, str(error)),), (), (), 0, 1, 0)
        if report.ok or store.state == checked:
            break  # else a build or a repair has changed the store during the check
    return report


class _Check:
    """One pass over a store."""

    def __init__(self, store: LabelStore) -> None:
        self._store, self._storage, self._root = store, store.storage, store.path
        self._grid, self._layout = BlockGrid.of(store.identity), StoreLayout.of(store.identity)
        self._damaged: list[Damage] = []
        self._known = {ROOT, LEASE}
        # In this order, so that the state includes all that a concurrent build has sealed until then.
        self._there = self._files_there()  # files that a build adds later are not checked
        self._building = self._is_held()
        store.refresh()
        self._calibration: str | None = None
        self._markers: set[str] = set()  # names of the blocks that have one
        self._coded_with: dict[str | None, list[BlockIndex]] = {}
        self._missing = self._files = self._bytes = 0

    def run(self, progress: Callable[[int, int], None]) -> CheckReport:
        self._metadata()
        self._images()
        self._calibrated()
        state = self._store.state
        sealed = sealed_views(self._storage, self._grid, state.views_sealed, self._seal)
        above = self._marked()
        total, done = state.views_sealed // self._grid.shape.views * self._grid.runs + len(above), 0
        for of in reversed(sealed):
            for block, wanted in self._listed(of):
                self._sealed_block(block, wanted)
                done += 1
                progress(done, total)
        for block in above:
            self._block(block)
            done += 1
            progress(done, total)
        with suppress(DamagedError):  # without the folder of markers
            self._missing = self._store.missing_blocks
        self._foreign_calibration()
        others = sorted(name for name in self._there - self._known if not self._is_passing(name))
        unpublished = tuple(name for name in others if self._is_shard(name))
        stray = tuple(name for name in others if name not in unpublished)
        report = CheckReport(tuple(self._damaged), unpublished, stray, self._missing, self._files, self._bytes)
        return replace(report, fidelity=self._fidelity())

    def _fidelity(self) -> Json:
        """Fidelity of the encoding, unless what it is read from is damaged."""
        try:
            return self._store.fidelity
        except DamagedError:
            return None

    def _files_there(self) -> set[str]:
        """Every file of the folder, by its path in it, but for temporaries; none of a store that is elsewhere."""
        found: set[str] = set()
        if not isinstance(self._storage, LocalStorage):
            return found
        for folder, folders, names in os.walk(self._root):
            inside = Path(folder).relative_to(self._root)
            if inside == Path():
                folders[:] = [name for name in folders if name != PARTIAL]
            found |= {(inside / name).as_posix() for name in names}
        return found

    def _is_held(self) -> bool:
        """Whether a build writes the store, for all that can be known from here."""
        if not isinstance(self._storage, LocalStorage):
            return False
        try:
            require_free(self._root)
        except LeaseError:
            return True
        return False

    def _is_passing(self, name: str) -> bool:
        """Whether a file is gone by now, or a seal that a running build is about to use or to remove."""
        path = self._root / name
        if not os.path.lexists(path):
            return True
        proofs = (PART, seal_of(self._store.identity))
        return self._building and name.startswith("seals/") and any(may_go(path, proof) for proof in proofs)

    def _is_shard(self, name: str) -> bool:
        """Whether a file is named, and built, as a shard that blocks or a calibration publish."""
        folder, _, file = name.rpartition("/")
        arrays = [array for array in self._layout.all if array.name == folder]
        named = [array for array in arrays if (block := array.block(file)) and block.j < self._grid.runs]
        return any(may_go(self._root / name, shard_of(array)) for array in named)

    def _read_whole(self, array: ArrayLayout) -> npt.NDArray[Any]:
        return Shard(array, array.shape, self._storage, array.file()).read()

    def _images(self) -> None:
        """The tables of the images, which have no marker; they are checked by the digest of the manifest."""
        identity, tables = self._store.identity, (self._layout.digest, self._layout.target)
        for array in tables:
            if entry := self._store.files.get(array.name):
                self._compare(array.file(), entry, "images")
        if any(damage.part == "images" for damage in self._damaged):
            return
        digests, targets = (self._try(array.file(), partial(self._read_whole, array), "images") for array in tables)
        if digests is None or targets is None or not SHA256.fullmatch(identity.manifest):
            return
        known = targets.max() < len(identity.classes)
        found = manifest_digest(identity.classes, targets, digests) if known else "a class that is not there"
        if found != identity.manifest:
            why = f"tables of other images: expected manifest {identity.manifest}, found {found}"
            self._damaged += [Damage(array.file(), why, "images") for array in tables]

    def _metadata(self) -> None:
        """The zarr.json files follow from the identity and the state, while it is extended the one before too."""
        for array in self._layout.all:
            file = f"{array.name}/{ROOT}"
            data = self._try(file, partial(read_whole, self._storage, file, 1 << 20), "metadata")
            state = self._store.state
            lengths = {state.views_target, state.views_target if state.views_before is None else state.views_before}
            if data is not None and not any(data == array.metadata(views) for views in lengths):
                why = "is not the metadata that follows from the store's identity"
                self._damaged.append(Damage(file, why, "metadata"))
        # All else in it is proven by its stamp; a build replaces it whole, so what is compared are bytes read once.
        data = read_whole(self._storage, ROOT, documents.MAX_BYTES)
        if data != group_metadata(documents.parse(self._root / ROOT, data).get("attributes", {})):
            self._damaged.append(Damage(ROOT, "is not the metadata of a group with these attributes", "metadata"))
        for group in groups(self._layout):
            self._compare(f"{group}/{ROOT}", publish.describe([group_metadata({})]), "metadata")

    def _calibrated(self) -> None:
        """The marker of the calibration, if there is one, and the shards that it names."""
        if not self._layout.calibration:
            return
        published = self._try(calibration.FILE, partial(calibration.find, self._storage, self._layout), "calibration")
        self._calibration = published.digest if published else None
        if any(damage.part == "calibration" for damage in self._damaged):
            self._require_shards(self._layout.calibration, "calibration")
        for array in self._layout.calibration:
            if published:
                self._compare(array.file(), published.shards[array.name], "calibration")

    def _seal(self, stop: int) -> Seal | None:
        seal = self._try(seal_file(stop), partial(read_seal, self._storage, self._store.identity, stop), "seal")
        if seal is None:  # what its parts are is not known
            numbered = (name for name in names_in(self._storage, "seals", ".json") if name.startswith(f"{stop}."))
            self._known |= {f"seals/{name}.json" for name in numbered}
        return seal

    def _listed(self, of: SealedViews) -> Iterator[tuple[BlockIndex, Marker | None]]:
        """The blocks of some sealed views, each with what its seal holds; None if that is damaged."""
        blocks = self._grid.blocks(of.first, of.stop)
        if of.seal is None:
            yield from ((block, None) for block in blocks)
            return
        for part in range(max(len(of.seal.parts), 1)):
            file = of.seal.files[part] if of.seal.parts else seal_file(of.stop)
            read = partial(read_table, self._storage, self._store.identity, of.seal, part)
            table = self._try(file, read, "seal") if of.seal.parts else read()
            for at, block in enumerate(itertools.islice(blocks, of.seal.count(part) if of.seal.parts else None)):
                yield block, of.seal.marker(block, table, at) if table else None

    def _marked(self) -> list[BlockIndex]:
        """Blocks above the sealed views that have a marker, in stored order.

        Blocks above the target count too: an extension would use them as its own.
        """
        self._markers = set(names_in(self._storage, "markers", ".json"))
        blocks = (block for name in self._markers if (block := BlockIndex.parse(name)) and self._grid.holds(block))
        return sorted(block for block in blocks if self._grid.views(block)[0] >= self._store.state.views_sealed)

    def _sealed_block(self, block: BlockIndex, wanted: Marker | None) -> None:
        """A block of sealed views; one that a repair has removed counts if it has a marker again."""
        if block in self._store.state.missing:
            if str(block) in self._markers:
                self._block(block)
            return
        file, before = marker_file(block), len(self._damaged)
        marker = self._read_marker(block)
        if marker is None and len(self._damaged) == before:
            self._damaged.append(Damage(file, "is not there, though its block is sealed", block))
        elif marker is not None and wanted is not None and marker != wanted:
            self._damaged.append(Damage(file, "differs from the seal of its block", block))
        if known := wanted or marker:
            self._shards(block, known)
        else:
            self._require_shards(self._layout.of_block(block), block)

    def _block(self, block: BlockIndex) -> None:
        """A block that has a marker and is not sealed."""
        if marker := self._read_marker(block):
            self._shards(block, marker)
        else:  # there was a block: what has the names of its shards is one, or damaged
            self._require_shards(self._layout.of_block(block), block)

    def _read_marker(self, block: BlockIndex) -> Marker | None:
        return self._try(marker_file(block), partial(read_marker, self._storage, self._store.identity, block), block)

    def _shards(self, block: BlockIndex, wanted: Marker) -> None:
        """The shards of a block, against what is known of them."""
        for array in self._layout.of_block(block):
            self._compare(array.file(block), wanted.shards[array.name], block)
        if not 0 <= wanted.version < len(self._store.state.versions):
            why = f"is of version {wanted.version}, the store has {len(self._store.state.versions)}"
            self._damaged.append(Damage(self._layout.codes[0].file(block), why, block))
        self._coded_with.setdefault(wanted.calibration, []).append(block)

    def _require_shards(self, arrays: Sequence[ArrayLayout], part: Part) -> None:
        for array in arrays:
            file = array.file(part) if isinstance(part, BlockIndex) else array.file()
            if not may_go(self._root / file, shard_of(array)):
                self._known.add(file)
                self._damaged.append(Damage(file, "is no shard", part))

    def _foreign_calibration(self) -> None:
        """Blocks that were coded with another calibration than is here; when all were, that one is not theirs."""
        if self._calibration is None and not self._store.state.views_sealed:
            return  # as a block without a marker it does not exist; a build makes the one that the blocks name
        others = {digest: blocks for digest, blocks in self._coded_with.items() if digest != self._calibration}
        if any(damage.part == "calibration" for damage in self._damaged) or not others:
            return
        if self._calibration in self._coded_with:
            for digest, blocks in others.items():
                why = f"was coded with calibration {digest}, the store's is {self._calibration}"
                self._damaged += [Damage(self._layout.codes[0].file(block), why, block) for block in blocks]
            return
        digest, blocks = next(iter(others.items()))
        found = f"is {self._calibration}" if self._calibration else "is not there"
        why = f"{found}, though block {blocks[0]} was coded with {digest}"
        self._damaged.append(Damage(calibration.FILE, why, "calibration"))

    def _compare(self, file: str, wanted: FileEntry, part: Part) -> None:
        found = self._try(file, lambda: publish.describe(read_pieces(self._storage, file)), part)
        if found is None:
            return
        for name in ("bytes", "crc32c", "xxh3"):
            expected, value = getattr(wanted, name), getattr(found, name)
            if value != expected:
                self._damaged.append(Damage(file, f"{name}: expected {expected}, found {value}", part))
                return

    def _try(self, file: str, read: Callable[[], T], part: Part) -> T | None:
        """The result of ``read`` for a file, or None after recording damage."""
        self._known.add(file)
        try:
            value = read()
            size = self._storage.size(file) if value is not None else 0
        except FileNotFoundError:
            self._damaged.append(Damage(file, "is not there", part))
            return None
        except (DamagedError, OSError) as error:
            if isinstance(error, OSError) and error.errno not in LOST:
                raise
            self._damaged.append(Damage(file, getattr(error, "why", None) or str(error), part))
            return None
        if value is not None:
            self._files += 1
            self._bytes += size
        return value
