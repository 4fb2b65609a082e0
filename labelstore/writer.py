"""Writing a store, under its lease: to have a writer is to hold the lease.

:class:`StoreWriter` is for the process that holds the lease, :class:`BlockWriter` for those that share it.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import numpy.typing as npt

from labelstore.access.contents import Contents
from labelstore.access.records import BlockData, EncodedBlock
from labelstore.durable import disk, documents, publish, removing
from labelstore.encodings import Codes, Pairs
from labelstore.encodings.components import Calibration
from labelstore.errors import DamagedError, InputError, LeaseError, NotStoredError
from labelstore.format import calibration as calibrations
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockIndex
from labelstore.format.images import images_digest
from labelstore.format.leftovers import metadata_of, shard_of
from labelstore.format.root import ROOT, Root, proof_of, require_views, root_document
from labelstore.format.seals import PART, Marker, marker_file, seal_documents
from labelstore.spec import Json, State, first_difference, require_same
from labelstore.writing import lease as leases
from labelstore.writing import sweeping
from labelstore.writing.encoding import encode_block, fidelity_of, images_of, pairs_of, require_block_data
from labelstore.writing.queueing import Queue
from labelstore.writing.sealing import permutations, reseal


class BlockWriter:
    """Writes blocks of a store, together with other processes of the build.

    Args:
        store: the store.
        lease: as :mod:`labelstore.writing.lease` gives it to this process, for as long as this is not closed.
    """

    def __init__(self, store: Contents, lease: leases.Lease) -> None:
        self._store, self._lease, self._pid = store, lease, os.getpid()
        self._closed = False

    def close(self) -> None:
        """Write no more: the lease is about to end."""
        self._closed = True

    @property
    def store(self) -> Contents:
        """The store, as long as this process may write it: every change goes through here.

        Raises:
            LeaseError: when the lease has ended, or another process has it.
        """
        self._require_lease()
        return self._store

    @property
    def build(self) -> str:
        """Id of the build that holds the store."""
        self._require_lease()
        return self._lease.build

    def write(self, block: BlockIndex, data: BlockData) -> None:
        """Publish a block: its shards, then its marker.

        Raises:
            InputError: when the block is not missing, or the data is not a block: shapes, NaN, Inf, image indexes.
            LeaseError: when this process does not hold the store.
        """
        self._publish(block, self._prepare(block, data))

    @contextmanager
    def queue(
        self,
        depth: int = 1,
        *,
        encode: Callable[[npt.NDArray[np.float32], Pairs], Codes] | None = None,
        at: Callable[[str], AbstractContextManager[object]] = nullcontext,
        written: Callable[[BlockIndex], object] = lambda _block: None,
    ) -> Iterator[Queue[[BlockIndex, BlockData]]]:
        """Encode and publish blocks in the background: ``with writer.queue() as write: write(block, data)``.

        One thread encodes, another one writes. Errors of :meth:`write` are raised by the next call or when the context
        ends; when an exception ends it, the current block is published and none of those that wait.

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
                        data = dataclasses.replace(
                            data, codes=encode(data.logits, pairs_of(self.store.identity, data.rows))
                        )
                    encoded = self._prepare(block, data)
                publish_encoded(block, encoded)

            with Queue(prepare, depth) as write:
                yield write

    def _require_lease(self) -> None:
        path = self._store.path
        if self._closed:
            raise LeaseError(f"{path}: writing needs the lease: `with store.lease() as writer: ...`")
        if self._pid != os.getpid():
            raise LeaseError(
                f"{path}: process {self._pid} has the lease, not process {os.getpid()}, which was forked from it; "
                f"open the store here and write in `with store.join_lease({self._lease.build!r}) as writer: ...`"
            )

    def _require_held(self) -> Contents:
        """The store, after checking that this lease is still held; used before irreversible steps."""
        leases.require_held(self.store.path, self._lease)
        return self.store

    def _prepare(self, block: BlockIndex, data: BlockData) -> EncodedBlock:
        """A block as it will be published; nothing is written."""
        self._require_writable(block)
        store = self.store
        require_block_data(store.identity, store.encoding, block, data)
        first = block == AUDIT_BLOCK
        return EncodedBlock(
            files=encode_block(store.identity, store.encoding, block, data),
            pixels=data.pixels_digest,
            images=images_digest(images_of(store.identity, data.rows)),
            version=len(store.state.versions) - 1 if data.version is None else data.version,
            fidelity=fidelity_of(store.identity, store.encoding, data, store.target_columns) if first else None,
        )

    def _publish(self, block: BlockIndex, encoded: EncodedBlock) -> None:
        self._require_writable(block)
        store = self._require_held()
        arrays = store.layout.of_block(block)
        for array in arrays:
            removing.remove(store.path / array.file(block), shard_of(array))
        publish.publish(store.path, {array.file(block): encoded.files[array.name] for array in arrays})
        marker = Marker(
            block=block,
            shards={array.name: encoded.files[array.name].entry for array in arrays},
            pixels=encoded.pixels,
            images=encoded.images,
            version=encoded.version,
            fidelity=encoded.fidelity,
            calibration=store.calibration.digest if store.calibration else None,
        )
        document = publish.Described.of(documents.encode(marker.to_json(store.grid)))
        publish.publish(store.path, {marker_file(block): document})

    def _require_writable(self, block: BlockIndex) -> None:
        store = self.store
        first = store.block_views(block)[0]
        above = store.state.views_sealed <= first < store.state.views_target and store.grid.holds(block)
        if not (above or block in store.state.missing):
            raise InputError(f"block {block} is not one of the blocks to be written: see missing()")
        if (store.path / marker_file(block)).exists():
            raise InputError(f"block {block} is published already; a block is never written twice")


