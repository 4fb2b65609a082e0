"""Every codec that an encoding offers gives back exactly what went in: here, in zarr-python, and in tensorstore."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from zarr.codecs import TransposeCodec
from zarr.codecs.numcodecs import PCodec
from zarr.storage import MemoryStore

from labelstore.access.reading import Reader
from labelstore.durable.publish import FileEntry
from labelstore.durable.storage import LocalStorage
from labelstore.errors import DamagedError
from labelstore.format.arrays import ArrayLayout, StoreLayout
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.codecs import PCODEC
from labelstore.format.shards import described, encode_shard
from labelstore.spec import Identity
from tests.labelstore.making import make_identity

ENCODINGS: list[dict[str, Any]] = [
    {"name": "float16"},
    {"name": "float16", "codec": "zstd"},
    {"name": "int8"},
    {"name": "int8", "codec": "zstd"},
    {"name": "transform", "fidelity": 0.9},
    {"name": "transform", "fidelity": 0.9, "codec": "zstd"},
]
IDS = ["-".join(str(part) for name, part in encoding.items() if name != "fidelity") for encoding in ENCODINGS]
VIEWS, COMPONENTS = 6, 40  # three groups of components, the last one not full; four of seven are left out

pytestmark = pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")


class Coded:
    """Drawn codes of every view, written as a store has them."""

    def __init__(self, root: Path, identity: Identity) -> None:
        self.root, self.identity = root, identity
        self.layout, self.grid = StoreLayout.of(identity), BlockGrid.of(identity)
        rng = np.random.default_rng(0)
        self.codes: dict[str, np.ndarray] = {}
        self.entries: dict[tuple[BlockIndex, str], FileEntry] = {}
        for array in self.layout.codes:
            width = (COMPONENTS,) if array.planar else array.shape[2:]
            values = rng.integers(-100, 100, (VIEWS, identity.images, *width)).astype(array.dtype)
            self.codes[array.name] = values
            (root / array.name).mkdir(parents=True)
            (root / array.name / "zarr.json").write_bytes(array.metadata(VIEWS))
            for block in self.blocks():
                part = values[slice(*self.grid.views(block)), slice(*self.grid.positions(block))]
                shard = described(array, np.moveaxis(part, -1, 1) if array.planar else part)
                (root / array.file(block)).write_bytes(b"".join(map(bytes, shard.pieces)))
                self.entries[block, array.name] = shard.entry

    def blocks(self) -> Iterator[BlockIndex]:
        return self.grid.blocks(0, VIEWS)

    def reader(self) -> Reader:
        def marker(block: BlockIndex) -> Any:
            shards = {name: entry for (at, name), entry in self.entries.items() if at == block}
            return SimpleNamespace(shards=shards)

        return Reader(LocalStorage(self.root), self.identity, marker, components=lambda: COMPONENTS)

    def whole(self, array: ArrayLayout) -> np.ndarray:
        """The array as any reader of zarr must see it: what is left out is the fill value."""
        values = self.codes[array.name]
        if not array.planar:
            return values
        planar = np.zeros((VIEWS, *array.shape[1:]), array.dtype)
        planar[:, :COMPONENTS] = np.moveaxis(values, -1, 1)
        return planar


def identity_of(encoding: dict[str, Any], block: tuple[int, int]) -> Identity:
    """Labels of 100 columns of 10 images: the last of three runs of positions is shorter."""
    return replace(make_identity(10, 100, block=block), encoding=encoding)


@pytest.fixture(params=[(1, 4), (3, 4), (2, 10)], ids=["a-view", "views", "whole-views"])
def block(request: pytest.FixtureRequest) -> tuple[int, int]:
    shape: tuple[int, int] = request.param
    return shape


@pytest.mark.parametrize("encoding", ENCODINGS, ids=IDS)
def test_codes_come_back_exactly(tmp_path: Path, encoding: dict[str, Any], block: tuple[int, int]) -> None:
    coded = Coded(tmp_path, identity_of(encoding, block))
    reader, rng = coded.reader(), np.random.default_rng(1)
    for view in range(VIEWS):
        for positions in (np.arange(10), rng.permutation(10), rng.integers(0, 10, 4), np.arange(0)):
            found = reader.codes(view, positions)
            assert list(found) == list(coded.codes)
            for name, codes in found.items():
                assert np.array_equal(codes, coded.codes[name][view, positions])
                assert codes.dtype == coded.codes[name].dtype
    for array in coded.layout.codes:
        theirs = zarr.open_array(tmp_path / array.name, mode="r")
        assert np.array_equal(theirs[...], coded.whole(array))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=IDS)
def test_core_codecs_come_back_exactly_through_tensorstore(
    tmp_path: Path, encoding: dict[str, Any], block: tuple[int, int]
) -> None:
    coded = Coded(tmp_path, identity_of(encoding, block))
    for array in coded.layout.codes:
        kvstore = {"driver": "file", "path": str(tmp_path / array.name)}
        opening = tensorstore.open({"driver": "zarr3", "kvstore": kvstore})
        if array.codec == "pcodec":
            with pytest.raises(ValueError, match="pcodec"):
                opening.result()
        else:
            assert np.array_equal(opening.result().read().result(), coded.whole(array))


@pytest.mark.parametrize("encoding", ENCODINGS, ids=IDS)
def test_a_flipped_byte_is_damage_whatever_the_codec(tmp_path: Path, encoding: dict[str, Any]) -> None:
    coded = Coded(tmp_path, identity_of(encoding, (2, 10)))
    for array in coded.layout.codes:
        path = tmp_path / array.file(BlockIndex(1, 0))
        whole = path.read_bytes()
        for at in np.linspace(0, len(whole) - 1, 60).astype(int):
            harmed = bytearray(whole)
            harmed[at] ^= 1 << int(at) % 8
            path.write_bytes(harmed)
            with pytest.raises(DamagedError, match=r"CRC-32C|is not the shard that was published"):
                coded.reader().codes(2, np.arange(10))
        path.write_bytes(whole)
    assert len(coded.reader().codes(2, np.arange(10))["labels"]) == 10


def test_unused_components_take_no_bytes() -> None:
    array = StoreLayout.of(identity_of({"name": "transform", "fidelity": 0.9}, (2, 10))).codes[0]
    assert array.planar
    sizes = [len(encode_shard(array, np.ones((2, used, 10), np.int16))) for used in (0, 1, 16, 17)]
    assert sizes[0] == 20 * np.prod(array.grid) + 4  # the table of chunks alone
    assert sizes[0] < sizes[1]
    assert sizes[2] < sizes[3]


def test_no_array_is_transposed_since_pcodec_behind_a_transpose_reads_back_wrong() -> None:
    """The trap, as zarr 3.1.6 has it: no error, other values. Codes are planar on disk instead."""
    values = np.random.default_rng(0).integers(-100, 100, (64, 48)).astype(np.int16)
    made = {
        filters: zarr.create_array(
            MemoryStore(),
            shape=values.shape,
            chunks=values.shape,
            dtype=values.dtype,
            filters=[TransposeCodec(order=(1, 0))] if filters else [],
            serializer=PCodec(**PCODEC),
            compressors=None,
        )
        for filters in (False, True)
    }
    for array in made.values():
        array[...] = values
    assert np.array_equal(made[False][...], values)
    assert not np.array_equal(made[True][...], values)
    for encoding in ENCODINGS:
        assert all(
            b"transpose" not in layout.metadata(2) for layout in StoreLayout.of(identity_of(encoding, (2, 4))).all
        )
