"""Read the header of an image file: its kind, and its size after orientation; nothing is decoded.

Only headers are parsed, with bounded reads: a file that declares a huge image costs no memory here.
"""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass
from typing import BinaryIO

from PIL import UnidentifiedImageError

from labelstore.errors import InputError
from pipeline.images.file_formats import (
    JPEG_END,
    JPEG_FRAMES,
    JPEG_SCAN,
    PNG_MAGIC,
    PPM_HEAD,
    PPM_HEAD_BYTES,
    readable,
)
from pipeline.images.kinds import GIT_LFS, HEAD_BYTES, TEXT, UNKNOWN, other_kind
from pipeline.images.orientation import EXIF, XMP, XMP_ORIENTATION, PngMetadata, read_orientation

MAX_PIXELS = 2**26
"""Largest declared image (201 MB as RGB); below the size at which Pillow itself begins to warn."""
MAX_SIDE = 65_000
"""Longest declared side: boxes are uint16 and include padding."""

_JPEG_STANDALONE = frozenset({0x01, *range(0xD0, 0xD9)})
_JPEG_APP1 = 0xE1
_WEBP_EXIF_OR_XMP = 0x0C


class BrokenImageError(InputError):
    """A file that cannot be read as an image; ``--skip-broken`` leaves it out."""


class UnsupportedImageError(InputError):
    """An intact image of a kind that is refused: 16-bit, animated, too large."""


@dataclass(frozen=True, slots=True)
class Header:
    """The content of an image file's header.

    Attributes:
        kind: ``JPEG``, ``PNG``, ``WebP`` or ``PPM``, by content.
        height: in pixels, after orientation.
        width: likewise.
        orientation: as Pillow reads it from EXIF or XMP, 1 to 8; from 5 on, height and width are exchanged.
    """

    kind: str
    height: int
    width: int
    orientation: int


def read_header(file: BinaryIO) -> Header:
    """Parse the header of an image file that is open at its start.

    Raises:
        BrokenImageError: when the content is not JPEG, PNG, WebP or PPM, ends within its header, or has metadata that
            Pillow cannot read.
        UnsupportedImageError: more than 8 bits a channel, animated, or larger than the limits above.
    """
    magic = file.read(12)
    kind = readable(magic)
    if kind is None:
        raise BrokenImageError(f"expected a JPEG, PNG, WebP or PPM file, found {_other(magic, file)}")
    try:
        height, width, metadata = {"JPEG": _jpeg, "PNG": _png, "WebP": _webp, "PPM": _ppm}[kind](file)
    except EOFError as error:
        raise BrokenImageError("ends within its header") from error
    if not height or not width:
        raise BrokenImageError(f"declares an image of {height} x {width} pixels")
    if height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise UnsupportedImageError(
            f"declares {height:,} x {width:,} pixels; expected at most {MAX_PIXELS:,} pixels "
            f"and sides of at most {MAX_SIDE:,}"
        )
    orientation = 1 if metadata is None else _orientation(kind, metadata)
    if orientation >= 5:
        height, width = width, height
    return Header(kind, height, width, orientation)


def _other(magic: bytes, file: BinaryIO) -> str:
    """A description of a file that is not JPEG, PNG, WebP or PPM, for messages."""
    if not magic:
        return "an empty file"
    kind = other_kind(magic + file.read(HEAD_BYTES - len(magic)))
    if kind == GIT_LFS:
        return "a Git LFS pointer: run `git lfs pull` for the image"
    return f"content that begins with {magic!r}{'' if kind in (TEXT, UNKNOWN) else f', as {kind} does'}"


def _orientation(kind: str, metadata: BinaryIO) -> int:
    """The orientation of a file that has EXIF or XMP; BrokenImageError if Pillow raises when it reads it."""
    try:
        return read_orientation(kind, metadata)
    except Exception as error:  # Pillow's plugins raise SyntaxError, struct.error, ValueError, ...
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the file cannot be read
        reason = "it does not open" if isinstance(error, UnidentifiedImageError) else error
        raise BrokenImageError(
            f"has metadata (EXIF or XMP) in which Pillow finds no orientation but an error ({reason}); write the file "
            f"anew without its metadata, e.g. with `exiftool -all= FILE`"
        ) from error


