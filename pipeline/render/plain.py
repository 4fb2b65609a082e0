"""Which image files DALI decodes to the pixels that Pillow sees; the others are left to Pillow.

Pillow defines what an image looks like. DALI gives the same pixels, faster, for nearly all that cameras and encoders
write: every subsampling, progressive and grayscale JPEG, palettes, alpha, regions of all these. Found to differ
(DALI 2.4): CMYK (inverted without Adobe's marker, and one level off where turned), and a JPEG without its end (its
first rows decode as if nothing were wrong). Metadata is no matter here: DALI is not given any (`pipeline.render.bare`).
"""

from __future__ import annotations

END_OF_IMAGE = b"\xff\xd9"


def is_plain(kind: str, data: bytes) -> bool:
    """Whether DALI decodes a file, whole or a region of it, to Pillow's pixels, or refuses it.

    Args:
        kind: ``JPEG``, ``PNG`` or ``WebP``.
        data: the file, whose header has been read without error.
    """
    return {"JPEG": _jpeg, "PNG": _png, "WebP": _webp}[kind](data)


def _jpeg(data: bytes) -> bool:
    """Ordinary frames of one or three components, and an end."""
    position = 2
    while data[position : position + 2] != b"\xff\xda":  # the first scan
        if data[position : position + 1] != b"\xff":
            return False  # junk between the segments, or the end of the file
        marker, start = data[position + 1], position + 4
        position += 2 + int.from_bytes(data[position + 2 : start])
        frame = 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)
        if frame and (marker > 0xC2 or data[start + 5] not in (1, 3)):
            return False
    return data.rfind(END_OF_IMAGE, position) >= 0


def _png(data: bytes) -> bool:
    """An end, and no frames: what is shown of one may be a part of the image."""
    position = 8
    while position + 12 <= len(data):
        length, name = int.from_bytes(data[position : position + 4]), data[position + 4 : position + 8]
        if name in (b"IEND", b"acTL"):
            return name == b"IEND"
        position += 12 + length
    return False


def _webp(data: bytes) -> bool:
    """One image, by itself."""
    return data[12:16] != b"VP8X" or not data[20] & 0b10
