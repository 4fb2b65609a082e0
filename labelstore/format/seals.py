"""Markers and seals: which blocks exist, and what their files must be.

A marker belongs to one block and is published after its shards. A seal is the table of all blocks of a range of views;
it is made once from their markers, and views below the state's ``views_sealed`` are read only through seals. Its table
comes in parts, so that a reader of one block reads one part, however many blocks are sealed.
"""

from __future__ import annotations

import hashlib
import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.durable import documents
from labelstore.durable.documents import Fields
from labelstore.durable.publish import MAX_CRC, XXH3, Described, FileEntry
from labelstore.durable.removing import Proof
from labelstore.durable.storage import ReadStorage
from labelstore.errors import DamagedError, GiftwrapError
from labelstore.format.arrays import AUDIT_BLOCK, StoreLayout
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.parsing import read_fidelity
from labelstore.spec import MAX_VERSIONS, Identity, Json, State

PART_BLOCKS = 16_384  # some 5 MB of JSON
HEX_64 = re.compile("[0-9a-f]{16}")  # digests of pixels and of images
SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """The content of a block's marker.

    Attributes:
        block: which block.
        shards: what is known of each of its shards, by array.
        pixels: BLAKE2b-64 of the pixels of its first positions, hex.
        images: digest of the images of its positions, see :func:`labelstore.format.images.images_digest`; None in
            format 1.
        version: which of the state's versions made it.
        fidelity: of the encoding, kept by the first block.
        calibration: digest of the calibration of its labels, if there is one.
    """

    block: BlockIndex
    shards: Mapping[str, FileEntry]
    pixels: str
    images: str | None
    version: int
    fidelity: Json = None
    calibration: str | None = None

    def to_json(self, grid: BlockGrid) -> dict[str, Json]:
        """As the JSON object of its file."""
        plain: dict[str, Json] = {
            "block": list(self.block),
            "views": list(grid.views(self.block)),
            "positions": list(grid.positions(self.block)),
            "shards": {name: entry.to_json() for name, entry in self.shards.items()},
            "pixels": self.pixels,
        }
        if self.images is not None:
            plain["images"] = self.images
        plain["version"] = self.version
        if self.calibration is not None:
            plain["calibration"] = self.calibration
        return plain | {"fidelity": self.fidelity} if self.block == AUDIT_BLOCK else plain


def marker_file(block: BlockIndex) -> str:
    """Path of a block's marker, relative to the store."""
    return f"markers/{block}.json"


def seal_file(stop: int) -> str:
    """Path of the seal that raised ``views_sealed`` to ``stop``, relative to the store."""
    return f"seals/{stop}.json"


def part_file(stop: int, part: int, xxh3: str) -> str:
    """Path of a part of the table of the seal that ends at ``stop``; named by its content, it is never changed."""
    return f"seals/{stop}.{part}.{xxh3}.json"


def read_marker(storage: ReadStorage, identity: Identity, block: BlockIndex) -> Marker | None:
    """The marker of a block, or None when the block does not exist.

    Raises:
        DamagedError: when it is not what was published.
    """
    try:
        fields = documents.read_fields(storage, marker_file(block))
    except FileNotFoundError:
        return None
    grid, current = BlockGrid.of(identity), identity.format > 1
    for name, wanted in (("block", block), ("views", grid.views(block)), ("positions", grid.positions(block))):
        if (found := fields.integers(name, count=2)) != list(wanted):
            raise fields.wrong(name, str(list(wanted)), found)
    first = block == AUDIT_BLOCK
    arrays = [array.name for array in StoreLayout.of(identity).of_block(block)]
    marker = Marker(
        block=block,
        shards=read_entries(fields.fields("shards"), arrays, identity),
        pixels=fields.text("pixels", HEX_64),
        images=fields.text("images", HEX_64) if current else None,
        version=fields.integer("version", 0, MAX_VERSIONS),
        calibration=fields.text("calibration", HEX_64) if "calibration" in fields else None,
        fidelity=read_fidelity(fields, "fidelity") if first else None,
    )
    fields.end()
    return marker


def read_entries(fields: Fields, arrays: Sequence[str], identity: Identity) -> dict[str, FileEntry]:
    """The records of the shards of some arrays."""
    entries = {name: FileEntry.read(fields.fields(name), chunks=identity.format > 1) for name in arrays}
    fields.end()
    return entries


