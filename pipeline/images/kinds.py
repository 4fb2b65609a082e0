"""The kind of a file that is no JPEG, PNG, WebP or binary PPM, by its first bytes, for messages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import PurePath

HEAD_BYTES = 512
EMPTY, TEXT, UNKNOWN, GIT_LFS = "empty", "text", "unknown", "Git LFS pointer"

_BY_START: Mapping[str, tuple[bytes, ...]] = {
    "GIF": (b"GIF87a", b"GIF89a"),
    "TIFF": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "JPEG 2000": (b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51"),
    "JPEG XL": (b"\0\0\0\x0cJXL \r\n\x87\n", b"\xff\x0a"),
    "JPEG XR": (b"II\xbc\1",),
    "icon": (b"\0\0\1\0", b"\0\0\2\0", b"icns"),
    "PSD": (b"8BPS",),
    "DDS": (b"DDS ",),
    "OpenEXR": (b"v/1\1",),
    "Radiance HDR": (b"#?RADIANCE", b"#?RGBE"),
    "QOI": (b"qoif",),
    "SGI": (b"\1\xda",),
    "Sun raster": (b"\x59\xa6\x6a\x95",),
    "PCX": (b"\x0a\0\1", b"\x0a\2\1", b"\x0a\3\1", b"\x0a\5\1"),
    "FITS": (b"SIMPLE  =",),
    "XPM": (b"/* XPM */",),
    "PostScript": (b"%!PS", b"\xc5\xd0\xd3\xc6"),
    "camera raw": (b"FUJIFILMCCD-RAW", b"IIRO", b"IIU\0", b"\0MRM"),
    "DjVu": (b"AT&TFORM",),
    "metafile": (b"\xd7\xcd\xc6\x9a", b"\1\0\0\0\x6c\0\0\0"),
}
_OTHERS: Mapping[str, tuple[bytes, ...]] = {
    GIT_LFS: (b"version https://git-lfs",),
    "PDF": (b"%PDF-",),
    "archive": (
        b"PK\3\4", b"PK\5\6", b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd", b"7z\xbc\xaf\x27\x1c",
        b"Rar!\x1a\7", b"\x04\x22\x4d\x18",
    ),
    "NumPy": (b"\x93NUMPY",),
    "HDF5": (b"\x89HDF\r\n\x1a\n",),
    "SQLite": (b"SQLite format 3\0",),
    "video": (b"\x1a\x45\xdf\xa3", b"\0\0\1\xba", b"\0\0\1\xb3", b"FLV\1"),
    "audio": (b"ID3", b"fLaC", b"OggS"),
    "program": (b"\x7fELF", b"MZ"),
    "AppleDouble": (b"\0\5\x16\7",),
}  # fmt: skip
_BRANDS = {
    b"avif": "AVIF", b"avis": "AVIF", b"heic": "HEIC", b"heix": "HEIC", b"heim": "HEIC", b"heis": "HEIC",
    b"hevc": "HEIC", b"hevx": "HEIC", b"mif1": "HEIF", b"msf1": "HEIF", b"crx ": "camera raw",
}  # fmt: skip
# Formats without a magic number, and truncated files.
_BY_SUFFIX = {
    ".avif": "AVIF", ".bmp": "BMP", ".dib": "BMP", ".gif": "GIF", ".heic": "HEIC", ".heif": "HEIF",
    ".jp2": "JPEG 2000", ".j2k": "JPEG 2000", ".jxl": "JPEG XL", ".pcx": "PCX", ".pgm": "PNM", ".pnm": "PNM",
    ".ppm": "PNM", ".pbm": "PNM", ".tga": "TGA", ".tif": "TIFF", ".tiff": "TIFF",
}  # fmt: skip
IMAGES = frozenset({*_BY_START, *_BRANDS.values(), *_BY_SUFFIX.values(), "SVG"})
"""Kinds of images that are not read."""


def other_kind(head: bytes, name: str = "") -> str:
    """The kind of a file that is not read, for messages.

    Args:
        head: its first bytes, up to ``HEAD_BYTES``.
        name: of the file; its suffix decides where the bytes do not.
    """
    if not head:
        return EMPTY
    kind = _by_bytes(head)
    if kind in (None, TEXT):
        kind = _BY_SUFFIX.get(PurePath(name).suffix.lower(), kind)
    return kind or UNKNOWN


def _by_bytes(head: bytes) -> str | None:
    """The kind by the bytes alone; ``text`` for other text, None if unknown."""
    for table in (_BY_START, _OTHERS):
        for kind, starts in table.items():
            if head.startswith(starts):
                return kind
    if head[4:8] == b"ftyp":
        return _BRANDS.get(head[8:12], "video")
    if head[:2] == b"BM" and len(head) >= 14 and head[6:10] == bytes(4):
        return "BMP"
    if re.match(rb"P([1-7]\s+[\d#W]|[Ff]\s+\d)", head):
        return "PNM"
    if head[:4] == b"RIFF":
        return {b"AVI ": "video", b"WAVE": "audio"}.get(head[8:12])
    if head[257:262] == b"ustar":
        return "archive"
    return _text(head)


def _text(head: bytes) -> str | None:
    """The kind of a text file; None if it is not text."""
    try:
        text = head.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        if len(head) < HEAD_BYTES or error.start < len(head) - 4:  # a character may be cut at the end
            return None
        text = head[: error.start].decode("utf-8-sig")
    if any(not (c.isprintable() or c.isspace()) for c in text):
        return None
    start = text.lstrip().lower()
    for kind, begins in (("HTML", ("<!doctype html", "<html")), ("SVG", ("<svg",)), ("JSON", ("{", "["))):
        if start.startswith(begins):
            return kind
    if start.startswith("<?xml"):
        return "SVG" if "<svg" in start else "XML"
    return TEXT
