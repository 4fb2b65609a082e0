"""LabelStore: soft labels of crops, read by view and position."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from labelstore.access.contents import Contents
from labelstore.access.reading import Int64Array, Reader, Views, require_indexes
from labelstore.access.records import AuditRows, BlockData, LabelBatch, LabelsOfImage
from labelstore.access.streaming import STREAM_BYTES, Request, stream
from labelstore.durable.keeping import Cached, PieceCache
from labelstore.durable.storage import LocalStorage, ReadStorage, storage_at
from labelstore.encodings import Codes, Pairs
from labelstore.errors import InputError, NotStoredError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockIndex
from labelstore.format.columns import CropRows
from labelstore.format.root import ROOT, Root, read_root, require_folders, require_own, require_views, require_writable
from labelstore.spec import Identity, Json, require_integer
from labelstore.writer import BlockWriter, StoreWriter, require_clear
from labelstore.writing import lease as leases
from labelstore.writing.creating import create_root, take_back
from labelstore.writing.space import require_free_space, store_bytes

__all__ = ["AuditRows", "BlockData", "LabelBatch", "LabelStore", "require_free_space", "store_bytes"]


class LabelStore(Contents):
    """A label store, to be read; ``with store.lease() as writer: ...`` gives what writes it.

    ``with LabelStore.open(path) as store: ...`` closes it at the end, which only frees memory: no file stays open.

    Args:
        storage: where the store is read from.
        root: what its root metadata holds.
        follow: whether views above ``views_sealed`` may be read where their markers are there.
    """

    def __init__(self, storage: ReadStorage, root: Root, *, follow: bool = False) -> None:
        super().__init__(storage, root)
        self.follow = follow
        self._reader, self._closed = self._new_reader(), False
        self._made: tuple[Path, ...] | None = None  # the folders that creating it made; None if it was there

    @staticmethod
    def exists(path: Path | str) -> bool:
        """Whether there is a store at ``path``."""
        return (Path(path) / ROOT).exists()

    @classmethod
    def open(
        cls, path: Path | str | ReadStorage, *, follow: bool = False, cache: PieceCache | None = None
    ) -> LabelStore:
        """Open a store for reading, or for writing once its lease is held.

        Args:
            path: its folder; or its address, or what else it is read from, and then it cannot be written.
            follow: as of the class.
            cache: keeps on this machine what is read of a store that is elsewhere.

        Raises:
            FormatError: when it is not a store, or one of another format.
            DamagedError: when its root metadata is not what was written, or a folder of it is a symbolic link.
            AddressError: when what is at the address cannot be read.
        """
        storage = storage_at(path) if isinstance(path, Path | str) else path
        if cache and not isinstance(storage, LocalStorage):
            storage = Cached(storage, cache)
        store = cls(storage, read_root(storage), follow=follow)
        if isinstance(storage, LocalStorage):
            require_folders(storage.root, store.layout)
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
        """Make an empty store of ``views`` requested views, rounded up to whole blocks.

        Args:
            path: a folder that is absent, empty, or left by a creation that was stopped.
            identity: identity of the store.
            image_digests: SHA-256 of each image, uint8 ``[N, 32]``.
            targets: hard label of each image ``[N]``.
            views: at least 1.
            versions: engine, renderer and software of the next views, if they differ from the identity's.
            notes: provenance of the images and the like, kept beside the identity and never compared.

        Raises:
            InputError: when the folder holds something else, or the arrays do not fit the identity.
            LeaseError: when another build is making it.
        """
        root = Path(path)
        created = create_root(root, identity, image_digests, targets, views, versions, notes or {})
        store = cls(LocalStorage(root), created.root)
        store._made = created.folders
        return store

    def discard(self) -> bool:
        """Remove a store that this object created, as long as nothing was written into it; whether it is gone.

        Only what this object published is removed. A store that was there before, that has a block, or a part of one,
        or that another build holds, is left unchanged.
        """
        return self._made is not None and take_back(self.path, self.identity, self._made)

    @staticmethod
    def require_creatable(path: Path | str) -> None:
        """Refuse a place where no store can be created, without a change.

        Raises:
            InputError: when there is a store, or anything that a stopped creation does not leave.
            LeaseError: when another build is making one.
        """
        require_own(Path(path))
        leases.require_free(Path(path))

    def require_writable(self, views: int, *, take_over: bool = False) -> None:
        """Refuse what a build of ``views`` views would be refused for by the store, without a change.

        Raises:
            InputError: when files that no build has left have names that it will need.
            LeaseError: when another build holds the store.
        """
        leases.require_free(self.path, take_over=take_over)
        require_clear(self, require_views(self.identity, views))

    def require_local(self) -> None:
        """Refuse a store that is read from elsewhere than a folder of this machine, and so cannot be written.

        Raises:
            InputError: names what it is read by.
        """
        if not isinstance(self.storage, LocalStorage):
            raise InputError(
                f"{self.path}: expected a store in a folder of this machine to write to, found one that is read by "
                f"{type(self.storage).__name__}; copy it to a folder and open that"
            )

    @contextmanager
    def lease(self, *, take_over: bool = False, job: tuple[str, int] = ("", 0)) -> Iterator[StoreWriter]:
        """Hold the store for writing; what a stopped build left is removed first.

        This object sees what the writer changes.

        Args:
            take_over: take the lease of a build that is known to be dead, on another host or another boot of this one.
            job: id of a cluster's job, and which start of it this is; the lease of an earlier start is taken over too.

        Raises:
            LeaseError: when another build holds the store; names its host and process.
        """
        self.require_local()
        require_writable(self.path, self.identity)
        with leases.hold(self.path, take_over=take_over, job=job) as held, closing(StoreWriter(self, held)) as writer:
            require_folders(self.path, self.layout)
            self.refresh()
            writer.sweep()
            yield writer

    @contextmanager
    def join_lease(self, build: str) -> Iterator[BlockWriter]:
        """Write blocks together with the process that holds the store; only the holder seals, sweeps and extends.

        Args:
            build: what the holder has as :attr:`StoreWriter.build`.

        Raises:
            LeaseError: when that build does not hold the store, or its holder is gone.
        """
        self.require_local()
        with leases.join(self.path, build) as held, closing(BlockWriter(self, held)) as writer:
            self.refresh()
            yield writer

    @property
    def views(self) -> int:
        """The number of sealed views: views 0 to ``views - 1`` can be read."""
        return self.state.views_sealed

    def __len__(self) -> int:
        return self.views

    def __bool__(self) -> bool:
        return True  # without a view too

    def close(self) -> None:
        """Free the memory that reading takes; a store that is closed is not read any more."""
        self._closed = True
        self._reader = self._new_reader()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def read(self, view: int, positions: slice | npt.ArrayLike) -> LabelBatch:
        """Labels and crop rows of some positions of a view.

        Args:
            view: a sealed view; with ``follow``, one whose blocks have markers.
            positions: a slice, or integers ``[n]`` in any order.

        Raises:
            NotStoredError: when the view is not there (yet).
            DamagedError: when what is on disk is not what was published.
        """
        return self._batch(self._reader, *self._index(view, positions))

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
            decode: decodes codes to the batches' ``logits``, for example on a device; the encoding's own when None.

        Raises:
            NotStoredError: as :meth:`read` does, when the turn of the request comes.
            DamagedError: likewise.
        """
        reader = self._new_reader(map_bytes=budget_bytes)
        return stream(requests, reader, self._index, partial(self._batch, reader, decode=decode), budget_bytes)

    def stream_codes(
        self, requests: Iterable[Request], *, budget_bytes: int = STREAM_BYTES
    ) -> Iterator[dict[str, npt.NDArray[Any]]]:
        """The results of :meth:`codes` for many (view, positions), read ahead as in :meth:`stream`.

        No crop rows are read: this is for callers that have the rows already, or work only on codes.
        """
        reader = self._new_reader(map_bytes=budget_bytes)
        return stream(requests, reader, self._index, reader.codes, budget_bytes)

    def read_images(self, view: int, images: slice | npt.ArrayLike) -> LabelBatch:
        """Labels and crop rows of some images in a view, in the order of ``images``."""
        view = self._readable(view)
        index = require_indexes("images", images, self.identity.images)
        return self.read(view, self._reader.positions_of(view, index))

    def image(self, image: int, views: slice | npt.ArrayLike = slice(None)) -> LabelsOfImage:
        """Labels and crop rows of one image over views, all sealed views by default.

        The first call looks through the rows of all these views; their positions are cached for later calls, up to 64
        MiB.

        Args:
            image: its index, 0 to N - 1.
            views: a slice, or integers ``[n]`` in any order.

        Raises:
            InputError: when there is no such image or view.
            NotStoredError: when no view is sealed yet.
            DamagedError: when what is on disk is not what was published.
        """
        (index,) = require_indexes("image", [require_integer("image", image)], self.identity.images).tolist()
        self._readable(0)
        chosen = require_indexes("views", views, self.views)
        positions = self._reader.positions_of(chosen, np.full(len(chosen), index))
        rows, logits = self._labels(self._reader, chosen, positions, None)
        return LabelsOfImage(index, int(self._target_columns[index]), chosen, positions, rows, logits)

    def codes(self, view: int, positions: slice | npt.ArrayLike) -> dict[str, npt.NDArray[Any]]:
        """Stored codes of the labels, one array ``[n, ...]`` for each array of the encoding."""
        return self._reader.codes(*self._index(view, positions))

    def rows(self, view: int, positions: slice | npt.ArrayLike) -> CropRows:
        """The rows of the crops at some positions of a view, without their labels."""
        return CropRows(self.identity.crop_columns, self._reader.rows(*self._index(view, positions)))

    def pairs(self, view: int, positions: slice | npt.ArrayLike) -> Pairs:
        """The two images of each crop, and the weight of the first ``[n]``."""
        return self._reader.pairs(*self._index(view, positions))

    def audit(self) -> AuditRows:
        """The first crops of view 0, whole, with their float16 logits."""
        shards = self.marker(AUDIT_BLOCK).shards
        return AuditRows(*(self.whole(array, shards[array.name]) for array in self.layout.audit))

    @property
    def fidelity(self) -> Json:
        """Fidelity of the encoding: rows, mean and 1st percentile, mixed and unmixed apart; None before block 0.0."""
        marker = self.table.marker(AUDIT_BLOCK, self.state)
        return marker.fidelity if marker else None

    def pixels_digest(self, block: BlockIndex) -> str:
        """BLAKE2b-64 of the pixels of a block's first positions, hex."""
        return self.marker(block).pixels

    def version(self, block: BlockIndex) -> Mapping[str, Json]:
        """The engine and renderer that made a block."""
        return self.state.versions[self.version_index(block)]

    def version_index(self, block: BlockIndex) -> int:
        """The version in the state that made a block."""
        return self.marker(block).version

    def bytes_per_label(self) -> dict[str, float]:
        """Measured bytes a label: ``labels``, ``columns`` and ``side``; zeros before the first block.

        ``side`` is what else decoding needs: scales, and the calibration spread over the labels that are there.
        """
        totals, count = self.table.bytes(self.state)
        if count and (used := self.calibration):
            totals["calibration"] = sum(entry.bytes for entry in used.shards.values())
        each = {name: round(total / max(count, 1), 3) for name, total in totals.items()}
        side = sum(size for name, size in each.items() if name not in ("labels", "rows"))
        return {"labels": each["labels"], "columns": each["rows"], "side": side}

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.storage, self.follow)

    def __repr__(self) -> str:
        identity, state = self.identity, self.state
        views = f"{state.views_sealed} of {state.views_target} views sealed"
        return f"LabelStore({str(self.path)!r}, {views}, {identity.images} images x {identity.columns} columns)"

    def _new_reader(self, map_bytes: int | None = None) -> Reader:
        return Reader(self.storage, self.identity, self.marker, components=self._components, map_bytes=map_bytes)

    def _components(self) -> int:
        """Codes of a row of the calibrated encoding."""
        if (used := self.calibration) is None:
            raise NotStoredError(f"{self.path}: is not calibrated yet; continue the build")
        return used.components

    def _batch(
        self,
        reader: Reader,
        view: int,
        index: Int64Array,
        decode: Callable[[Codes, Pairs], Any] | None = None,
    ) -> LabelBatch:
        """Labels and crop rows at positions that `_index` gave, int64 ``[n]``."""
        rows, logits = self._labels(reader, view, index, decode)
        return LabelBatch(view, index, rows, logits, self._target_columns[rows.image])

    def _labels(
        self,
        reader: Reader,
        view: Views,
        index: Int64Array,
        decode: Callable[[Codes, Pairs], Any] | None,
    ) -> tuple[CropRows, Any]:
        """Crop rows and logits at positions of a view, or of a view each."""
        parts = reader.by_block(view, index)
        rows = CropRows(self.identity.crop_columns, reader.rows(view, index, parts))
        pairs = reader.pairs(view, index, parts) if self.encoding.needs_calibration else Pairs.unmixed(rows.image)
        return rows, (decode or self.encoding.decode)(reader.codes(view, index, parts), pairs)

    def _index(self, view: int, positions: slice | npt.ArrayLike) -> tuple[int, Int64Array]:
        return self._readable(view), require_indexes("positions", positions, self.identity.images)

    def _readable(self, view: int) -> int:
        """A view that can be read, as Python's integer."""
        if self._closed:
            raise InputError(f"{self.path}: is closed; open it again to read")
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


def _reopen(storage: ReadStorage, follow: bool) -> LabelStore:
    """Open a store in another process."""
    return LabelStore.open(storage, follow=follow)