@dataclass(frozen=True, slots=True)
class Entries:
    """The entries of many shards of an array, one numpy array for each field ``[blocks]``."""

    bytes: npt.NDArray[np.int64]
    crc32c: npt.NDArray[np.int64]
    xxh3: npt.NDArray[np.bytes_]
    chunks: npt.NDArray[np.bytes_] | None

    @classmethod
    def read(cls, fields: Fields, count: int, *, chunks: bool) -> Entries:
        """From the JSON object of a table of ``count`` blocks."""
        entries = cls(
            bytes=np.array(fields.integers("bytes", count=count), np.int64),
            crc32c=np.array(fields.integers("crc32c", 0, MAX_CRC, count), np.int64),
            xxh3=np.array(fields.texts("xxh3", XXH3, count), "S16"),
            chunks=np.array(fields.texts("chunks", XXH3, count), "S16") if chunks else None,
        )
        fields.end()
        return entries

    def entry(self, at: int) -> FileEntry:
        """One shard's entry."""
        chunks = None if self.chunks is None else self.chunks[at].decode()
        return FileEntry(int(self.bytes[at]), int(self.crc32c[at]), self.xxh3[at].decode(), chunks)


@dataclass(frozen=True, kw_only=True, slots=True)
class SealTable:
    """Consecutive blocks of a seal.

    Attributes:
        shards: what is known of the shards of each array, by block.
        pixels: pixel digest of each block.
        images: digest of the images of each block; None in format 1.
        version: version that made each block, int64 ``[blocks]``.
    """

    shards: Mapping[str, Entries]
    pixels: Sequence[str]
    images: Sequence[str] | None
    version: npt.NDArray[np.int64]

    @classmethod
    def read(cls, fields: Fields, arrays: Sequence[str], count: int, identity: Identity) -> SealTable:
        """From the fields of a part, or of a seal of format 1."""
        shards, current = fields.fields("shards"), identity.format > 1
        table = cls(
            shards={name: Entries.read(shards.fields(name), count, chunks=current) for name in arrays},
            pixels=fields.texts("pixels", HEX_64, count),
            images=fields.texts("images", HEX_64, count) if current else None,
            version=np.array(fields.integers("version", 0, MAX_VERSIONS, count), np.int64),
        )
        shards.end()
        return table


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """All blocks of views ``first`` to ``stop``, in stored order.

    Attributes:
        first: first view.
        stop: the view after the last.
        blocks: how many blocks they have.
        parts: the files of its table, of ``PART_BLOCKS`` blocks each; the last one may have fewer.
        table: of format 1, whose seals are one file.
        audit: what is known of the audit shards; empty unless ``first`` is 0.
        fidelity: as the first block's marker has it.
        calibration: as all markers have it.
    """

    first: int
    stop: int
    blocks: int
    parts: tuple[FileEntry, ...]
    table: SealTable | None
    audit: Mapping[str, FileEntry]
    fidelity: Json
    calibration: str | None

    @property
    def files(self) -> list[str]:
        """Paths of the parts of its table, relative to the store."""
        return [part_file(self.stop, number, entry.xxh3) for number, entry in enumerate(self.parts)]

    def count(self, part: int) -> int:
        """Blocks of a part."""
        return min(PART_BLOCKS, self.blocks - part * PART_BLOCKS)

    def marker(self, block: BlockIndex, table: SealTable, at: int) -> Marker:
        """The content of the marker of ``block``, the ``at``-th of ``table``."""
        shards = {name: entries.entry(at) for name, entries in table.shards.items()}
        first = block == AUDIT_BLOCK
        return Marker(
            block=block,
            shards=shards | dict(self.audit) if first else shards,
            pixels=table.pixels[at],
            images=None if table.images is None else table.images[at],
            version=int(table.version[at]),
            fidelity=self.fidelity if first else None,
            calibration=self.calibration,
        )


def seal_documents(
    identity: Identity, state: State, markers: Iterable[Marker], views: tuple[int, int]
) -> Iterator[tuple[str, Described]]:
    """The files of the seal of ``views``, its parts first, made of the markers of all their blocks in stored order.

    Markers are taken a part at a time: millions of blocks would not fit memory.
    """
    left = iter(markers)
    parts: list[FileEntry] = []
    first: Marker | None = None
    while some := list(itertools.islice(left, PART_BLOCKS)):
        first = first or some[0]
        part = _part(identity, some)
        yield part_file(views[1], len(parts), part.entry.xxh3), part
        parts.append(part.entry)
    if first:
        yield seal_file(views[1]), _head(identity, state, first, views, parts)


def changed_seal_documents(
    identity: Identity, state: State, seal: Seal, part: int, markers: Sequence[Marker], first: Marker
) -> dict[str, Described]:
    """The files of a seal of which one part is another: the part, made of the markers of its blocks, and the seal.

    Args:
        identity: of the store.
        state: of the store.
        seal: the current seal.
        part: number of the part.
        markers: of all blocks of the part, in stored order.
        first: marker of the first block of the seal.
    """
    made = _part(identity, markers)
    parts = (*seal.parts[:part], made.entry, *seal.parts[part + 1 :])
    head = _head(identity, state, first, (seal.first, seal.stop), parts)
    return {part_file(seal.stop, part, made.entry.xxh3): made, seal_file(seal.stop): head}


