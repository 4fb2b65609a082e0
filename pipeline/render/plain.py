"""Image files that DALI decodes to Pillow's pixels; the others are decoded by Pillow.

Pillow defines what an image looks like. DALI gives the same pixels, faster, for nearly all that cameras and encoders
write: every subsampling, progressive and grayscale JPEG, palettes, alpha, regions of all these. Found to differ (DALI
2.4): CMYK (inverted without Adobe's marker, and one level off where turned), a JPEG without its end (its first rows
decode as if nothing were wrong), and regions of a progressive JPEG without its last scans (libjpeg smooths its blocks,
by their neighbours in the region). Metadata does not matter here: DALI does not get any (`pipeline.render.bare`).
"""

from __future__ import annotations

from pipeline.images.file_formats import png_chunks
from pipeline.render.jpeg_scans import Scans, scans_of


def is_plain(kind: str, data: bytes) -> bool:
    """Whether DALI decodes a file, whole or a region of it, to Pillow's pixels, or refuses it.

    Args:
        kind: ``JPEG``, ``PNG``, ``WebP`` or ``PPM``.
        data: the file, whose header has been read without error.
    """
    return {"JPEG": _jpeg, "PNG": _png, "WebP": _webp, "PPM": _ppm}[kind](data)


def _jpeg(data: bytes) -> bool:
    """Ordinary and whole scans."""
    return scans_of(data) is Scans.WHOLE


def _png(data: bytes) -> bool:
    """An end, and no frames: what is shown of one may be a part of the image."""
    return next((name for name, _, _ in png_chunks(data) if name in (b"IEND", b"acTL")), b"") == b"IEND"


def _ppm(_data: bytes) -> bool:
    """Nothing is to be gained: its pixels are not coded, and Pillow copies them."""
    return False


def _webp(data: bytes) -> bool:
    """No animation, whose frame may be smaller than the image."""
    return data[12:16] != b"VP8X" or not data[20] & 0b10
