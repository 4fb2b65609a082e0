"""How the inner chunks of a shard are compressed: one line a codec, in zarr's words and in bytes.

Whatever the codec, a CRC-32C follows each chunk. ``raw``, ``shuffle`` and ``bitshuffle`` are codecs of Zarr's core;
``pcodec`` is numcodecs' PCodec, which readers other than zarr-python may lack.
"""

from __future__ import annotations

from typing import Any

import numcodecs.blosc
import numpy as np
import numpy.typing as npt
from numcodecs.pcodec import PCodec
from pcodec import standalone

from labelstore.encodings.base import Codec

BLOSC_HEADER = 16
# Numbers as they are: codes of transforms have neither runs nor common factors for the other modes to find.
PCODEC: dict[str, Any] = {"level": 8, "mode_spec": "classic", "delta_spec": "none"}
PCODEC_MARGIN = 4096  # bytes by which PCodec may exceed the numbers that it is given
BLOSC: dict[str, tuple[int, int]] = {  # shuffle, level
    "shuffle": (numcodecs.blosc.SHUFFLE, 5),
    "bitshuffle": (numcodecs.blosc.BITSHUFFLE, 9),
}

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
    """The bytes of a chunk, little-endian and contiguous; raw ones where they are."""
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
    """The chunk of ``shape`` that ``body`` holds.

    Raises:
        ValueError: when it holds something else.
    """
    size = int(np.prod(shape)) * dtype.itemsize
    if codec == "raw":
        return body.view(dtype).reshape(shape)
    if codec == "pcodec":
        out = np.empty(size // dtype.itemsize, dtype.newbyteorder("="))
        progress = standalone.simple_decompress_into(body.tobytes(), out)
        if progress.n_processed != out.size or not progress.finished:
            raise ValueError(f"expected {out.size} numbers, found {progress.n_processed} or more")
        return out.reshape(shape)
    # Blosc takes the size of what it allocates from this field of its header.
    if len(body) < BLOSC_HEADER or int.from_bytes(body[4:8].tobytes(), "little") != size:
        raise ValueError(f"expected a chunk of {size} bytes")
    return np.frombuffer(numcodecs.blosc.decompress(body), dtype).reshape(shape)


def largest(codec: Codec, chunk_bytes: int) -> int:
    """No chunk of ``chunk_bytes`` becomes longer than this."""
    return chunk_bytes + {"raw": 0, "pcodec": PCODEC_MARGIN}.get(codec, BLOSC_HEADER)
