"""The arrays of a store: shapes, shards, inner chunks, fills, and their zarr metadata.

All of it follows from the identity. ``labels`` and what else the encoding makes, and ``rows`` have one shard a
block; the arrays of images and of audit rows are one shard each.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from labelstore.encodings import CodeArray, Codec, Encoding, make_encoding
from labelstore.errors import InputError
from labelstore.format import codecs
from labelstore.format.blocks import MAX_NAME, BlockGrid, BlockIndex
from labelstore.spec import BlockShape, Identity, Json

CHUNK_BYTES = 512 << 10
IMAGE_CHUNK = 16_384
AUDIT_ROWS = 64
AUDIT_BLOCK = BlockIndex(0, 0)
CODE_CHUNK = (16, 4096)  # codes and rows of an inner chunk of planar codes


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """One zarr array of a store.

    Attributes:
        name: its path in the store.
        dtype: a numpy dtype name.
        fill: the fill value, as zarr's metadata writes it.
        axes: dimension names; ``view`` and ``position`` follow the block.
        shape: shape of the array; 0 for the growing axis ``view``.
        shard: shape of a shard.
        chunk: shape of an inner chunk; divides the shard.
        codec: how inner chunks are compressed; a CRC-32C follows either way.
        chunk_crcs: whether the CRC-32Cs of all chunks are stored before the index too; not in format 1.
    """

    name: str
    dtype: str
    fill: int | str
    axes: tuple[str, ...]
    shape: tuple[int, ...]
    shard: tuple[int, ...]
    chunk: tuple[int, ...]
    codec: Codec = "raw"
    chunk_crcs: bool = True

    @property
    def chunk_bytes(self) -> int:
        """Bytes of an inner chunk before compression."""
        return math.prod(self.chunk) * np.dtype(self.dtype).itemsize

    @property
    def planar(self) -> bool:
        """Whether the codes of a row lie apart, as ``[view, component, position]``."""
        return self.axes[1:2] == ("component",)

    @property
    def grid(self) -> tuple[int, ...]:
        """Inner chunks of a shard along each axis."""
        return tuple(shard // chunk for shard, chunk in zip(self.shard, self.chunk, strict=True))

    def extent(self, extent: dict[str, int]) -> tuple[int, ...]:
        """Shape of what a shard holds, with the lengths of axes that ``extent`` gives."""
        return tuple(extent.get(axis, size) for axis, size in zip(self.axes, self.shape, strict=True))

    def file(self, block: BlockIndex = AUDIT_BLOCK) -> str:
        """Path of the shard of ``block``, relative to the store."""
        place = {"view": block.i, "position": block.j}
        return f"{self.name}/c." + ".".join(str(place.get(axis, 0)) for axis in self.axes)

    def block(self, file_name: str) -> BlockIndex | None:
        """The block whose shard has this file name, or None."""
        parts = file_name.split(".")
        if (
            parts[0] != "c"
            or len(parts) != len(self.axes) + 1
            or not all(part.isdecimal() and part.isascii() and len(part) <= MAX_NAME for part in parts[1:])
        ):
            return None
        place = dict(zip(self.axes, map(int, parts[1:]), strict=True))
        block = BlockIndex(place.get("view", 0), place.get("position", 0))
        return block if self.file(block) == f"{self.name}/{file_name}" else None

    def metadata(self, views: int = 0) -> bytes:
        """The array's zarr.json when the store has ``views`` views."""
        shape = [views if axis == "view" else size for axis, size in zip(self.axes, self.shape, strict=True)]
        crc = {"name": "crc32c"}
        little = {"name": "bytes", "configuration": {"endian": "little"}}
        sharding = {
            "chunk_shape": list(self.chunk),
            "codecs": codecs.metadata(self.codec, np.dtype(self.dtype).itemsize, self.chunk_bytes),
            "index_codecs": [little, crc],
            "index_location": "end",
        }
        return dump(
            {
                "zarr_format": 3,
                "node_type": "array",
                "shape": shape,
                "data_type": self.dtype,
                "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": list(self.shard)}},
                "chunk_key_encoding": {"name": "default", "configuration": {"separator": "."}},
                "fill_value": self.fill,
                "codecs": [{"name": "sharding_indexed", "configuration": sharding}],
                "attributes": {},
                "dimension_names": list(self.axes),
            }
        )