def _head(
    identity: Identity, state: State, first: Marker, views: tuple[int, int], parts: Sequence[FileEntry]
) -> Described:
    """The file of a seal, beside its parts."""
    names = [array.name for array in StoreLayout.of(identity).blocks]
    plain: dict[str, Json] = {
        "views": list(views),
        "identity": identity_digest(identity),
        "versions": [dict(version) for version in state.versions],
        "parts": [part.to_json() for part in parts],
    }
    if first.block == AUDIT_BLOCK:
        plain["audit"] = {name: entry.to_json() for name, entry in first.shards.items() if name not in names}
        plain["fidelity"] = first.fidelity
    if first.calibration is not None:
        plain["calibration"] = first.calibration
    return Described.of(documents.encode(plain))


def _part(identity: Identity, markers: Sequence[Marker]) -> Described:
    """The file of a part of a seal."""
    names = [array.name for array in StoreLayout.of(identity).blocks]
    return Described.of(documents.encode(_table_json(markers, names)))


def _table_json(markers: Sequence[Marker], names: Sequence[str]) -> dict[str, Json]:
    """A part of a seal's table."""
    shards: dict[str, Json] = {
        name: {key: [getattr(marker.shards[name], key) for marker in markers] for key in FileEntry._fields}
        for name in names
    }
    return {
        "shards": shards,
        "pixels": [marker.pixels for marker in markers],
        "images": [marker.images for marker in markers],
        "version": [marker.version for marker in markers],
    }


def read_seal(storage: ReadStorage, identity: Identity, stop: int) -> Seal:
    """The seal that raised ``views_sealed`` to ``stop``; the one before it raised it to this one's ``first``.

    Raises:
        DamagedError: when it is not there, is not what was published, or belongs to another store.
    """
    grid, layout = BlockGrid.of(identity), StoreLayout.of(identity)
    path = storage.root / seal_file(stop)
    try:
        fields = documents.read_fields(storage, seal_file(stop))
    except FileNotFoundError as error:
        raise DamagedError.of(path, f"is not there, though the views before {stop} are sealed") from error
    if fields.text("identity", SHA256) != identity_digest(identity):
        raise DamagedError.of(path, "seals a store of another identity than zarr.json has")
    views = fields.integers("views", 0, stop, 2)
    if views[1] != stop or views[0] >= stop or any(view % identity.block.views for view in views):
        raise fields.wrong("views", f"whole blocks of {identity.block.views} up to {stop}", views)
    fields.objects("versions")
    blocks = (stop - views[0]) // identity.block.views * grid.runs
    parts, table, audit = [], None, {}
    if identity.format > 1:
        parts = [FileEntry.read(part, chunks=False) for part in fields.objects("parts", -(-blocks // PART_BLOCKS))]
    else:
        table = SealTable.read(fields, [array.name for array in layout.blocks], blocks, identity)
    if views[0] == 0:
        audit = read_entries(fields.fields("audit"), [array.name for array in layout.audit], identity)
    seal = Seal(
        first=views[0],
        stop=stop,
        blocks=blocks,
        parts=tuple(parts),
        table=table,
        audit=audit,
        fidelity=read_fidelity(fields, "fidelity") if views[0] == 0 else None,
        calibration=fields.text("calibration", HEX_64) if "calibration" in fields else None,
    )
    fields.end()
    return seal


def read_table(storage: ReadStorage, identity: Identity, seal: Seal, part: int) -> SealTable:
    """A part of the table of a seal.

    Raises:
        DamagedError: when it is not there, or is not what the seal names.
    """
    if seal.table is not None:
        return seal.table
    try:
        fields = documents.read_fields(storage, seal.files[part], seal.parts[part].xxh3)
    except FileNotFoundError as error:
        raise DamagedError.of(storage.root / seal.files[part], "is not there, though a seal names it") from error
    arrays = [array.name for array in StoreLayout.of(identity).blocks]
    table = SealTable.read(fields, arrays, seal.count(part), identity)
    fields.end()
    return table


def identity_digest(identity: Identity) -> str:
    """SHA-256 of an identity's canonical text, hex."""
    return hashlib.sha256(documents.compact(identity.to_json())).hexdigest()


def seal_of(identity: Identity) -> Proof:
    """The proof of a seal of a store."""

    def holds(path: Path) -> bool:
        try:
            return bool(documents.read(path).get("identity") == identity_digest(identity))
        except (OSError, GiftwrapError):
            return False

    return Proof("a seal of this store", holds)


def _is_part(path: Path) -> bool:
    """Whether the content of a file has the digest in its name."""
    try:
        documents.read(path, path.stem.rpartition(".")[2])
    except (OSError, GiftwrapError):
        return False
    return True


PART = Proof("a part of a seal", _is_part)
