"""Codecs of the inner chunks of a shard: one line for each, in zarr's metadata and in bytes.

Whatever the codec, a CRC-32C follows each chunk. ``raw``, ``shuffle`` and ``bitshuffle`` are codecs of Zarr's core;
``pcodec`` is numcodecs' PCodec, which readers other than zarr-python may lack.
"""

from __future__ import annotations

import struct
from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
from numcodecs.pcodec import PCodec
from pcodec import wrapped

from labelstore.encodings.base import Codec

BLOSC_HEADER = 16
BLOSC_VERSION = 2  # of the header
BLOSC_ZSTD = 4 << 5  # flags: the compressor
BLOSC_MEMCPY = 2  # uncompressed bytes
BLOSC_WHOLE = 16  # a block is one stream, not one for each byte of a number
BLOSC_SHUFFLED = {"shuffle": 1, "bitshuffle": 4}
# Plain numbers: codes of transforms have neither runs nor common factors, which the other modes need.
PCODEC: dict[str, Any] = {"level": 8, "mode_spec": "classic", "delta_spec": "none"}
PCODEC_MARGIN = 4096  # bytes by which PCodec may exceed the numbers that it is given
PCODEC_MAGIC = b"pco!"
PCODEC_STANDALONE = 2  # its version; later ones start with the type of the numbers
PCODEC_TYPES = {"int16": ("i16", 8), "uint16": ("u16", 7), "int32": ("i32", 3), "uint32": ("u32", 1)}
PCODEC_RUN = 1 << 16  # numbers of a run, at least, unless it is the last; PCodec makes equal ones of up to 2^18
BLOSC: dict[str, tuple[int, int]] = {  # shuffle, level
    "shuffle": (numcodecs.blosc.SHUFFLE, 5),
    "bitshuffle": (numcodecs.blosc.BITSHUFFLE, 9),
}

RUST_PANIC = "PanicException"

Array = npt.NDArray[Any]
_pcodec = PCodec(**PCODEC)


def metadata(codec: Codec, itemsize: int, chunk_bytes: int) -> list[dict[str, Any]]:
    """The codecs of an inner chunk, as zarr.json has them."""
    crc: dict[str, Any] = {"name": "crc32c"}
    if codec == "pcodec":
        return [{"name": "numcodecs.pcodec", "configuration": PCODEC}, crc]
    # One byte has no order.
    stored = {"name": "bytes", "configuration": {"endian": "little"}} if itemsize > 1 else {"name": "bytes"}
    if codec == "raw":
        return [stored, crc]
    blosc = {
        "typesize": itemsize,
        "cname": "zstd",
        "clevel": BLOSC[codec][1],
        "shuffle": codec,
        "blocksize": chunk_bytes,
    }
    return [stored, {"name": "blosc", "configuration": blosc}, crc]


def compress(codec: Codec, chunk: Array) -> bytes | npt.NDArray[np.uint8]:
    """The bytes of a chunk, little-endian and contiguous; without a copy if they are so already."""
    if codec == "raw":
        plain: npt.NDArray[np.uint8] = chunk.reshape(-1).view(np.uint8)
        return plain
    if codec == "pcodec":
        packed: bytes = _pcodec.encode(chunk.reshape(-1))
        return packed
    shuffle, level = BLOSC[codec]
    # One Blosc block a chunk: with several, threads would write them in the order in which they finish.
    blosc: bytes = numcodecs.blosc.compress(chunk, b"zstd", level, shuffle, chunk.nbytes, chunk.itemsize)
    return blosc


def decompress(codec: Codec, body: npt.NDArray[np.uint8], dtype: np.dtype[Any], shape: tuple[int, ...]) -> Array:
    """The chunk of ``shape`` that ``body`` holds; a body may be hostile, though its CRC-32C is right.

    Raises:
        ValueError: when it holds something else.
    """
    if codec == "raw":
        return body.view(dtype).reshape(shape)
    count = int(np.prod(shape))
    try:
        if codec == "pcodec":
            return _read_pcodec(body.tobytes(), dtype.newbyteorder("="), count).reshape(shape)
        _require_blosc(codec, body, dtype.itemsize, count * dtype.itemsize)
        return np.frombuffer(numcodecs.blosc.decompress(body), dtype).reshape(shape)
    except ValueError:
        raise
    except Exception as error:
        raise ValueError(str(error)) from error
    except BaseException as error:
        if type(error).__name__ != RUST_PANIC:  # no Exception, and of a module that cannot be imported
            raise
        raise ValueError(f"{codec}: {error}") from error


