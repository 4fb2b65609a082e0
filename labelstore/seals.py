"""Markers and seals: which blocks exist, and what their files must be.

A marker belongs to one block and is published after its shards. A seal is the table of all blocks of a range of
views; it is made of their markers once, and views below the state's ``views_sealed`` are read by seals alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore import documents
from labelstore.arrays import AUDIT_BLOCK, StoreLayout
from labelstore.blocks import BlockGrid, BlockIndex
from labelstore.errors import DamagedError
from labelstore.publish import FileEntry
from labelstore.spec import Identity, Json, State

PIXELS_DIGEST = re.compile(r"[0-9a-f]{16}")


@dataclass(frozen=True, kw_only=True, slots=True)
class Marker:
    """What is published with a block.

    Attributes:
        block: which block.
        shards: what is known of each of its shards, by array.
        pixels: BLAKE2b-64 of the pixels of its first positions, hex.
        version: which of the state's versions made it.
        fidelity: of the encoding, kept by the first block.
        calibration: digest of the calibration that its labels are coded with, where there is one.
    """

    block: BlockIndex
    shards: Mapping[str, FileEntry]
    pixels: str
    version: int
    fidelity: Json = None
    calibration: str | None = None

    def to_json(self, grid: BlockGrid) -> dict[str, Json]:
        """As the JSON object of its file."""
        plain: dict[str, Json] = {
            "block": list(self.block),
            "views": list(grid.views(self.block)),
            "positions": list(grid.positions(self.block)),
            "shards": {name: dict(entry._asdict()) for name, entry in self.shards.items()},
            "pixels": self.pixels,
            "version": self.version,
        }
        if self.calibration is not None:
            plain["calibration"] = self.calibration
        return plain | {"fidelity": self.fidelity} if self.block == AUDIT_BLOCK else plain


def marker_file(block: BlockIndex) -> str:
    """Path of a block's marker, relative to the store."""
    return f"markers/{block}.json"


def seal_file(stop: int) -> str:
    """Path of the seal that raised ``views_sealed`` to ``stop``, relative to the store."""
    return f"seals/{stop}.json"


