"""Image files with every manner of EXIF and XMP, drawn by number, and what Pillow makes of them.

Run as a program it renders such files, whole and by regions, and compares their pixels with Pillow's:

    python -m tests.pipeline.exif_files FIRST COUNT

It is a process of its own, so that a decoder that crashes on a file is a failure and no dead test run.
"""

from __future__ import annotations

import io
import json
import struct
import sys
import zlib
from collections import Counter
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from labelstore.errors import InputError
from labelstore.format.columns import CROP_COLUMNS, CropRows
from pipeline.images.headers import Header, read_header
from pipeline.images.manifest import Manifest
from pipeline.plan.plan import PlanSpec
from pipeline.quiet import quiet
from pipeline.render import make_renderer
from pipeline.render.bare import bare
from pipeline.render.plain import is_plain
from tests.pipeline.damaged import png_chunk
from tests.pipeline.other_sources import MemoryImages

SUFFIXES = {"JPEG": "jpg", "PNG": "png", "WebP": "webp"}
HEIGHT, WIDTH, CROP, BATCH = 19, 29, 8, 250
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Make, Model, Orientation, resolutions, Software, DateTime, points, thumbnails, luma, copyright, IFDs, comments, ...
TAGS: tuple[int, ...] = (
    0x10E,
    0x10F,
    0x110,
    0x112,
    0x112,
    0x11A,
    0x11B,
    0x128,
    0x131,
    0x132,
    0x13E,
    0x13F,
    0x201,
    0x202,
    0x211,
    0x213,
    0x214,
    0x2BC,
    0x4746,
    0x8298,
    0x8769,
    0x8825,
    0x9286,
    0x9C9B,
    0xA005,
    0xC4A5,
    0xEA1C,
)
BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8}
ODD = (0, 1, 2, 6, 8, 26, 50, 72, 300, 65_535, 65_536, 393_216, 2**31, 2**32 - 1)

METADATA = (b"Exif\0\0", b"eXIf", b"EXIF", b"tEXt", b"zTXt", b"iTXt", b"tiff:Orientation", b"XMP ")
SCAN = b"\xff\xda"  # DALI looks no further for EXIF

Rng = np.random.Generator


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def riff(name: bytes, body: bytes) -> bytes:
    return name + struct.pack("<I", len(body)) + body + bytes(len(body) % 2)