def dump(metadata: Mapping[str, Any]) -> bytes:
    """The bytes of a zarr.json."""
    return json.dumps(metadata, indent=2, allow_nan=False).encode() + b"\n"


def group_metadata(attributes: Mapping[str, Json]) -> bytes:
    """The zarr.json of a group."""
    return dump({"zarr_format": 3, "node_type": "group", "attributes": attributes})


@dataclass(frozen=True, slots=True)
class StoreLayout:
    """All arrays of a store.

    Attributes:
        codes: the arrays of codes, ``labels`` first.
        rows: the array of crop rows.
        digest: SHA-256 of each image.
        target: hard label of each image.
        audit_pixels: the first crops of view 0.
        audit_logits: their logits.
        calibration: what a fitted encoding reads besides codes; empty if it needs nothing.
    """

    codes: tuple[ArrayLayout, ...]
    rows: ArrayLayout
    digest: ArrayLayout
    target: ArrayLayout
    audit_pixels: ArrayLayout
    audit_logits: ArrayLayout
    calibration: tuple[ArrayLayout, ...] = ()

    @classmethod
    def of(cls, identity: Identity) -> StoreLayout:
        """The arrays of a store with this identity."""
        images, columns, block = identity.images, identity.columns, BlockGrid.of(identity).shape
        kept = min(AUDIT_ROWS, images, block.positions)
        encoding = make_encoding(identity.encoding, columns, identity.format)
        count = len(identity.crop_columns)
        layout = cls(
            codes=tuple(_codes(code, images, block) for code in encoding.arrays),
            rows=ArrayLayout(
                name="rows",
                dtype="uint16",
                fill=65535,
                axes=("view", "column", "position"),
                shape=(0, count, images),
                shard=(block.views, count, block.positions),
                chunk=(block.views, 1, block.positions),
                codec="shuffle",
            ),
            digest=_whole("images/digest", "uint8", ("image", "byte"), (images, 32), IMAGE_CHUNK),
            target=_whole("images/target", "uint32", ("image",), (images,), IMAGE_CHUNK),
            audit_pixels=_whole(
                "audit/pixels",
                "uint8",
                ("crop", "row", "column", "channel"),
                (kept, identity.size, identity.size, 3),
                1,
            ),
            audit_logits=_whole("audit/logits", "float16", ("crop", "class"), (kept, columns), kept),
            calibration=_calibration(encoding, identity) if encoding.needs_calibration else (),
        )
        return layout if identity.format > 1 else layout._of_format_1()

    def _of_format_1(self) -> StoreLayout:
        """The same arrays, as format 1 stores them."""

        def plain(array: ArrayLayout) -> ArrayLayout:
            return replace(array, chunk_crcs=False)

        return StoreLayout(
            codes=tuple(map(plain, self.codes)),
            rows=plain(self.rows),
            digest=plain(self.digest),
            target=plain(self.target),
            audit_pixels=plain(self.audit_pixels),
            audit_logits=plain(self.audit_logits),
            calibration=tuple(map(plain, self.calibration)),
        )

    @property
    def blocks(self) -> tuple[ArrayLayout, ...]:
        """The arrays with a shard for every block."""
        return (*self.codes, self.rows)

    @property
    def audit(self) -> tuple[ArrayLayout, ...]:
        """The arrays that come with the first block."""
        return self.audit_pixels, self.audit_logits

    @property
    def all(self) -> tuple[ArrayLayout, ...]:
        """Every array."""
        return (*self.blocks, self.digest, self.target, *self.audit, *self.calibration)

    def of_block(self, block: BlockIndex) -> tuple[ArrayLayout, ...]:
        """The arrays of which ``block`` publishes a shard."""
        return (*self.blocks, *self.audit) if block == AUDIT_BLOCK else self.blocks


