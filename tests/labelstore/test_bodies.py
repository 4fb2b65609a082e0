"""What a compressed body says of itself is not believed: whoever changes it can make its CRC-32C right again."""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from numcodecs.zstd import Zstd

from labelstore.durable import disk
from labelstore.durable.publish import FileEntry
from labelstore.durable.storage import LocalStorage
from labelstore.encodings import Codec
from labelstore.errors import DamagedError
from labelstore.format import codecs
from labelstore.format.arrays import StoreLayout
from labelstore.format.codecs import compress, decompress
from labelstore.format.shards import Shard, encode_shard
from tests.labelstore.making import make_identity

VALUES = np.rint(np.random.default_rng(0).normal(0, 3, 4096)).astype("<i2")


def unpack(codec: Codec, body: bytes | np.ndarray) -> np.ndarray:
    return decompress(codec, np.frombuffer(body, np.uint8), VALUES.dtype, VALUES.shape)


def changed(codec: Codec, at: int, form: str, value: int) -> bytes:
    body = bytearray(compress(codec, VALUES))
    struct.pack_into(form, body, at, value)
    return bytes(body)


def fuzz(*words: str) -> None:
    path = os.pathsep.join(sys.path)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.labelstore.fuzzing", *words],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, f"ended with {ended.returncode}\n{ended.stderr[-4000:]}"


def test_changed_bodies_unpack_or_are_refused_and_take_no_more_memory_than_the_chunk() -> None:
    fuzz("1500")


@pytest.mark.long
def test_many_changed_bodies_unpack_or_are_refused() -> None:
    fuzz("40000", "random")


@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "B", 5, "version: expected 2, found 5"),
        (2, "B", 0x93, "compressed bytes: expected 8208, found"),  # calls itself plain
        (2, "B", 0x94, "flags: expected 129, found 132"),  # shuffled otherwise
        (2, "B", 0x31, "flags: expected 129, found 33"),  # of another compressor
        (2, "B", 0x99, "flags: expected 129, found 137"),
        (2, "B", 0x81, "expected a stream of at most 0 bytes"),  # one for each byte of a number
        (3, "B", 4, "bytes of a number: expected 2, found 4"),
        (4, "<i", 0x7FFFFFFF, "bytes: expected 8192"),
        (4, "<i", -1, "bytes: expected 8192"),
        (8, "<i", 0, "bytes of a block: expected 8192, found 0"),
        (8, "<i", 4096, "bytes of a block: expected 8192"),
        (12, "<i", 0x7FFFFFF0, "compressed bytes: expected"),
        (16, "<i", 0x70000000, "expected a stream"),
        (16, "<i", -8, "expected the block after the header"),
        (16, "<i", 12, "expected the block after the header"),
        (20, "<i", 0x70000000, "expected a stream"),
        (20, "<i", 0, "expected a stream"),
        (20, "<i", -1, "expected a stream"),
    ],
)
def test_no_field_of_a_blosc_buffer_reaches_beyond_it(at: int, form: str, value: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        unpack("shuffle", changed("shuffle", at, form, value))


def test_a_stream_for_each_byte_of_a_number_is_read_as_other_versions_of_blosc_write_it() -> None:
    streams = [Zstd(1).encode(np.ascontiguousarray(VALUES.view(np.uint8)[byte::2])) for byte in (0, 1)]
    body = b"".join(struct.pack("<i", len(stream)) + stream for stream in streams)
    size = VALUES.nbytes
    assert all(len(stream) < size // 2 for stream in streams)
    head = struct.pack("<4B4i", 2, 1, 0x81, 2, size, size, 20 + len(body), 20)
    assert np.array_equal(unpack("shuffle", head + body), VALUES)
    with pytest.raises(ValueError, match="expected a stream of at most"):
        unpack("shuffle", head + body[: 4 + len(streams[0])] + struct.pack("<i", 5000) + streams[1])


# Magic 4, version 1, hint 3, version 1; then of the first run: type 1, length 3, mode and differences.
@pytest.mark.parametrize(
    ("at", "form", "value", "message"),
    [
        (0, "B", 0, "expected a PCodec file"),
        (4, "B", 1, "expected a PCodec file"),
        (8, "B", 255, "version"),
        (9, "B", 7, "expected a run of int16"),
        (9, "B", 0, "expected a run of int16"),
        (10, "<I", 4096, "expected up to 4096 numbers in the run at byte 9, found 4097"),
        (10, "<I", 4094, "expected up to 4096 numbers in the run at byte 9, found 4095"),
        (13, "B", 0x20, "expected plain numbers"),  # looks back; how far says how much memory is taken
        (13, "B", 0x10, "expected plain numbers"),
        (13, "B", 0x01, "expected plain numbers"),
    ],
)
def test_no_kind_of_pcodec_but_the_one_that_is_written_is_unpacked(
    at: int, form: str, value: int, message: str
) -> None:
    assert compress("pcodec", VALUES)[8:14] == bytes([3, 8, 0xFF, 0x0F, 0, 0])
    with pytest.raises(ValueError, match=message):
        unpack("pcodec", changed("pcodec", at, form, value))


@pytest.mark.parametrize("end", [b"", b"\0\0", b"x"])
def test_pcodec_ends_where_its_numbers_do(end: bytes) -> None:
    with pytest.raises(ValueError, match="expected the end of 4096 numbers"):
        unpack("pcodec", bytes(compress("pcodec", VALUES))[:-1] + end)


class PanicException(BaseException):
    """As Rust's panics arrive in Python."""


def test_a_panic_is_damage_and_a_stop_of_the_user_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    raised: BaseException = PanicException("index out of bounds")

    def new(_header: bytes) -> None:
        raise raised

    monkeypatch.setattr(codecs, "wrapped", SimpleNamespace(FileDecompressor=SimpleNamespace(new=new)))
    with pytest.raises(ValueError, match="pcodec: index out of bounds"):
        unpack("pcodec", compress("pcodec", VALUES))
    raised = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        unpack("pcodec", compress("pcodec", VALUES))


def test_a_shard_with_a_hostile_body_and_a_right_crc_is_damaged(tmp_path: Path) -> None:
    layout = replace(StoreLayout.of(make_identity(2000, block=(2, 2000))).rows, chunk_crcs=False)
    data = bytearray(encode_shard(layout, np.ones(layout.shard, np.uint16)))
    offset, length = struct.unpack_from("<QQ", data, len(data) - 4 - 16 * layout.grid[1])
    struct.pack_into("<ii", data, offset + 12, 0x7FFFFFF0, 0x70000000)
    end = offset + length - 4
    struct.pack_into("<I", data, end, disk.crc32c(bytes(data[offset:end])))
    path = tmp_path / "shard"
    path.write_bytes(data)
    with pytest.raises(DamagedError, match=r"inner chunk \[0, 0, 0\] does not unpack .* compressed bytes: expected"):
        Shard(layout, layout.shard, LocalStorage(path.parent), path.name, FileEntry(len(data), 0, "")).read()
