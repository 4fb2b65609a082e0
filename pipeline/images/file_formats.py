"""The structure of JPEG, PNG, WebP and binary PPM files: magic numbers, markers, chunks; defined only here."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

JPEG_MAGIC = b"\xff\xd8\xff"
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"

SUFFIXES = {"JPEG": ".jpg", "PNG": ".png", "WebP": ".webp", "PPM": ".ppm"}
"""The usual suffix of a file of each format that `readable` names."""

JPEG_TABLES, JPEG_QUANTISERS, JPEG_RESTARTS, JPEG_SCAN, JPEG_END = 0xC4, 0xDB, 0xDD, 0xDA, 0xD9
JPEG_FRAMES = frozenset(range(0xC0, 0xD0)) - {JPEG_TABLES, 0xC8, 0xCC}
JPEG_METADATA = frozenset({*range(0xE0, 0xF0), 0xFE})
"""Segments of applications, and comments."""

_PPM_GAP = rb"\s+(?:#[^\n\r]*[\n\r]\s*)*"
PPM_HEAD = re.compile(rb"P[56]" + 3 * (_PPM_GAP + rb"(\d+)") + rb"\s")
"""Of a binary PPM or PGM: width, height, largest value; pixels follow."""
PPM_HEAD_BYTES = 512

Chunk: TypeAlias = tuple[bytes, int, int]
"""Name, first byte and end of a chunk with its length, name and checksum; the end may lie after that of the data."""


def readable(head: bytes) -> str | None:
    """``JPEG``, ``PNG``, ``WebP`` or ``PPM`` where a file begins as one, at least 12 bytes of it; else None.

    A binary PGM, ``P5``, is a PPM of one channel.
    """
    if head.startswith(JPEG_MAGIC):
        return "JPEG"
    if head.startswith(PNG_MAGIC):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WebP"
    return "PPM" if len(head) >= 12 and re.match(rb"P[56]\s+[\d#]", head[:12]) else None


def ppm_file(pixels: npt.NDArray[np.uint8]) -> bytes:
    """The canonical file of an image ``[H, W, C]`` of 1 or 3 channels: one header for each size, then the pixels."""
    return ppm_head(*pixels.shape) + pixels.tobytes()


def ppm_head(height: int, width: int, channels: int) -> bytes:
    """The header of `ppm_file`."""
    return b"P%d\n%d %d\n255\n" % (5 if channels == 1 else 6, width, height)


def png_chunks(data: bytes | memoryview) -> Iterator[Chunk]:
    """The chunks of a PNG file whose heads are in ``data``."""
    position = len(PNG_MAGIC)
    while position + 12 <= len(data):
        end = position + 12 + int.from_bytes(data[position : position + 4])
        yield bytes(data[position + 4 : position + 8]), position, end
        position = end


def webp_chunks(data: bytes | memoryview) -> Iterator[Chunk]:
    """The chunks of a WebP file whose heads are in ``data``."""
    position = 12
    while position + 8 <= len(data):
        length = int.from_bytes(data[position + 4 : position + 8], "little")
        end = position + 8 + length + length % 2
        yield bytes(data[position : position + 4]), position, end
        position = end
