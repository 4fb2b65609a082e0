"""Which image files DALI decodes to the pixels that Pillow sees; the others are left to Pillow.

Pillow defines what an image looks like. DALI gives the same pixels, faster, for nearly all that cameras and encoders
write: every subsampling, progressive and grayscale JPEG, palettes, alpha, orientation in EXIF, regions of all these.
Found to differ (DALI 2.4): CMYK (inverted without Adobe's marker, and one level off where turned), EXIF with entries
that point outside it (orientation lost), a second EXIF segment (a crash), WebP with EXIF and alpha (refused), a JPEG
without its end (its first rows decode as if nothing were wrong), and regions of a progressive JPEG without its last
scans (libjpeg smooths its blocks, by their neighbours in the region).
"""

from __future__ import annotations

from typing import Literal

from pipeline.render.jpeg_scans import Scans, scans_of

EXIF = b"Exif\0\0"
_ORIENTATION, _SHORT = 0x0112, 3
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8}


def is_plain(kind: str, data: bytes) -> bool:
    """Whether DALI decodes a file, whole or a region of it, to Pillow's pixels, or refuses it.

    Args:
        kind: ``JPEG``, ``PNG`` or ``WebP``.
        data: the file, whose header has been read without error.
    """
    return {"JPEG": _jpeg, "PNG": _png, "WebP": _webp}[kind](data)


def _jpeg(data: bytes) -> bool:
    """Ordinary and whole scans, and at most one EXIF before them."""
    exifs, position = 0, 2
    while data[position : position + 2] != b"\xff\xda":  # the first scan
        if data[position : position + 1] != b"\xff":
            return False  # junk between the segments, or the end of the file
        marker, start = data[position + 1], position + 4
        position += 2 + int.from_bytes(data[position + 2 : start])
        if marker == 0xE1 and data.startswith(EXIF, start):
            exifs += 1
            if exifs > 1 or not _well_formed(data[start + len(EXIF) : position]):
                return False
    return scans_of(data) is Scans.WHOLE


def _png(data: bytes) -> bool:
    """At most one EXIF, and an end."""
    exifs, position = 0, 8
    while position + 12 <= len(data):
        length, name = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if name == b"IEND":
            return True
        if name == b"eXIf":
            exifs += 1
            if exifs > 1 or not _well_formed(data[position + 8 : position + 8 + length]):
                return False
        position += 12 + length
    return False


def _webp(data: bytes) -> bool:
    """No EXIF, and no animation, whose frame may be smaller than the image."""
    return data[12:16] != b"VP8X" or not data[20] & 0b1010


def _well_formed(exif: bytes) -> bool:
    """Whether every entry of the first directory of EXIF lies within it, and its orientation has one reading."""
    if exif[:4] not in (b"II*\0", b"MM\0*"):
        return False
    order: Literal["little", "big"] = "little" if exif[:1] == b"I" else "big"

    def number(start: int, size: int) -> int:
        return int.from_bytes(exif[start : start + size], order)

    directory = number(4, 4)
    entries = range(directory + 2, directory + 2 + 12 * number(directory, 2), 12)
    if directory < 8 or entries.stop > len(exif):
        return False
    orientations = 0
    for entry in entries:
        tag, kind, count, offset = (number(entry + at, size) for at, size in ((0, 2), (2, 2), (4, 4), (8, 4)))
        length = count * _TYPE_BYTES.get(kind, len(exif))
        if length > 4 and offset + length > len(exif):
            return False
        if tag == _ORIENTATION:
            orientations += 1
            if (kind, count) != (_SHORT, 1) or not 1 <= number(entry + 8, 2) <= 8:
                return False
    return orientations <= 1