class StoreWriter(BlockWriter):
    """Writes a store: its calibration, its blocks, its seals and its state."""

    def calibrate(self, calibration: Calibration) -> None:
        """Publish what the encoding was fitted to, once, before the first block.

        Raises:
            InputError: when the encoding takes none, or has one already.
            LeaseError: when this process does not hold the store.
        """
        store = self._require_held()
        if store.calibrated:
            raise InputError(f"{store.path}: is calibrated already; a calibration is never fitted again")
        calibrations.publish(store.path, store.layout, calibration, store.table.calibration(store.state))

    def raise_target(
        self, views: int, *, engine: Mapping[str, Json] | None = None, renderer: Mapping[str, Json] | None = None
    ) -> int:
        """Ask for at least ``views`` views, rounded up to whole blocks, made by this engine and renderer.

        Where they are others than those of the last version, and blocks are missing, a new version begins with the
        first missing block; whether that is wanted is for the caller to decide.

        Returns:
            The views now requested; never fewer than before.
        """
        target = max(self.store.state.views_target, require_views(self.store.identity, views))
        require_clear(self.store, target)
        if self.store.state.views_before is not None:  # an extension was stopped
            self._resize_arrays(self.store.state.views_target)
        self._resize_arrays(target)
        versions = self.store.state.versions
        missing = self.store.missing()
        last = versions[-1]
        version: dict[str, Json] = {
            "first_view": self.store.block_views(missing[0])[0] if missing else 0,
            "engine": dict(engine) if engine is not None else last["engine"],
            "renderer": dict(renderer) if renderer is not None else last["renderer"],
        }
        same = {**version, "first_view": last["first_view"]}
        named = engine is not None or renderer is not None
        if named and missing and first_difference(dict(last), same):
            self._set_state(dataclasses.replace(self.store.state, versions=(*versions, version)))
        return target

    def carry_versions(self, versions: Sequence[Mapping[str, Json]]) -> None:
        """Take over the versions of a store from which blocks come.

        Raises:
            MismatchError: when the versions that are here already do not begin them.
        """
        ours: list[Json] = [dict(version) for version in self.store.state.versions]
        theirs: list[Json] = [dict(version) for version in versions]
        common = min(len(ours), len(theirs))
        require_same("origin of the views", ours[:common], theirs[:common], "give another folder to write to")
        if len(theirs) > common:
            self._set_state(dataclasses.replace(self.store.state, versions=tuple(versions)))

    def seal(self) -> None:
        """Seal the requested views: write their table, then raise ``views_sealed``.

        Raises:
            NotStoredError: when a block is missing.
            InputError: when the blocks of a view do not show every image once.
        """
        store = self.store
        if store.complete:
            return
        if missing := store.missing():
            raise NotStoredError(f"{store.path}: {len(missing)} blocks are missing, first {missing[0]}; write them")
        self._require_held()
        if store.state.missing:
            stale = reseal(store.path, store.identity, store.state, store.table)
            self._set_state(dataclasses.replace(store.state, missing=()))
            store.table.forget()
            for name in stale:
                removing.remove(store.path / name, PART)
        views = (store.state.views_sealed, store.state.views_target)
        if views[0] < views[1]:
            markers = permutations(store.identity, map(store.marker, store.grid.blocks(*views)))
            for name, file in seal_documents(store.identity, store.state, markers, views):
                publish.publish(store.path, {name: file})
            self._set_state(dataclasses.replace(store.state, views_sealed=views[1]))

    def unseal(self, views: int) -> None:
        """Seal only the views below ``views``, the end of a seal: what comes above is checked, and sealed again."""
        kept = tuple(block for block in self.store.state.missing if block[0] < views // self.store.identity.block.views)
        self._set_state(dataclasses.replace(self.store.state, views_sealed=views, missing=kept))
        self.sweep()

    def remove(self, blocks: Iterable[BlockIndex]) -> None:
        """List sealed blocks as missing, before a repair removes their files."""
        store = self.store
        sealed = {(block.i, block.j) for block in blocks if store.block_views(block)[0] < store.state.views_sealed}
        missing = tuple(sorted({*store.state.missing, *sealed}))
        self._set_state(dataclasses.replace(self.store.state, missing=missing))

    def sweep(self) -> None:
        """Remove what a stopped build left: temporaries, shards without a marker, a seal that seals nothing."""
        store = self.store
        leases.clear_partial(store.path)
        calibrated = (store.path / calibrations.FILE).exists()  # damaged or not
        missing, parts = set(store.missing()), store.table.parts(store.state)
        found = sweeping.leftovers(store.path, store.identity, store.state, missing, calibrated=calibrated, parts=parts)
        for file, proof in found:
            removing.remove(file, proof)

    def _resize_arrays(self, views: int) -> None:
        """Ask for ``views`` views, and give the arrays that length; until all have it, the state has both lengths."""
        store = self.store
        arrays = {f"{array.name}/{ROOT}": array for array in store.layout.blocks}
        stale = [name for name, array in arrays.items() if self._metadata_of(name) != array.metadata(views)]
        for name in stale:
            if not removing.may_go(store.path / name, metadata_of(arrays[name])):
                raise DamagedError.of(store.path / name, "is not the metadata that follows from the identity")
        if stale and views > store.state.views_target:
            before = store.state.views_target
            self._set_state(dataclasses.replace(store.state, views_target=views, views_before=before))
        for name in stale:
            publish.replace(store.path, name, arrays[name].metadata(views), metadata_of(arrays[name]))
        self._set_state(dataclasses.replace(store.state, views_target=views, views_before=None))

    def _metadata_of(self, name: str) -> bytes | None:
        """The current metadata of an array; None if it cannot be read, and must be written again."""
        try:
            return disk.read_file(self.store.path / name, documents.MAX_BYTES)
        except (FileNotFoundError, DamagedError):
            return None

    def _set_state(self, state: State) -> None:
        store = self.store
        if state != store.state:
            root = root_document(Root(store.identity, store.files, store.notes, state))
            publish.replace(store.path, ROOT, root, proof_of(store.identity))
            store.state = state


def require_clear(store: Contents, target: int) -> None:
    """Refuse to write the blocks below view ``target`` while others' files have their names.

    Raises:
        InputError: names the first such file.
    """
    wanted = dataclasses.replace(store.state, views_target=max(target, store.state.views_target))
    there = set(store.table.published(wanted))
    blocks = (*map(BlockIndex._make, wanted.missing), *store.grid.blocks(wanted.views_sealed, wanted.views_target))
    missing = {block for block in blocks if block not in there}
    calibrated = (store.path / calibrations.FILE).exists()
    sweeping.require_clear(store.path, store.identity, missing, wanted.views_target, calibrated=calibrated)