def _codes(code: CodeArray, images: int, block: BlockShape) -> ArrayLayout:
    """The array of some codes."""
    views, positions, itemsize = block.views, block.positions, np.dtype(code.dtype).itemsize
    if code.width is None:
        whole = (views, positions)
        return ArrayLayout(
            code.name, code.dtype, code.fill, ("view", "position"), (0, images), whole, whole, code.codec
        )
    if code.planar:
        rows = chunk_rows(views, positions, CODE_CHUNK[1])
        return ArrayLayout(
            code.name,
            code.dtype,
            code.fill,
            axes=("view", "component", "position"),
            shape=(0, code.width, images),
            shard=(views, code.width, positions),
            chunk=(rows[0], CODE_CHUNK[0], rows[1]),
            codec=code.codec,
        )
    rows = chunk_rows(views, positions, CHUNK_BYTES // (code.width * itemsize))
    return ArrayLayout(
        code.name,
        code.dtype,
        code.fill,
        axes=("view", "position", code.axis),
        shape=(0, images, code.width),
        shard=(views, positions, code.width),
        chunk=(*rows, code.width),
        codec=code.codec,
    )


def _calibration(encoding: Encoding, identity: Identity) -> tuple[ArrayLayout, ...]:
    """The arrays of the calibration of a planar encoding, one shard each."""
    columns, images = identity.columns, identity.images
    (codes,) = (code for code in encoding.arrays if code.planar)
    width, group, run = codes.width or 0, CODE_CHUNK[0], min(CODE_CHUNK[1], images)
    basis = ArrayLayout(
        "calibration/basis",
        "int16",
        0,
        axes=("component", "class"),
        shape=(width, columns),
        shard=(width, columns),
        chunk=(group, columns),
        codec=codes.codec,
    )
    means = ArrayLayout(
        "calibration/means",
        "int16",
        0,
        axes=("component", "image"),
        shape=(width, images),
        shard=(width, -(-images // run) * run),
        chunk=(group, run),
        codec=codes.codec,
    )
    # In format 1 in units, since then in logits.
    center = _whole(
        "calibration/center", "int32" if identity.format == 1 else "float64", ("class",), (columns,), columns
    )
    cells = _whole("calibration/cells", "float32", ("component", "bound"), (width, 2), group)
    return basis, center, cells, means


def chunk_rows(views: int, positions: int, wanted: int) -> tuple[int, int]:
    """Views and positions of an inner chunk: divisors of the block, near ``wanted`` rows together.

    A chunk spans several views only where it spans all positions of the block.
    """
    wanted = max(wanted, 1)
    run = divisor_nearest(positions, wanted)
    return (divisor_nearest(views, max(wanted // positions, 1)) if run == positions else 1), run


def divisor_nearest(number: int, wanted: int) -> int:
    """The divisor of ``number`` whose ratio to ``wanted`` is nearest to 1; the smaller of two equally near."""
    small = [d for d in range(1, math.isqrt(number) + 1) if number % d == 0]
    return min(sorted({*small, *(number // d for d in small)}), key=lambda d: max(d / wanted, wanted / d))


def _whole(name: str, dtype: str, axes: tuple[str, ...], shape: tuple[int, ...], rows: int) -> ArrayLayout:
    """An array that is one shard, in chunks of ``rows`` of its first axis."""
    rows = min(rows, shape[0])
    if min(shape) < 1:
        raise InputError(f"{name}: expected a shape of at least 1 in every axis, found {list(shape)}")
    shard = (-(-shape[0] // rows) * rows, *shape[1:])
    return ArrayLayout(name, dtype, 0, axes, shape, shard, (rows, *shape[1:]))
