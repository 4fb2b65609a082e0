"""LabelStore: soft labels of crops, written block by block and read by view and position."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.access.reading import Int64Array, Reader, require_indexes
from labelstore.access.records import AuditRows, BlockData, EncodedBlock, LabelBatch
from labelstore.access.streaming import STREAM_BYTES, Request, stream
from labelstore.durable import disk, documents, publish, removing
from labelstore.encodings import Codes, Encoding, Pairs, make_encoding
from labelstore.encodings.transform import Calibration, Transform
from labelstore.errors import DamagedError, GiftwrapError, InputError, LeaseError, NotStoredError
from labelstore.format import calibration as calibrations
from labelstore.format.arrays import AUDIT_BLOCK, ArrayLayout, StoreLayout
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.columns import CropRows
from labelstore.format.images import images_digest
from labelstore.format.leftovers import metadata_of, shard_of
from labelstore.format.root import (
    ROOT,
    Root,
    clear,
    make_skeleton,
    proof_of,
    read_root,
    require_folders,
    require_images,
    require_own,
    require_views,
    require_writable,
    root_document,
)
from labelstore.format.seals import PART, Marker, marker_file, seal_documents
from labelstore.format.shards import Shard
from labelstore.format.table import BlockTable
from labelstore.spec import Identity, Json, State, first_difference, require_integer, require_same
from labelstore.writing import lease as leases
from labelstore.writing.encoding import encode_block, fidelity_of, images_of, pairs_of, require_block_data
from labelstore.writing.queueing import Queue
from labelstore.writing.sealing import permutations, reseal
from labelstore.writing.space import require_free_space, store_bytes
from labelstore.writing.sweeping import leftovers, require_clear, take_back

__all__ = ["AuditRows", "BlockData", "LabelBatch", "LabelStore", "require_free_space", "store_bytes"]


class LabelStore:
    """A label store.

    Reading needs nothing; writing needs the lease: ``with store.lease(): ...``.

    Attributes:
        path: its folder.
        identity: what it is made of; never changes.
        state: views asked for, views sealed, versions, blocks that a repair removed; as of opening, or of this
            object's last change.
        notes: provenance of the images and the like; never compared.
        follow: whether views above ``views_sealed`` may be read where their markers are there.
    """

    def __init__(self, path: Path, root: Root, *, follow: bool = False) -> None:
        self.path, self.identity, self.state, self.follow = path, root.identity, root.state, follow
        self.notes, self.files, identity = root.notes, root.files, root.identity
        self._encoding: Encoding = make_encoding(identity.encoding, identity.columns, identity.format)
        self._calibration: calibrations.Published | None = None
        self._grid, self._layout = BlockGrid.of(identity), StoreLayout.of(identity)
        self._reader = self._new_reader()
        self._table = BlockTable(path, identity)
        self._lease: leases.Lease | None = None
        self._writer = 0  # process that took or shares the lease
        self._shares = False
        self._made: tuple[Path, ...] | None = None  # the folders that creating it made; None where it was there

    @property
    def encoding(self) -> Encoding:
        """Turns logits into codes and back; calibrated as soon as the store is."""
        if self._encoding.predictive and self._calibration is None:
            published = calibrations.find(self.path, self._layout)
            if published is not None and isinstance(self._encoding, Transform):
                self._encoding = self._encoding.calibrated(calibrations.read(self.path, self._layout, published))
                self._calibration = published
        return self._encoding

    @property
    def calibrated(self) -> bool:
        """Whether labels can be encoded: at once, or since the encoding was calibrated."""
        return not self.encoding.predictive or self._calibration is not None

    def calibrate(self, calibration: Calibration) -> None:
        """Publish what the encoding was fitted to, once, before the first block.

        Raises:
            InputError: when the encoding takes none, or has one already.
            LeaseError: when this process does not hold the store.
        """
        leases.require_held(self.path, self._require_lease())
        if self.calibrated or not self._encoding.predictive:
            raise InputError(f"{self.path}: is calibrated already; a calibration is never fitted again")
        calibrations.publish(self.path, self._layout, calibration, self._table.calibration(self.state))

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is a store at ``path``."""
        return (Path(path) / ROOT).exists()

    @classmethod
    def open(cls, path: Path | str, *, follow: bool = False) -> LabelStore:
        """Open a store for reading, or for writing once its lease is held.

        Raises:
            FormatError: when it is not a store, or one of another format.
            DamagedError: when its root metadata is not what was written, or a folder of it is a symbolic link.
        """
        root = Path(path)
        store = cls(root, read_root(root), follow=follow)
        require_folders(root, store._layout)
        return store

    @classmethod
    def create(
        cls,
        path: Path | str,
        identity: Identity,
        *,
        image_digests: npt.NDArray[np.uint8],
        targets: npt.NDArray[np.integer[Any]],
        views: int,
        versions: Sequence[Mapping[str, Json]] | None = None,
        notes: Mapping[str, Json] | None = None,
    ) -> LabelStore:
        """Make an empty store that wants ``views`` views, rounded up to whole blocks.

        Args:
            path: a folder that is absent, empty, or left by a creation that was stopped.
            identity: what the store is made of.
            image_digests: SHA-256 of each image, uint8 ``[N, 32]``.
            targets: hard label of each image ``[N]``.
            views: at least 1.
            versions: what made the views to come, where that is not the identity's engine and renderer alone.
            notes: provenance of the images and the like, kept beside the identity and never compared.

        Raises:
            InputError: when the folder holds something else, or the arrays do not fit the identity.
            LeaseError: when another build is making it.
        """
        root = Path(path)
        require_writable(root, identity)
        require_images(identity, image_digests, targets)
        target = require_views(identity, views)
        require_own(root)
        version: dict[str, Json] = {
            "first_view": 0,
            "engine": dict(identity.engine) if identity.engine is not None else None,
            "renderer": dict(identity.renderer) if identity.renderer is not None else None,
        }
        state = State(views_target=target, views_sealed=0, versions=tuple(versions or (version,)))
        made = tuple(folder for folder in (root, *root.parents) if not folder.exists())
        disk.make_folder(root)
        try:
            with leases.hold(root):
                try:
                    written = make_skeleton(root, identity, state, image_digests, targets, notes or {})
                except GiftwrapError:
                    clear(root)
                    raise
        except GiftwrapError:
            for folder in made:
                removing.remove_folder(folder)
            raise
        store = cls(root, written)
        store._made = made
        return store

    def discard(self) -> bool:
        """Take back a store that this object created, as long as nothing was written into it; whether it is gone.

        Only what this object published is removed. A store that was there before, that has a block, or a part of one,
        or that another build holds, stays as it is.
        """
        if self._made is None:
            return False
        try:
            with leases.hold(self.path):
                self.refresh()
                if not take_back(self.path, self.identity, self.state):
                    return False
        except GiftwrapError:
            return False
        for folder in self._made:
            removing.remove_folder(folder)
        return True

    @staticmethod
    def require_creatable(path: Path | str) -> None:
        """Refuse a place where no store can be created, without a change.

        Raises:
            InputError: when there is a store, or anything that a stopped creation does not leave.
            LeaseError: when another build is making one.
        """
        require_own(Path(path))
        leases.require_free(Path(path))

    @contextmanager
    def lease(self, *, take_over: bool = False) -> Iterator[LabelStore]:
        """Hold the store for writing; what a stopped build left behind is swept first.

        Args:
            take_over: take the lease of a build that is known to be dead, on another host or another boot of this one.

        Raises:
            LeaseError: when another build holds the store; names its host and process.
        """
        require_writable(self.path, self.identity)
        with leases.hold(self.path, take_over=take_over) as held:
            self._lease, self._writer = held, os.getpid()
            try:
                require_folders(self.path, self._layout)
                self.refresh()
                self.sweep()
                yield self
            finally:
                self._lease = None

    @contextmanager
    def share_lease(self, build: str) -> Iterator[LabelStore]:
        """Write blocks beside the process that holds the store; all else, sealing too, is the holder's.

        Args:
            build: what the holder has as :attr:`build`.

        Raises:
            LeaseError: when that build does not hold the store, or its holder is gone.
        """
        with leases.share(self.path, build) as held:
            self._lease, self._writer, self._shares = held, os.getpid(), True
            try:
                self.refresh()
                yield self
            finally:
                self._lease, self._shares = None, False

    @property
    def build(self) -> str:
        """Id of the build that holds the store by this object."""
        return self._require_lease().build

    def refresh(self) -> None:
        """Read the state again."""
        self.state = read_root(self.path).state

    @property
    def complete(self) -> bool:
        """Whether all views asked for are sealed, and no block of them is missing."""
        return self.state.views_sealed >= self.state.views_target and not self.state.missing

    @property
    def maker(self) -> str:
        """The command that makes missing blocks."""
        converted = "converted_from" in self.state.versions[0]
        return "python -m labelstore convert" if converted else "python -m pipeline build"

    @property
    def begun(self) -> bool:
        """Whether a block was ever published."""
        return self.state.views_sealed > 0 or bool(self._table.published(self.state))

    def views(self, block: BlockIndex) -> tuple[int, int]:
        """First view of a block, and the one after its last."""
        return self._grid.views(block)

    def positions(self, block: BlockIndex) -> tuple[int, int]:
        """First position of a block, and the one after its last."""
        return self._grid.positions(block)

    def sealed_blocks(self) -> list[BlockIndex]:
        """The blocks of all sealed views, but those that are missing, in stored order."""
        there = self._table.published(self.state) if self.state.missing else []
        gone = set(self.state.missing).difference(there)
        return [block for block in self._grid.blocks(0, self.state.views_sealed) if block not in gone]

    def missing(self) -> list[BlockIndex]:
        """The blocks that are still to be written, in stored order; those that a repair has removed among them."""
        there = set(self._table.published(self.state))
        removed = (BlockIndex(*block) for block in self.state.missing)
        wanted = self._grid.blocks(self.state.views_sealed, self.state.views_target)
        return [block for block in (*removed, *wanted) if block not in there]

    @property
    def missing_blocks(self) -> int:
        """How many blocks are still to be written."""
        views = self.state.views_target - self.state.views_sealed
        wanted = views // self.identity.block.views * self._grid.runs + len(self.state.missing)
        return wanted - len(self._table.published(self.state))

    def raise_target(
        self, views: int, *, engine: Mapping[str, Json] | None = None, renderer: Mapping[str, Json] | None = None
    ) -> int:
        """Ask for at least ``views`` views, rounded up to whole blocks, made by this engine and renderer.

        Where they are others than those of the last version, and blocks are missing, a new version begins with the
        first missing block; whether that is wanted is for the caller to decide.

        Returns:
            The views now asked for; never fewer than before.
        """
        self._require_lease()
        target = max(self.state.views_target, require_views(self.identity, views))
        self._require_clear(target)
        if self.state.views_before is not None:  # an extension was stopped
            self._resize_arrays(self.state.views_target)
        self._resize_arrays(target)
        versions = self.state.versions
        missing = self.missing()
        last = versions[-1]
        version: dict[str, Json] = {
            "first_view": self.views(missing[0])[0] if missing else 0,
            "engine": dict(engine) if engine is not None else last["engine"],
            "renderer": dict(renderer) if renderer is not None else last["renderer"],
        }
        same = {**version, "first_view": last["first_view"]}
        named = engine is not None or renderer is not None
        if named and missing and first_difference(dict(last), same):
            self._set_state(dataclasses.replace(self.state, versions=(*versions, version)))
        return target

    def _resize_arrays(self, views: int) -> None:
        """Ask for ``views`` views, and give the arrays that length; the state tells what they had until all have."""
        arrays = {f"{array.name}/{ROOT}": array for array in self._layout.blocks}
        stale = [name for name, array in arrays.items() if self._metadata_of(name) != array.metadata(views)]
        for name in stale:
            if not removing.may_go(self.path / name, metadata_of(arrays[name])):
                raise DamagedError.of(self.path / name, "is not the metadata that follows from the identity")
        if stale and views > self.state.views_target:
            before = self.state.views_target
            self._set_state(dataclasses.replace(self.state, views_target=views, views_before=before))
        for name in stale:
            publish.replace(self.path, name, arrays[name].metadata(views), metadata_of(arrays[name]))
        self._set_state(dataclasses.replace(self.state, views_target=views, views_before=None))

    def _metadata_of(self, name: str) -> bytes | None:
        """The metadata of an array as it is; None where it cannot be read, and is to be written again."""
        try:
            return disk.read_file(self.path / name, documents.MAX_BYTES)
        except (FileNotFoundError, DamagedError):
            return None

    def carry_versions(self, versions: Sequence[Mapping[str, Json]]) -> None:
        """Take over the versions of a store from which blocks come.

        Raises:
            MismatchError: when the versions that are here already do not begin them.
        """
        self._require_lease()
        ours: list[Json] = [dict(version) for version in self.state.versions]
        theirs: list[Json] = [dict(version) for version in versions]
        common = min(len(ours), len(theirs))
        require_same("origin of the views", ours[:common], theirs[:common], "give another folder to write to")
        if len(theirs) > common:
            self._set_state(dataclasses.replace(self.state, versions=tuple(versions)))

    def write(self, block: BlockIndex, data: BlockData) -> None:
        """Publish a block: its shards, then its marker.

        Raises:
            InputError: when the block is not missing, or the data is not a block: shapes, NaN, Inf, image indexes.
            LeaseError: when this process does not hold the store.
        """
        self._publish(block, self._prepare(block, data))

    @contextmanager
    def writer(
        self,
        depth: int = 1,
        *,
        encode: Callable[[npt.NDArray[np.float32], Pairs], Codes] | None = None,
        at: Callable[[str], AbstractContextManager[object]] = nullcontext,
        written: Callable[[BlockIndex], object] = lambda _block: None,
    ) -> Iterator[Queue[[BlockIndex, BlockData]]]:
        """Publish blocks behind queues: ``with store.writer() as write: write(block, data)``.

        One thread encodes, another one writes. Errors of :meth:`write` are raised by the next call or when the writer
        is left; leaving it by an exception publishes the block in hand and none of those that wait.

        Args:
            depth: blocks that wait to be encoded, at most; one more waits to be written.
            encode: makes the codes instead of the store's encoding, which does the same.
            at: entered by the threads while they work, with ``encode`` or ``write``.
            written: called after a block is published.
        """

        def publish_one(block: BlockIndex, encoded: EncodedBlock) -> None:
            with at("write"):
                self._publish(block, encoded)
            written(block)

        with Queue(publish_one, 1) as publish_encoded:

            def prepare(block: BlockIndex, data: BlockData) -> None:
                with at("encode"):
                    if encode is not None:
                        data = dataclasses.replace(data, codes=encode(data.logits, pairs_of(self.identity, data.rows)))
                    encoded = self._prepare(block, data)
                publish_encoded(block, encoded)

            with Queue(prepare, depth) as write:
                yield write

    def seal(self) -> None:
        """Seal the views asked for: write their table, then raise ``views_sealed``.

        Raises:
            NotStoredError: when a block is missing.
            InputError: when the blocks of a view do not show every image once.
        """
        held = self._require_lease()
        if self.complete:
            return
        if missing := self.missing():
            raise NotStoredError(f"{self.path}: {len(missing)} blocks are missing, first {missing[0]}; write them")
        leases.require_held(self.path, held)
        if self.state.missing:
            stale = reseal(self.path, self.identity, self.state, self._table)
            self._set_state(dataclasses.replace(self.state, missing=()))
            self._table.forget()
            for name in stale:
                removing.remove(self.path / name, PART)
        views = (self.state.views_sealed, self.state.views_target)
        if views[0] < views[1]:
            markers = permutations(self.identity, map(self._marker, self._grid.blocks(*views)))
            for name, file in seal_documents(self.identity, self.state, markers, views):
                publish.publish(self.path, {name: file})
            self._set_state(dataclasses.replace(self.state, views_sealed=views[1]))

    def unseal(self, views: int) -> None:
        """Seal only the views below ``views``, the end of a seal: what comes above is checked, and sealed again."""
        self._require_lease()
        kept = tuple(block for block in self.state.missing if block[0] < views // self.identity.block.views)
        self._set_state(dataclasses.replace(self.state, views_sealed=views, missing=kept))
        self.sweep()

    def remove(self, blocks: Iterable[BlockIndex]) -> None:
        """List sealed blocks as missing, before a repair removes their files."""
        self._require_lease()
        sealed = {(block.i, block.j) for block in blocks if self.views(block)[0] < self.state.views_sealed}
        missing = tuple(sorted({*self.state.missing, *sealed}))
        self._set_state(dataclasses.replace(self.state, missing=missing))

    def sweep(self) -> None:
        """Remove what a stopped build left: temporaries, shards without a marker, a seal that seals nothing."""
        self._require_lease()
        leases.clear_partial(self.path)
        calibrated = (self.path / calibrations.FILE).exists()  # damaged or not
        missing, parts = set(self.missing()), self._table.parts(self.state)
        found = leftovers(self.path, self.identity, self.state, missing, calibrated=calibrated, parts=parts)
        for file, proof in found:
            removing.remove(file, proof)

    def require_writable(self, views: int, *, take_over: bool = False) -> None:
        """Refuse what a build of ``views`` views would be refused for by the store, without a change.

        Raises:
            InputError: when files that no build has left have names that it will need.
            LeaseError: when another build holds the store.
        """
        leases.require_free(self.path, take_over=take_over)
        self._require_clear(max(self.state.views_target, require_views(self.identity, views)))

    def read(self, view: int, positions: slice | npt.ArrayLike) -> LabelBatch:
        """Labels and crop rows of some positions of a view.

        Args:
            view: a sealed view; with ``follow``, one whose blocks have markers.
            positions: a slice, or integers ``[n]`` in any order.

        Raises:
            NotStoredError: when the view is not there (yet).
            DamagedError: when what is on disk is not what was published.
        """
        return self._batch(self._reader, view, positions)

    def stream(
        self,
        requests: Iterable[Request],
        *,
        budget_bytes: int = STREAM_BYTES,
        decode: Callable[[Codes, Pairs], Any] | None = None,
    ) -> Iterator[LabelBatch]:
        """Labels and crop rows of many (view, positions), in the order of the requests, read ahead by a thread.

        Args:
            requests: taken ahead, in the thread.
            budget_bytes: the most bytes of encoded blocks that are ahead or in use.
            decode: makes the batches' ``logits`` of codes, on a device perhaps; the encoding's own when None.

        Raises:
            NotStoredError: as :meth:`read` does, when the turn of the request comes.
            DamagedError: likewise.
        """
        reader = self._new_reader(map_bytes=budget_bytes)
        return stream(requests, reader, self._index, partial(self._batch, reader, decode=decode), budget_bytes)

    def stream_codes(
        self, requests: Iterable[Request], *, budget_bytes: int = STREAM_BYTES
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """What :meth:`codes` gives for many (view, positions), read ahead as :meth:`stream` does."""
        reader = self._new_reader(map_bytes=budget_bytes)

        def read(view: int, positions: slice | npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
            return reader.codes(*self._index(view, positions))

        return stream(requests, reader, self._index, read, budget_bytes)

    def read_images(self, view: int, images: slice | npt.ArrayLike) -> LabelBatch:
        """Labels and crop rows of some images in a view, in the order of ``images``."""
        view = self._readable(view)
        index = require_indexes("images", images, self.identity.images)
        return self.read(view, self._reader.positions_of(view, index))

    def codes(self, view: int, positions: slice | npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        """Codes of the labels as they are stored, one array ``[n, ...]`` for each array of the encoding."""
        return self._reader.codes(*self._index(view, positions))

    def rows(self, view: int, positions: slice | npt.ArrayLike) -> CropRows:
        """What made the crops at some positions of a view, without their labels."""
        return CropRows(self.identity.crop_columns, self._reader.rows(*self._index(view, positions)))

    def pairs(self, view: int, positions: slice | npt.ArrayLike) -> Pairs:
        """Which two images each crop shows, and the weight of the first ``[n]``."""
        return self._reader.pairs(*self._index(view, positions))

    def audit(self) -> AuditRows:
        """The first crops of view 0, whole, with their float16 logits."""
        shards = self._marker(AUDIT_BLOCK).shards
        return AuditRows(*(self._whole(array, shards[array.name]) for array in self._layout.audit))

    @property
    def fidelity(self) -> Json:
        """Fidelity of the encoding: rows, mean and 1st percentile, mixed and unmixed apart; None before block 0.0."""
        marker = self._table.marker(AUDIT_BLOCK, self.state)
        return marker.fidelity if marker else None

    def pixels_digest(self, block: BlockIndex) -> str:
        """BLAKE2b-64 of the pixels of a block's first positions, hex."""
        return self._marker(block).pixels

    def version(self, block: BlockIndex) -> Mapping[str, Json]:
        """The engine and renderer that made a block."""
        return self.state.versions[self.version_index(block)]

    def version_index(self, block: BlockIndex) -> int:
        """Which of the state's versions made a block."""
        return self._marker(block).version

    def bytes_per_label(self) -> dict[str, float]:
        """Measured bytes a label: ``labels``, ``columns`` and ``side``; zeros before the first block.

        ``side`` is what decoding takes besides: scales, and the calibration spread over the labels that are there.
        """
        totals, count = self._table.bytes(self.state)
        if count and self.calibrated and self._calibration:
            totals["calibration"] = sum(entry.bytes for entry in self._calibration.shards.values())
        each = {name: round(total / max(count, 1), 3) for name, total in totals.items()}
        side = sum(size for name, size in each.items() if name not in ("labels", "rows"))
        return {"labels": each["labels"], "columns": each["rows"], "side": side}

    @cached_property
    def _targets(self) -> Int64Array:
        found = self._whole(self._layout.target, self.files.get(self._layout.target.name)).astype(np.int64)
        if found.max() >= (known := len(self.identity.classes)):
            raise DamagedError.of(self.path / ROOT, f"has {known} classes, an image is of class {found.max()}")
        return found

    @cached_property
    def _target_columns(self) -> Int64Array:
        return np.array(self.identity.label_columns, np.int64)[self._targets]

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
        return self._whole(self._layout.digest, self.files.get(self._layout.digest.name))

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.follow)

    def __repr__(self) -> str:
        state = self.state
        return f"LabelStore({str(self.path)!r}, {state.views_sealed} of {state.views_target} views sealed)"

    def _prepare(self, block: BlockIndex, data: BlockData) -> EncodedBlock:
        """A block as it will be published; nothing is written."""
        self._require_writable(block)
        require_block_data(self.identity, self.encoding, block, data)
        first = block == AUDIT_BLOCK
        return EncodedBlock(
            files=encode_block(self.identity, self.encoding, block, data),
            pixels=data.pixels_digest,
            images=images_digest(images_of(self.identity, data.rows)),
            version=len(self.state.versions) - 1 if data.version is None else data.version,
            fidelity=fidelity_of(self.identity, self.encoding, data, self._target_columns) if first else None,
        )

    def _publish(self, block: BlockIndex, encoded: EncodedBlock) -> None:
        held = self._require_lease(shared=True)
        self._require_writable(block)
        leases.require_held(self.path, held)
        arrays = self._layout.of_block(block)
        for array in arrays:
            removing.remove(self.path / array.file(block), shard_of(array))
        publish.publish(self.path, {array.file(block): encoded.files[array.name] for array in arrays})
        marker = Marker(
            block=block,
            shards={array.name: encoded.files[array.name].entry for array in arrays},
            pixels=encoded.pixels,
            images=encoded.images,
            version=encoded.version,
            fidelity=encoded.fidelity,
            calibration=self._calibration.digest if self._calibration else None,
        )
        document = publish.Described.of(documents.encode(marker.to_json(self._grid)))
        publish.publish(self.path, {marker_file(block): document})

    def _require_writable(self, block: BlockIndex) -> None:
        self._require_lease(shared=True)
        above = self.state.views_sealed <= self.views(block)[0] < self.state.views_target and self._grid.holds(block)
        if not (above or block in self.state.missing):
            raise InputError(f"block {block} is not one of the blocks to be written: see missing()")
        if (self.path / marker_file(block)).exists():
            raise InputError(f"block {block} is published already; a block is never written twice")

    def _require_clear(self, target: int) -> None:
        """Refuse to write the blocks below ``target`` while others' files have their names."""
        wanted = dataclasses.replace(self.state, views_target=max(target, self.state.views_target))
        there = set(self._table.published(wanted))
        blocks = (*map(BlockIndex._make, wanted.missing), *self._grid.blocks(wanted.views_sealed, wanted.views_target))
        missing = {block for block in blocks if block not in there}
        calibrated = (self.path / calibrations.FILE).exists()
        require_clear(self.path, self.identity, missing, target, calibrated=calibrated)

    def _new_reader(self, map_bytes: int | None = None) -> Reader:
        return Reader(self.path, self.identity, self._marker, components=self._components, map_bytes=map_bytes)

    def _components(self) -> int:
        """Codes of a row of the calibrated encoding."""
        if not self.calibrated or self._calibration is None:
            raise NotStoredError(f"{self.path}: is not calibrated yet; continue the build")
        return self._calibration.components

    def _batch(
        self,
        reader: Reader,
        view: int,
        positions: slice | npt.ArrayLike,
        decode: Callable[[Codes, Pairs], Any] | None = None,
    ) -> LabelBatch:
        view, index = self._index(view, positions)
        parts = reader.by_block(view, index)
        rows = CropRows(self.identity.crop_columns, reader.rows(view, index, parts))
        pairs = reader.pairs(view, index, parts) if self.encoding.predictive else Pairs.unmixed(rows.image)
        logits = (decode or self.encoding.decode)(reader.codes(view, index, parts), pairs)
        return LabelBatch(view, index, rows, logits, self._target_columns[rows.image])

    def _whole(self, array: ArrayLayout, entry: publish.FileEntry | None) -> npt.NDArray[Any]:
        return Shard(array, array.shape, self.path / array.file(), entry).read()

    def _index(self, view: int, positions: slice | npt.ArrayLike) -> tuple[int, Int64Array]:
        return self._readable(view), require_indexes("positions", positions, self.identity.images)

    def _readable(self, view: int) -> int:
        """A view that can be read, as Python's integer."""
        view = require_integer("view", view)
        if self.follow and view >= self.state.views_target:
            self.refresh()
        readable = self.state.views_target if self.follow else self.state.views_sealed
        if not 0 <= view < readable:
            sealed, target = self.state.views_sealed, self.state.views_target
            hint = "finish the build" if sealed <= view < target else "ask for another view, or extend the store"
            raise NotStoredError(
                f"{self.path}: view {view} cannot be read: {sealed} of {target} views are sealed; {hint}"
            )
        return view

    def _marker(self, block: BlockIndex) -> Marker:
        if marker := self._table.marker(block, self.state):
            if self.calibrated and self._calibration and marker.calibration != self._calibration.digest:
                raise DamagedError(
                    f"{self.path}: block {block} was coded with calibration {marker.calibration}, "
                    f"{calibrations.FILE} is {self._calibration.digest}; restore it from a copy of the store"
                )
            return marker
        if block in self.state.missing:
            first, stop = self.views(block)
            raise NotStoredError(
                f"{self.path}: block {block} of views {first} to {stop - 1} was damaged and is removed; run the "
                f"`{self.maker}` that made the store: it fills what is missing"
            )
        raise NotStoredError(f"{self.path}: block {block} is not written yet; continue the build")

    def _require_lease(self, *, shared: bool = False) -> leases.Lease:
        if self._lease is None or (self._shares and not shared):
            raise LeaseError(f"{self.path}: writing needs the lease: `with store.lease(): ...`")
        if self._writer != os.getpid():
            raise LeaseError(
                f"{self.path}: process {self._writer} has the lease, not process {os.getpid()}, which was forked from "
                f"it; open the store here and write in `with store.share_lease({self._lease.build!r}): ...`"
            )
        return self._lease

    def _set_state(self, state: State) -> None:
        if state != self.state:
            root = root_document(Root(self.identity, self.files, self.notes, state))
            publish.replace(self.path, ROOT, root, proof_of(self.identity))
            self.state = state


def _reopen(path: Path, follow: bool) -> LabelStore:
    """Open a store in another process."""
    return LabelStore.open(path, follow=follow)