def _require_blosc(codec: Codec, body: npt.NDArray[np.uint8], itemsize: int, size: int) -> None:
    """Refuse all but one block of ``size`` bytes: the C library trusts the sizes in a header.

    Raises:
        ValueError: names the first field that is not what :func:`compress` makes.
    """
    if len(body) < BLOSC_HEADER:
        raise ValueError(f"expected a header of {BLOSC_HEADER} bytes, found {len(body)} bytes")
    version, _, flags, typesize, nbytes, blocksize, cbytes = struct.unpack("<4B3i", body[:BLOSC_HEADER].tobytes())
    fields = {
        "version": (BLOSC_VERSION, version),
        "flags": (BLOSC_ZSTD | BLOSC_SHUFFLED[codec], flags & ~(BLOSC_MEMCPY | BLOSC_WHOLE)),
        "bytes of a number": (itemsize, typesize),
        "bytes": (size, nbytes),
        "bytes of a block": (size, blocksize),
        "compressed bytes": (BLOSC_HEADER + size if flags & BLOSC_MEMCPY else len(body), cbytes),
        "bytes in all": (cbytes, len(body)),
    }
    for name, (expected, found) in fields.items():
        if found != expected:
            raise ValueError(f"{name}: expected {expected}, found {found}")
    if flags & BLOSC_MEMCPY:
        return
    streams = 1 if flags & BLOSC_WHOLE else typesize
    at = _int32(body, BLOSC_HEADER)
    if at < BLOSC_HEADER + 4:
        raise ValueError(f"expected the block after the header, found it at byte {at}")
    for _ in range(streams):
        length = _int32(body, at)
        at += 4
        most = min(size // streams, len(body) - at)
        if not 0 < length <= most:
            raise ValueError(f"expected a stream of at most {max(most, 0)} bytes at byte {at}, found {length}")
        at += length


def _int32(body: npt.NDArray[np.uint8], at: int) -> int:
    """The number at a byte, of fewer bytes where the body ends before."""
    return int.from_bytes(body[at : at + 4].tobytes(), "little", signed=True)


def _read_pcodec(body: bytes, dtype: np.dtype[Any], count: int) -> Array:
    """The ``count`` numbers of a standalone PCodec file.

    Its library allocates by the sizes in a file. So the runs are read one by one, and all but the kind that
    :func:`compress` makes, which takes little, are refused before.

    Raises:
        ValueError: when it holds another number of them, or is not of that kind.
    """
    name, number = PCODEC_TYPES[dtype.name]
    out = np.empty(count, dtype)
    at, done, length = _pcodec_header(body), 0, len(body)
    file, size = wrapped.FileDecompressor.new(body[at : at + 1])
    at += size
    while done < count:
        if length - at < 5 or body[at] != number:
            raise ValueError(f"expected a run of {dtype.name} at byte {at} of {length}, {count - done} numbers missing")
        run = int.from_bytes(body[at + 1 : at + 4], "little") + 1
        if not min(count - done, PCODEC_RUN) <= run <= count - done:
            raise ValueError(f"expected up to {count - done} numbers in the run at byte {at}, found {run}")
        at += 4
        if body[at] & 0x7F:  # four bits for the mode, three or four for the kind of differences
            raise ValueError(f"expected plain numbers at byte {at}, found mode and differences {body[at]:#x}")
        chunk, size = file.read_chunk_meta(body[at:], name)
        at += size
        progress, size = chunk.read_page_into(body[at:], run, out[done : done + run])
        at += size
        if progress.n_processed != run or not progress.finished:
            raise ValueError(f"expected {run} numbers in the run that ends at byte {at}, found another number")
        done += run
    if body[at:] != b"\0":
        raise ValueError(f"expected the end of {count} numbers at byte {at} of {length}")
    return out


def _pcodec_header(body: bytes) -> int:
    """Bytes of what comes before the version of the runs: magic, version, the numbers' type, a hint of their number."""
    at = len(PCODEC_MAGIC) + 1
    if not body.startswith(PCODEC_MAGIC) or len(body) <= at or body[at - 1] < PCODEC_STANDALONE:
        raise ValueError(f"expected a PCodec file, found {body[:at]!r}")
    at += body[at - 1] > PCODEC_STANDALONE
    if len(body) <= at:
        raise ValueError("expected a hint of the number of numbers, found the end")
    return at + (6 + 1 + (body[at] & 63) + 7) // 8


def largest(codec: Codec, chunk_bytes: int) -> int:
    """No chunk of ``chunk_bytes`` becomes longer than this."""
    return chunk_bytes + {"raw": 0, "pcodec": PCODEC_MARGIN}.get(codec, BLOSC_HEADER)