def read_marker(root: Path, layout: StoreLayout, block: BlockIndex) -> Marker | None:
    """The marker of a block, or None when the block does not exist.

    Raises:
        DamagedError: when it is not what was published.
    """
    path = root / marker_file(block)
    try:
        data = documents.read(path)
    except FileNotFoundError:
        return None
    try:
        marker = Marker(
            block=BlockIndex(*data["block"]),
            shards={name: FileEntry(**entry) for name, entry in data["shards"].items()},
            pixels=data["pixels"],
            version=data["version"],
            fidelity=data.get("fidelity"),
            calibration=data.get("calibration"),
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise DamagedError.of(path, f"is not a marker ({error!r})") from error
    if marker.block != block or set(marker.shards) != {array.name for array in layout.of_block(block)}:
        raise DamagedError.of(path, f"is the marker of block {marker.block} with {sorted(marker.shards)}")
    return marker


@dataclass(frozen=True, slots=True)
class Columns:
    """The entries of many files, column by column."""

    bytes: npt.NDArray[np.int64]
    crc32c: npt.NDArray[np.int64]
    xxh3: npt.NDArray[np.bytes_]

    @classmethod
    def of(cls, table: Mapping[str, Any]) -> Columns:
        """From the JSON object of a seal."""
        bytes_, crc32c = (np.array(table[name], np.int64) for name in ("bytes", "crc32c"))
        return cls(bytes_, crc32c, np.array(table["xxh3"], "S16"))

    def entry(self, at: int) -> FileEntry:
        """One file's entry."""
        return FileEntry(int(self.bytes[at]), int(self.crc32c[at]), self.xxh3[at].decode())


@dataclass(frozen=True, kw_only=True, slots=True)
class Seal:
    """All blocks of views ``first`` to ``stop``, in stored order.

    Attributes:
        first: first view.
        stop: the view after the last.
        shards: what is known of the shards of each array, by block.
        pixels: pixel digest of each block.
        version: version that made each block, int64 ``[blocks]``.
        audit: what is known of the audit shards; empty unless ``first`` is 0.
        fidelity: as the first block's marker has it.
        calibration: as all markers have it.
    """

    first: int
    stop: int
    shards: Mapping[str, Columns]
    pixels: Sequence[str]
    version: npt.NDArray[np.int64]
    audit: Mapping[str, FileEntry]
    fidelity: Json
    calibration: str | None

    def marker(self, block: BlockIndex, at: int) -> Marker:
        """What the marker of ``block``, the ``at``-th here, said."""
        shards = {name: columns.entry(at) for name, columns in self.shards.items()}
        first = block == AUDIT_BLOCK
        return Marker(
            block=block,
            shards=shards | dict(self.audit) if first else shards,
            pixels=self.pixels[at],
            version=int(self.version[at]),
            fidelity=self.fidelity if first else None,
            calibration=self.calibration,
        )


def seal_document(identity: Identity, state: State, markers: Sequence[Marker], views: tuple[int, int]) -> bytes:
    """The bytes of the seal of ``views``, made of the markers of all their blocks in stored order."""
    names = [array.name for array in StoreLayout.of(identity).blocks]
    first = markers[0]
    plain: dict[str, Json] = {
        "views": list(views),
        "identity": identity_digest(identity),
        "versions": [dict(version) for version in state.versions],
        "shards": {
            name: {key: [getattr(marker.shards[name], key) for marker in markers] for key in FileEntry._fields}
            for name in names
        },
        "pixels": [marker.pixels for marker in markers],
        "version": [marker.version for marker in markers],
    }
    if first.block == AUDIT_BLOCK:
        plain["audit"] = {name: dict(entry._asdict()) for name, entry in first.shards.items() if name not in names}
        plain["fidelity"] = first.fidelity
    if first.calibration is not None:
        plain["calibration"] = first.calibration
    return documents.encode(plain)


def read_seal(root: Path, identity: Identity, stop: int) -> Seal:
    """The seal that raised ``views_sealed`` to ``stop``; the one before it raised it to this one's ``first``.

    Raises:
        DamagedError: when it is not there, is not what was published, or belongs to another store.
    """
    grid = BlockGrid.of(identity)
    path = root / seal_file(stop)
    try:
        data = documents.read(path)
    except FileNotFoundError as error:
        raise DamagedError.of(path, f"is not there, though the views before {stop} are sealed") from error
    try:
        seal = _parse_seal(data)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DamagedError.of(path, f"is not a seal ({error!r})") from error
    if data["identity"] != identity_digest(identity):
        raise DamagedError.of(path, "seals a store of another identity than zarr.json has")
    names = {array.name for array in StoreLayout.of(identity).blocks}
    count = (seal.stop - seal.first) // identity.block.views * grid.runs
    columns = [column for shards in seal.shards.values() for column in (shards.bytes, shards.crc32c, shards.xxh3)]
    lengths = {len(column) for column in (*columns, seal.pixels, seal.version)}
    if seal.stop != stop or not 0 <= seal.first < stop or set(seal.shards) != names or lengths != {count}:
        raise DamagedError.of(path, f"expected {count} blocks of {sorted(names)} for views {seal.first} to {stop - 1}")
    return seal


def identity_digest(identity: Identity) -> str:
    """SHA-256 of an identity's canonical text, hex."""
    return hashlib.sha256(documents.compact(identity.to_json())).hexdigest()


def _parse_seal(data: dict[str, Any]) -> Seal:
    first, stop = data["views"]
    return Seal(
        first=first,
        stop=stop,
        shards={name: Columns.of(table) for name, table in data["shards"].items()},
        pixels=data["pixels"],
        version=np.array(data["version"], np.int64),
        audit={name: FileEntry(**entry) for name, entry in data.get("audit", {}).items()},
        fidelity=data.get("fidelity"),
        calibration=data.get("calibration"),
    )
