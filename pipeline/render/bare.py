"""An image file without its metadata: only what a decoder needs to make its pixels.

DALI is given nothing else: it misreads some EXIF and crashes on other. The orientation has already been read
(`pipeline.images.orientation`).
"""

from __future__ import annotations

from pipeline.images.file_formats import (
    JPEG_METADATA,
    JPEG_QUANTISERS,
    JPEG_RESTARTS,
    JPEG_SCAN,
    PNG_MAGIC,
    png_chunks,
    webp_chunks,
)

_JPEG_KEPT = frozenset({*range(0xC0, 0xD0), JPEG_QUANTISERS, JPEG_RESTARTS})  # tables, frame
_JPEG_COLOURS = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # these define the colours; other contents of the two segments do not
_PNG_KEPT = frozenset({b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"})
_WEBP_PIXELS = frozenset({b"VP8 ", b"VP8L"})


def bare(kind: str, data: bytes) -> bytes | None:
    """The file without metadata; ``data`` itself if it has none.

    Args:
        kind: ``JPEG``, ``PNG`` or ``WebP``; what DALI is not given needs none.
        data: the file.

    Returns:
        None if the file has an unusual structure: Pillow decodes it.
    """
    parts = {"JPEG": _jpeg, "PNG": _png, "WebP": _webp}[kind](memoryview(data))
    if parts is None or sum(map(len, parts)) == len(data):
        return data if parts else None
    return b"".join(parts)


def _jpeg(data: memoryview) -> list[memoryview | bytes] | None:
    """Tables, frame and scans, and the segments that define the colours."""
    kept: list[memoryview | bytes] = [data[:2]]
    position = 2
    while (marker := data[position : position + 2]) != bytes([0xFF, JPEG_SCAN]):
        end = position + 2 + int.from_bytes(data[position + 2 : position + 4])
        if len(marker) < 2 or marker[0] != 0xFF or not position + 4 <= end <= len(data):
            return None
        colours = _JPEG_COLOURS.get(marker[1])
        if marker[1] in _JPEG_KEPT or (colours and data[position + 4 :][: len(colours)] == colours):
            kept.append(data[position:end])
        elif marker[1] not in JPEG_METADATA:
            return None
        position = end
    return [*kept, data[position:]]


def _png(data: memoryview) -> list[memoryview | bytes] | None:
    """Header, palette, transparency, pixels without anything between them, and the end."""
    kept: list[memoryview | bytes] = [data[: len(PNG_MAGIC)]]
    before, runs = b"", 0
    for name, start, end in png_chunks(data):
        runs += name == b"IDAT" != before
        if end > len(data) or not name.isalpha() or runs > 1:
            return None
        if name in _PNG_KEPT:
            kept.append(data[start:end])
        if name == b"IEND":
            return kept
        before = name
    return None


def _webp(data: memoryview) -> list[memoryview | bytes] | None:
    """The pixels; alpha is dropped like everything else, for what is decoded is RGB."""
    for name, start, end in webp_chunks(data):
        if end > len(data) or name == b"ANIM":
            return None
        if name in _WEBP_PIXELS:
            return [b"RIFF", (4 + end - start).to_bytes(4, "little"), b"WEBP", data[start:end]]
    return None
