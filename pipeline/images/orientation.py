"""The orientation of an image file, as Pillow's ``ImageOps.exif_transpose`` applies it.

Pillow reads the orientation, so that no second reader can disagree with it on entries of odd types and counts, several
EXIF blocks, damaged tables, XMP, or PNG's texts. It opens only files with EXIF or XMP, and decodes nothing: of a PNG,
whose metadata may follow its pixels, it is given only the metadata.
"""

from __future__ import annotations

import io
import re
import struct
import zlib
from typing import BinaryIO

from PIL import ExifTags, Image

from pipeline.images.file_formats import PNG_MAGIC
from pipeline.quiet import quiet

EXIF = b"Exif\0\0"
XMP = b"http://ns.adobe.com/xap/1.0/\0"
XMP_ORIENTATION = b"tiff:Orientation"
_TURNS = {turn: turn for turn in range(2, 9)}
_PNG_TEXTS = frozenset({b"tEXt", b"zTXt", b"iTXt"})
_PNG_KEYS = frozenset({b"exif", b"Raw profile type exif", b"XML:com.adobe.xmp", b"xmp"})
_LONGEST_KEY = 32  # more than any of them and its terminating zero
_MOST_BYTES = 16 << 20  # of one chunk, whatever length it declares
_NAME = re.compile(rb"\w{4}")  # Pillow stops at a chunk with another name


def read_orientation(kind: str, file: BinaryIO) -> int:
    """The turn, 1 to 8, that Pillow gives a file by its EXIF or XMP.

    Args:
        kind: ``JPEG``, ``PNG`` or ``WebP``.
        file: the image file, or a `PngMetadata` of it.

    Raises:
        Exception: whatever Pillow raises for metadata that it cannot read.
    """
    with quiet(), Image.open(file, formats=[kind]) as image:
        if kind == "PNG":
            image.load()  # one pixel, and the metadata after it
        return _TURNS.get(image.getexif().get(ExifTags.Base.Orientation, 1), 1)


def _png_chunk(name: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


_PNG_HEAD = PNG_MAGIC + _png_chunk(b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
_PNG_PIXEL = _png_chunk(b"IDAT", zlib.compress(b"\0\0"))


class PngMetadata:
    """The chunks of a PNG that its orientation can depend on, collected while it is read."""

    def __init__(self) -> None:
        self._chunks = [_PNG_HEAD]
        self._pixels = False
        self.any = False
        """Whether there is anything to read."""

    def take(self, head: bytes, file: BinaryIO) -> int:
        """Consider the chunk whose length and name, ``head``, have been read.

        Returns:
            how many bytes of its data and checksum have been read; -1 where Pillow looks no further.
        """
        length, name = struct.unpack(">I4s", head)
        if name == b"IDAT" and not self._pixels:
            self._pixels = True
            self._chunks.append(_PNG_PIXEL)
        elif name == b"IEND" or not _NAME.fullmatch(name):
            self._chunks.append(_png_chunk(name, b""))
            return -1
        elif name == b"eXIf" or name in _PNG_TEXTS:
            data = file.read(min(length, _LONGEST_KEY))
            if name == b"eXIf" or data.partition(b"\0")[0] in _PNG_KEYS:
                data += file.read(min(length + 4 - len(data), _MOST_BYTES))
                self._chunks.append(head + data)
                self.any = True
            return len(data)
        return 0

    def file(self) -> BinaryIO:
        """A PNG of one pixel with the metadata of the file, damage and all."""
        return io.BytesIO(b"".join(self._chunks))
