"""Metadata and shards, with zarr-python as the oracle."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from zarr.codecs import BloscCodec, Crc32cCodec
from zarr.storage import LocalStore, MemoryStore

from labelstore.durable.storage import LocalStorage
from labelstore.encodings import Codec
from labelstore.errors import InputError
from labelstore.format.arrays import CHUNK_BYTES, ArrayLayout, StoreLayout, chunk_rows, divisor_nearest
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.shards import Shard, described, encode_shard, largest_shard
from labelstore.spec import BlockShape
from labelstore.writing.space import require_free_space, store_bytes
from tests.labelstore.making import make_identity


def zarrs_own(layout: ArrayLayout, views: int) -> tuple[MemoryStore, zarr.Array]:
    """The same array as zarr-python makes it."""
    store = MemoryStore()
    itemsize = np.dtype(layout.dtype).itemsize
    level = {"shuffle": 5, "bitshuffle": 9}.get(layout.codec, 0)
    shuffle: Any = layout.codec if level else "shuffle"
    blosc = BloscCodec(typesize=itemsize, cname="zstd", clevel=level, shuffle=shuffle, blocksize=layout.chunk_bytes)
    array = zarr.create_array(
        store,
        shape=tuple(views if axis == "view" else size for axis, size in zip(layout.axes, layout.shape, strict=True)),
        shards=layout.shard,
        chunks=layout.chunk,
        dtype=layout.dtype,
        fill_value=float("nan") if layout.fill == "NaN" else layout.fill,
        compressors=[blosc, Crc32cCodec()] if level else [Crc32cCodec()],
        chunk_key_encoding={"name": "default", "separator": "."},
        dimension_names=layout.axes,
        config={"write_empty_chunks": False},
    )
    return store, array


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_metadata_is_what_zarr_writes(encoding: str) -> None:
    for layout in StoreLayout.of(make_identity(encoding=encoding)).all:
        store, _ = zarrs_own(layout, 6)
        theirs = json.loads(store._store_dict["zarr.json"].to_bytes())
        theirs.pop("storage_transformers")
        assert json.loads(layout.metadata(6)) == theirs


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_a_shard_is_byte_for_byte_what_zarr_writes(encoding: str) -> None:
    """True where zarr orders chunks as we do, along one axis, and leaves out those that hold nothing but fill."""
    rng = np.random.default_rng(0)
    for layout in StoreLayout.of(make_identity(1000, 2000, encoding=encoding, block=(1, 1000))).all:
        values = rng.integers(0, 100, layout.extent({"view": 1, "position": 1000})).astype(layout.dtype)
        store, array = zarrs_own(layout, 1)
        array[...] = values
        theirs = store._store_dict[layout.file(BlockIndex(0, 0)).rpartition("/")[2]].to_bytes()
        assert encode_shard(replace(layout, chunk_crcs=False), values) == theirs
        ours, index = encode_shard(layout, values), math.prod(layout.grid) * 16 + 4
        crcs = np.frombuffer(ours[-index - 4 * math.prod(layout.grid) : -index], "<u4")
        assert ours == theirs[:-index] + crcs.tobytes() + theirs[-index:], (
            "what zarr writes, and the CRCs before its index"
        )
        places = np.frombuffer(ours[-index:-4], "<u8").reshape(-1, 2)
        chunks = [ours[offset : offset + length - 4] for offset, length in places.tolist()]
        assert crcs.tolist() == [google_crc32c.value(chunk) for chunk in chunks]


@st.composite
def sharded(draw: st.DrawFn) -> tuple[ArrayLayout, np.ndarray]:
    """A small array of two to three axes, and values that may end before its shard does."""
    axes = ("view", "position", "class")[: draw(st.integers(2, 3))]
    chunk = tuple(draw(st.integers(1, 3)) for _ in axes)
    shard = tuple(size * draw(st.integers(1, 3)) for size in chunk)
    extent = tuple(draw(st.integers(1, size)) for size in shard)
    kinds: list[tuple[str, int | str]] = [("int8", -128), ("float16", "NaN"), ("uint16", 65535), ("float32", "NaN")]
    dtype, fill = draw(st.sampled_from(kinds))
    codecs: list[Codec] = ["raw", "shuffle", "bitshuffle"]
    codec = draw(st.sampled_from(codecs + (["pcodec"] if dtype == "uint16" else [])))
    layout = ArrayLayout("a", dtype, fill, axes, extent, shard, chunk, codec)
    values = np.random.default_rng(draw(st.integers(0, 99))).integers(-100, 100, extent).astype(dtype)
    return layout, values


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@settings(deadline=None, max_examples=30)
@given(sharded())
def test_any_shard_reads_back_here_and_in_zarr(tmp_path_factory: pytest.TempPathFactory, case: tuple) -> None:
    layout, values = case
    root = tmp_path_factory.mktemp("shard")
    data = encode_shard(layout, values)
    (root / "a").mkdir()
    (root / "a" / "zarr.json").write_bytes(layout.metadata(values.shape[0]))
    (root / layout.file()).write_bytes(data)
    theirs = zarr.open_array(LocalStore(root / "a"), mode="r")
    assert np.array_equal(theirs[...], values)
    shard = Shard(layout, values.shape, LocalStorage(root), layout.file(), described(layout, values).entry)
    assert np.array_equal(shard.read(), values)
    assert len(data) <= largest_shard(layout, values.shape)
    if layout.codec == "raw":
        assert len(data) == largest_shard(layout, values.shape)
        positions = np.arange(values.shape[1])[::-1]
        if layout.chunk[2:] == values.shape[2:]:
            for view in range(values.shape[0]):
                assert np.array_equal(shard.take(view, positions), values[view][positions])
    head = tuple(values[tuple(slice(0, size) for size in layout.chunk[:1])].shape[:1])
    assert np.array_equal(shard.read(0), values[: head[0]])


@given(st.integers(1, 5000), st.integers(1, 5000))
def test_nearest_divisor(number: int, wanted: int) -> None:
    found = divisor_nearest(number, wanted)
    divisors = [d for d in range(1, number + 1) if number % d == 0]
    assert found in divisors
    assert max(found / wanted, wanted / found) == min(max(d / wanted, wanted / d) for d in divisors)


@pytest.mark.parametrize(
    ("images", "columns", "group"),
    [(1_281_167, 1000, 1), (1_281_167, 1000, 128), (10_000, 1000, 1), (500, 10, 1), (10, 1000, 1), (50_000, 21_841, 1)],
)
def test_inner_chunks_are_near_half_a_mebibyte(images: int, columns: int, group: int) -> None:
    shape = BlockShape.choose(images, columns, group)
    views, run = chunk_rows(shape.views, shape.positions, CHUNK_BYTES // columns)
    assert shape.positions % run == 0
    assert shape.views % views == 0
    assert views == 1 or run == shape.positions
    whole = shape.views * shape.positions * columns
    assert min(CHUNK_BYTES, whole) / 8 <= views * run * columns <= 8 * CHUNK_BYTES


def test_file_names_and_blocks() -> None:
    layout = StoreLayout.of(make_identity())
    for array, name in zip(layout.blocks, ("c.2.1.0", "c.2.1.0", "c.2.0.1"), strict=True):
        assert array.file(BlockIndex(2, 1)) == f"{array.name}/{name}"
        assert array.block(name) == BlockIndex(2, 1)
    for name in ("c.2.1", "c.2.1.1", "c.2.1.x", "c.02.1.0", "zarr.json", "c", "c.-1.0.0"):
        assert layout.codes[0].block(name) is None


def test_blocks_cover_every_view_and_position_once() -> None:
    grid = BlockGrid.of(make_identity(11, block=(3, 4)))
    seen = np.zeros((6, 11), int)
    for number, block in enumerate(grid.blocks(0, grid.whole_views(5))):
        assert grid.ordinal(block, 0) == number
        seen[slice(*grid.views(block)), slice(*grid.positions(block))] += 1
    assert (seen == 1).all()
    with pytest.raises(InputError, match=r"block shape: expected 1 to 4194304 rows, found 100000 views x 100000"):
        BlockGrid.of(make_identity(block=(100_000, 100_000)))


def test_free_space(tmp_path: Path) -> None:
    identity = make_identity(1_281_167, 1000, block=(1, 16_384))
    needed = store_bytes(identity, 300)
    assert 1 <= needed / (1_281_167 * 300 * (1000 + 4 + 2 * 7)) <= 1.02
    require_free_space(tmp_path / "not" / "there", 1)
    with pytest.raises(InputError, match=r"needs up to 10,000,000,000,000,000 bytes, the file system of .* free"):
        require_free_space(tmp_path / "not" / "there", 10**16)