@cache
def bases(kind: str) -> tuple[bytes, ...]:
    """Small files of a kind, without metadata."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 90, (HEIGHT, WIDTH, 3))
    picture = Image.fromarray((np.stack([8 * y, 5 * x, 3 * (x + y)], 2) + noise).clip(0, 255).astype(np.uint8))
    gray, palette = picture.convert("L"), picture.quantize(30)
    alpha = Image.merge("RGBA", (*picture.split(), gray.rotate(180)))
    options: dict[str, list[tuple[Image.Image, dict[str, Any]]]] = {
        "JPEG": [(picture, {"subsampling": s}) for s in range(3)]
        + [(picture, {"progressive": True}), (gray, {}), (picture, {"restart_marker_rows": 1})],
        "PNG": [(picture, {}), (gray, {}), (palette, {"transparency": bytes(range(30))}), (alpha, {})],
        "WebP": [(picture, {}), (picture, {"lossless": True}), (alpha, {}), (alpha, {"lossless": True})],
    }
    made = []
    for image, more in options[kind]:
        file = io.BytesIO()
        image.save(file, kind, **more)
        made.append(file.getvalue())
    if kind == "JPEG":  # without JFIF Pillow reads EXIF early, for the resolution
        made += [data[:2] + data[20:] for data in made]
    return tuple(made)


def entry(rng: Rng, order: str, tag: int, big: bool) -> bytes:
    """One entry of a directory: mostly sound, and of any type, count and value."""
    kind = int(rng.choice((3, 3, 3, 4, 5, 2, int(rng.integers(0, 18)))))
    count = 1 if rng.random() < 0.7 else int(rng.choice((0, 2, 3, 4, 8, int(rng.integers(0, 300)), 2**32 - 1)))
    value = int(rng.integers(1, 9)) if rng.random() < 0.6 else int(rng.choice(ODD))
    if tag == 0x112 and rng.random() < 0.85:
        kind, count = (3, 1) if rng.random() < 0.8 else (int(rng.choice((1, 2, 4, 6, 8, 9, 11, 13, 16))), 1)
        value = int(rng.integers(1, 9)) if rng.random() < 0.9 else int(rng.choice((0, 9, 255, 48 + value % 8)))
    field = 8 if big else 4
    size = BYTES.get(kind, 4)
    number = value if count * size <= field else int(rng.integers(0, 200))
    width = min(size, field) if count * size <= field else field
    raw = struct.pack(f"{order}Q", number)
    packed = raw[:width] if order == "<" else raw[8 - width :]
    if kind == 11 and count == 1:
        packed = struct.pack(f"{order}f", value)
    return (
        struct.pack(f"{order}HH", tag, kind)
        + struct.pack(f"{order}{'Q' if big else 'I'}", count)
        + packed.ljust(field, b"\0")
    )


def exif(rng: Rng) -> bytes:
    """A block of EXIF without its identifier."""
    order, big = "<>"[rng.integers(2)], rng.random() < 0.04
    tags = rng.choice(TAGS, int(rng.integers(1, 8)))
    if rng.random() < 0.9:
        tags = np.append(tags, 0x112)
    tags = np.sort(tags) if rng.random() < 0.8 else tags
    entries = b"".join(entry(rng, order, int(tag), big) for tag in tags)
    claimed = len(tags) if rng.random() < 0.93 else int(rng.choice((0, 1, len(tags) + 1, 65_535)))
    start = 16 if big else 8 if rng.random() < 0.93 else int(rng.choice((10, 0, 5000)))
    magic = {"<": b"II+\0" if big else b"II*\0", ">": b"MM\0+" if big else b"MM\0*"}[order]
    head = magic + (struct.pack(f"{order}HHQ", 8, 0, start) if big else struct.pack(f"{order}I", start))
    tail = struct.pack(f"{order}I", int(rng.choice((0, 0, 8, 40)))) + rng.bytes(int(rng.integers(0, 260)))
    made = bytearray(
        head.ljust(min(start, 16), b"\0") + struct.pack(f"{order}{'Q' if big else 'H'}", claimed) + entries + tail
    )
    if rng.random() < 0.25:
        for _ in range(int(rng.integers(1, 4))):
            made[int(rng.integers(len(made)))] = int(rng.choice((0, 1, 2, 6, 8, 255, int(rng.integers(256)))))
    if rng.random() < 0.1:
        del made[int(rng.integers(0, len(made))) :]
    if rng.random() < 0.02:
        made[:4] = rng.choice(np.array([b"Exif", b"II\0*", b"\0\0\0\0", b"MM*\0"]))
    return bytes(made)


def identified(rng: Rng, block: bytes) -> bytes:
    """EXIF behind its identifier, which some write twice."""
    return b"Exif\0\0" * int(rng.choice((1, 1, 1, 1, 1, 1, 2, 3))) + block


def xmp(rng: Rng) -> bytes:
    """A packet of XMP."""
    value = str(rng.choice(("1", "2", "3", "4", "5", "6", "7", "8", "9", "0", "16", "", "x")))
    form = rng.choice(
        np.array(
            [
                'tiff:Orientation="{}"',
                "<tiff:Orientation>{}</tiff:Orientation>",
                "tiff:Orientation='{}'",
                'tiff:Orientation = "{}"',
                '<tiff:Orientation rdf:datatype="x">{}</tiff:Orientation>',
                'exif:Orientation="{}"',
                'tiff:Orientation="1" tiff:Orientation="{}"',
            ]
        ),
        p=[0.4, 0.2, 0.1, 0.1, 0.1, 0.05, 0.05],
    )
    packet = f"<x:xmpmeta><rdf:RDF><rdf:Description {form.format(value)}/></rdf:RDF></x:xmpmeta>"
    made = packet.encode("utf-16" if rng.random() < 0.03 else "utf-8")
    return made + (rng.bytes(5) if rng.random() < 0.05 else bytes(int(rng.integers(0, 3))))


def jpeg(rng: Rng) -> bytes:
    """A JPEG with segments of EXIF and XMP between its own, or behind them."""
    data = bases("JPEG")[rng.integers(len(bases("JPEG")))]
    places, position = [2], 2
    while data[position + 1] != 0xDA:
        position += 2 + int.from_bytes(data[position + 2 : position + 4])
        places.append(position)
    later = [at for at in range(position + 2, len(data)) if data[at : at + 2] in (b"\xff\xc4", b"\xff\xda")]
    made: list[tuple[int, bytes]] = []
    for _ in range(int(rng.choice((1, 1, 1, 2, 3)))):
        kind = rng.random()
        if kind < 0.7:
            body = segment(0xE1, identified(rng, exif(rng)))
        elif kind < 0.9:
            body = segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + xmp(rng))
        else:
            marker = int(rng.choice((0xE0, 0xE2, 0xE3, 0xED, 0xFE)))
            name = b"" if marker == 0xE0 else rng.choice(np.array([b"MPF", b"Exif", b"JFXX"]))
            body = segment(marker, bytes(name) + b"\0\0" + exif(rng))
        if later and rng.random() < 0.1:
            where = int(rng.choice(later))
        else:
            where = places[0] if rng.random() < 0.7 else int(rng.choice((*places, len(data))))
        made.append((where, body))
    for where, body in sorted(made, key=lambda pair: -pair[0]):
        data = data[:where] + body + data[where:]
    return data


def png_metadata(rng: Rng) -> bytes:
    """A chunk of EXIF or XMP."""
    kind, block = rng.random(), exif(rng)
    profile = f"\nexif\n{len(block) + 6:8}\n{(b'Exif' + bytes(2) + block).hex()}\n".encode()
    if rng.random() < 0.1:
        profile = profile[: int(rng.integers(len(profile)))]
    texts = {
        b"Raw profile type exif": profile,
        b"Raw profile type APP1": profile,
        b"exif": block,
        b"XML:com.adobe.xmp": xmp(rng),
        b"xmp": xmp(rng),
        b"Comment": b"eXIf",
    }
    if kind < 0.5:
        made = png_chunk(b"eXIf", block if rng.random() < 0.9 else identified(rng, block))
    else:
        key = list(texts)[int(rng.choice(6, p=(0.4, 0.05, 0.05, 0.4, 0.05, 0.05)))]
        form, text = rng.random(), texts[key]
        if form < 0.35:
            made = png_chunk(b"tEXt", key + b"\0" + text)
        elif form < 0.6:
            made = png_chunk(b"zTXt", key + b"\0\0" + zlib.compress(text))
        elif form < 0.7:
            made = png_chunk(b"iTXt", key + b"\0\0\0\0\0" + text)
        else:
            made = png_chunk(b"iTXt", key + b"\0\1\0en\0" + key + b"\0" + zlib.compress(text)[: len(text) + 9])
    if rng.random() < 0.03 and b"Comment" not in made and b"APP1" not in made:
        made = made[:-1] + bytes([made[-1] ^ 1])
    return made


def png(rng: Rng) -> bytes:
    """A PNG with chunks of EXIF and XMP before and behind its pixels."""
    data = bases("PNG")[rng.integers(len(bases("PNG")))]
    before = data.index(b"IDAT") - 4
    for _ in range(int(rng.choice((1, 1, 1, 2, 3)))):
        where, made = int(rng.choice((33, before, len(data) - 12))), png_metadata(rng)
        data = data[:where] + made + data[where:]
        before += len(made) if where <= before else 0
    if rng.random() < 0.02:
        data = data[:-12] + png_chunk(b"a-b!", b"") + png_metadata(rng) + data[-12:]
    return data


def webp(rng: Rng) -> bytes:
    """A WebP with chunks of EXIF and XMP, and flags that may say something else."""
    data = bases("WebP")[rng.integers(len(bases("WebP")))]
    alpha = data[12:16] == b"VP8X" and bool(data[20] & 0x10)
    image = data[30:] if data[12:16] == b"VP8X" else data[12:]
    alpha |= b"VP8L" in data[:34] and bool(data[data.index(b"VP8L") + 12] & 0x10)
    pieces, flags = [image], 0
    for _ in range(int(rng.choice((1, 1, 1, 2, 3)))):
        if rng.random() < 0.7:
            piece, flag = riff(b"EXIF", exif(rng) if rng.random() < 0.8 else identified(rng, exif(rng))), 0x08
        else:
            piece, flag = riff(b"XMP ", xmp(rng)), 0x04
        pieces.insert(0 if rng.random() < 0.1 else len(pieces), piece)
        flags |= flag if rng.random() < 0.85 else 0
    flags = int(rng.choice((0, 4, 8, 12))) if rng.random() < 0.05 else flags
    sides = (WIDTH - 1).to_bytes(3, "little") + (HEIGHT - 1).to_bytes(3, "little")
    if rng.random() < 0.95 or image[:4] == b"ALPH":
        pieces.insert(0, riff(b"VP8X", bytes([flags | (0x10 if alpha else 0), 0, 0, 0]) + sides))
    return b"RIFF" + struct.pack("<I", 4 + sum(map(len, pieces))) + b"WEBP" + b"".join(pieces)


MAKERS = {"JPEG": jpeg, "PNG": png, "WebP": webp}


def make(number: int) -> tuple[str, bytes]:
    """The kind and the bytes of a file."""
    kind = list(MAKERS)[number % 3]
    return kind, MAKERS[kind](np.random.default_rng(number))


def as_pillow_shows_it(data: bytes) -> npt.NDArray[np.uint8] | None:
    """Pixels after `ImageOps.exif_transpose`; None where Pillow refuses the file, or cannot read its orientation."""
    with quiet():
        try:
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        except Exception:  # it also writes the metadata anew, and that fails of entries that it can read
            try:
                image = Image.open(io.BytesIO(data))
                image.load()
                turn = TURNS.get(image.getexif().get(0x0112, 1))
            except Exception:
                return None
            image = image if turn is None else image.transpose(turn)
        return np.asarray(image.convert("RGB"))


def compare(files: dict[int, tuple[str, bytes]], counts: Counter[str]) -> list[str]:
    """Render files from memory and by regions; what differs from Pillow, in words."""
    wrong: list[str] = []
    seen: dict[int, npt.NDArray[np.uint8]] = {}
    for number, (kind, data) in files.items():
        pixels = as_pillow_shows_it(data)
        try:
            header: Header | None = read_header(io.BytesIO(data))
        except InputError:
            header = None
        if header is None or pixels is None:
            counts[f"{kind} refused"] += 1
            if header or pixels is not None:
                wrong.append(f"{number}: {kind}: Pillow {'refuses' if pixels is None else 'reads'} it, we do not")
            continue
        counts[f"{kind} turned"] += header.orientation > 1
        stored = bare(kind, data) if is_plain(kind, data) else None
        counts[f"{kind} by DALI"] += stored is not None
        if stored and any(name in stored[: stored.find(SCAN) if kind == "JPEG" else None] for name in METADATA):
            wrong.append(f"{number}: {kind}: DALI is given metadata")
        if pixels.shape[:2] != (header.height, header.width):
            wrong.append(f"{number}: {kind}: sides {header.height} x {header.width}, Pillow's {pixels.shape[:2]}")
        else:
            seen[number] = pixels
    return wrong + _compare_pixels({number: files[number] for number in seen}, list(seen.values()))


def _compare_pixels(files: dict[int, tuple[str, bytes]], pixels: Sequence[npt.NDArray[np.uint8]]) -> list[str]:
    """Render four boxes of each file, which are not resized, whole and by regions."""
    wrong: list[str] = []
    pixels = [image for _, image in sorted(zip(files, pixels, strict=True), key=lambda pair: pair[0])]
    source = MemoryImages({f"a/{number:09}.{SUFFIXES[kind]}": data for number, (kind, data) in files.items()})
    names, count = source.listing.names, len(files)
    sides = np.array([image.shape[:2] for image in pixels], np.int32)
    manifest = Manifest(
        source, np.arange(count), names, ("a",), np.zeros(count, np.int64), sides[:, 0], sides[:, 1],
        np.zeros((count, 32), np.uint8),
    )  # fmt: skip
    values = np.zeros((len(CROP_COLUMNS), 4 * len(names)), np.uint16)
    values[0] = np.repeat(np.arange(len(names)), 4)
    room = np.repeat(sides - CROP, 4, axis=0)
    values[2:4] = (np.random.default_rng(0).random(room.shape) * (room + 1)).astype(np.uint16).T
    values[4:6] = CROP
    for cache_bytes in (1 << 30, 0):
        renderer = make_renderer(manifest, PlanSpec(size=CROP), threads=2, cache_bytes=cache_bytes)
        try:
            crops = renderer.render(CropRows(CROP_COLUMNS, values)).numpy()
        finally:
            renderer.close()
        for row, (image, top, left) in enumerate(values[[0, 2, 3]].T.tolist()):
            if not np.array_equal(crops[row], pixels[image][top : top + CROP, left : left + CROP]):
                wrong.append(f"{names[image]}: other pixels at {top}, {left}, cache {cache_bytes}")
    return wrong


def main(first: int, count: int) -> None:
    """Compare files ``first`` and following; prints a line of JSON a batch."""
    for start in range(first, first + count, BATCH):
        counts: Counter[str] = Counter()
        files = {number: make(number) for number in range(start, min(start + BATCH, first + count))}
        print(json.dumps({"start": start}), flush=True)
        wrong = compare(files, counts)
        print(json.dumps({"files": len(files), "counts": counts, "wrong": wrong}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