def _exactly(file: BinaryIO, count: int) -> bytes:
    """``count`` bytes, or EOFError."""
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _jpeg(file: BinaryIO) -> tuple[int, int, BinaryIO | None]:
    """(height, width, file to read the orientation from) from the segments before the first scan."""
    file.seek(2)
    height = width = 0
    turned = False
    while (marker := _jpeg_marker(file)) not in (JPEG_SCAN, JPEG_END):
        if marker in _JPEG_STANDALONE:
            continue
        length = max(int.from_bytes(_exactly(file, 2), "big") - 2, 0)
        if marker in JPEG_FRAMES:
            precision, height, width = struct.unpack(">BHH", _exactly(file, 5))
            length -= 5
            if precision != 8:
                raise UnsupportedImageError(f"has {precision} bits a channel; expected 8")
        elif marker == _JPEG_APP1:
            segment = _exactly(file, length)
            length = 0
            turned |= segment.startswith(EXIF) or (segment.startswith(XMP) and XMP_ORIENTATION in segment)
        file.seek(max(length, 0), 1)
    return height, width, file if turned else None


def _jpeg_marker(file: BinaryIO) -> int:
    """The next marker; junk and fill bytes before it are skipped, as decoders do."""
    marker = 0x00
    while marker == 0x00:  # after 0xFF, a zero is data
        while _exactly(file, 1) != b"\xff":
            pass
        while (marker := _exactly(file, 1)[0]) == 0xFF:
            pass
    return marker


def _png(file: BinaryIO) -> tuple[int, int, BinaryIO | None]:
    """(height, width, file to read the orientation from) from the chunks; metadata may come after the pixels."""
    file.seek(len(PNG_MAGIC))
    first = _exactly(file, 25)
    length, kind, width, height, depth = struct.unpack(">I4sIIB", first[:17])
    if (length, kind) != (13, b"IHDR") or zlib.crc32(first[4:21]).to_bytes(4, "big") != first[21:]:
        raise BrokenImageError("has a damaged PNG header")
    if depth == 16:
        raise UnsupportedImageError("has 16 bits a channel; expected 8: convert it first")
    metadata = PngMetadata()
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        taken = metadata.take(head, file)
        if taken < 0:
            break
        if kind == b"acTL":
            data = file.read(min(length, 4))
            taken = len(data)
            if int.from_bytes(data, "big") > 1:
                raise UnsupportedImageError("is animated; expected one still image")
        file.seek(length + 4 - taken, 1)
    return height, width, metadata.file() if metadata.any else None


def _ppm(file: BinaryIO) -> tuple[int, int, BinaryIO | None]:
    """(height, width, None) of a binary PPM or PGM: it has no metadata."""
    file.seek(0)
    head = file.read(PPM_HEAD_BYTES)
    found = PPM_HEAD.match(head)
    if found is None:
        raise EOFError
    if max(map(len, found.groups())) > 9:
        raise BrokenImageError("has a damaged PPM header")
    width, height, largest = map(int, found.groups())
    if largest != 255:
        raise UnsupportedImageError(f"has values up to {largest}; expected 255, 8 bits a channel: convert it first")
    return height, width, None


def _webp(file: BinaryIO) -> tuple[int, int, BinaryIO | None]:
    """(height, width, file to read the orientation from) from the first RIFF chunk."""
    file.seek(12)
    kind, length = struct.unpack("<4sI", _exactly(file, 8))
    if kind == b"VP8 ":
        data = _exactly(file, 10)
        if data[3:6] != b"\x9d\x01\x2a":
            raise BrokenImageError("has a damaged WebP header")
        width, height = (side & 0x3FFF for side in struct.unpack("<HH", data[6:]))
        return height, width, None
    if kind == b"VP8L":
        data = _exactly(file, 5)
        if data[0] != 0x2F:
            raise BrokenImageError("has a damaged WebP header")
        sides = int.from_bytes(data[1:], "little")
        return (sides >> 14 & 0x3FFF) + 1, (sides & 0x3FFF) + 1, None
    if kind != b"VP8X" or length != 10:
        raise BrokenImageError("has a damaged WebP header")
    data = _exactly(file, 10)
    height, width = int.from_bytes(data[7:10], "little") + 1, int.from_bytes(data[4:7], "little") + 1
    frames = 0
    while len(head := file.read(8)) == 8:
        kind, length = struct.unpack("<4sI", head)
        frames += kind == b"ANMF"
        if frames > 1:
            raise UnsupportedImageError("is animated; expected one still image")
        file.seek(length + (length & 1), 1)
    return height, width, file if data[0] & _WEBP_EXIF_OR_XMP else None  # chunks without their flag do not count
