"""Headers against Pillow: the size after orientation, what is refused, and that no bytes crash the parser."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from labelstore.errors import InputError
from pipeline.images.headers import BrokenImageError, UnsupportedImageError, read_header
from pipeline.quiet import quiet
from tests.pipeline.damaged import png_chunk

KINDS = ("JPEG", "PNG", "WebP")
MODES = {"JPEG": ("RGB", "L", "CMYK"), "PNG": ("RGB", "L", "P", "1", "LA", "RGBA"), "WebP": ("RGB", "RGBA")}


def exif(orientation: int) -> bytes:
    block = Image.Exif()
    block[0x0112] = orientation
    block[0x010F] = "a maker"
    return block.tobytes()


def image_bytes(kind: str, mode: str = "RGB", size: tuple[int, int] = (7, 5), **options: Any) -> bytes:
    file = io.BytesIO()
    Image.linear_gradient("L").resize(size).convert(mode).save(file, kind, **options)
    return file.getvalue()


def png_header(width: int, height: int, depth: int = 8, colour: int = 2) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", b"")


def shown_size(data: bytes) -> tuple[int, int]:
    """(width, height) as Pillow shows the image."""
    with quiet(), Image.open(io.BytesIO(data)) as image:
        return ImageOps.exif_transpose(image).size


@pytest.mark.parametrize(("kind", "mode"), [(kind, mode) for kind in KINDS for mode in MODES[kind]])
def test_every_mode_is_read(kind: str, mode: str) -> None:
    header = read_header(io.BytesIO(image_bytes(kind, mode)))
    assert (header.kind, header.height, header.width, header.orientation) == (kind, 5, 7, 1)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 50}, {"exact": True}])
@pytest.mark.parametrize("size", [(1, 1), (16, 17), (300, 2), (1, 16_383)])
def test_webp_sizes(options: dict[str, Any], size: tuple[int, int]) -> None:
    header = read_header(io.BytesIO(image_bytes("WebP", "RGB", size, **options)))
    assert (header.width, header.height) == size


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("orientation", range(10))
def test_orientation_as_pillow_shows_it(kind: str, orientation: int) -> None:
    data = image_bytes(kind, exif=exif(orientation))
    header = read_header(io.BytesIO(data))
    assert (header.width, header.height) == shown_size(data)
    assert header.orientation == (orientation if 1 <= orientation <= 8 else 1)


def test_exif_behind_the_pixels_of_a_png() -> None:
    data = image_bytes("PNG")
    end = data.index(b"IEND") - 4
    data = data[:end] + png_chunk(b"eXIf", exif(6).removeprefix(b"Exif\0\0")) + data[end:]
    assert shown_size(data) == (5, 7)
    assert (read_header(io.BytesIO(data)).width, read_header(io.BytesIO(data)).height) == (5, 7)


@given(
    order=st.sampled_from("<>"),
    kind=st.sampled_from((3, 4, 6, 8, 9)),
    orientation=st.integers(1, 8),
    before=st.integers(0, 5),
    cut=st.integers(0, 12),
)
def test_exif_tables_as_pillow_reads_them(order: str, kind: int, orientation: int, before: int, cut: int) -> None:
    rows = [struct.pack(f"{order}HHIHH", 0x0100 + row, 3, 1, 9, 0) for row in range(before)]
    value = struct.pack(f"{order}{ {3: 'H', 4: 'I', 6: 'b', 8: 'h', 9: 'i'}[kind] }", orientation)
    rows.append(struct.pack(f"{order}HHI", 0x0112, kind, 1) + value.ljust(4, b"\0"))
    magic = b"II*\0" if order == "<" else b"MM\0*"
    table = magic + struct.pack(f"{order}IH", 8, len(rows)) + b"".join(rows)
    data = image_bytes("JPEG", exif=b"Exif\0\0" + (table[:-cut] if cut else table))
    header = read_header(io.BytesIO(data))
    assert (header.width, header.height) == shown_size(data)
    assert header.orientation == orientation or cut


@pytest.mark.parametrize("mode", ["I;16", "16-bit RGB"])
def test_sixteen_bits_are_refused(mode: str) -> None:
    if mode == "I;16":
        file = io.BytesIO()
        Image.new("I;16", (4, 4)).save(file, "PNG")
        data = file.getvalue()
    else:  # Pillow reads these, and drops the lower byte in silence
        raw = zlib.compress(b"".join(b"\0" + bytes(4 * 6) for _ in range(4)))
        data = png_header(4, 4, depth=16)[:-12] + png_chunk(b"IDAT", raw) + png_chunk(b"IEND", b"")
        assert Image.open(io.BytesIO(data)).mode == "RGB"
    with pytest.raises(UnsupportedImageError, match="16 bits a channel; expected 8"):
        read_header(io.BytesIO(data))


def test_twelve_bit_jpeg_is_refused() -> None:
    data = image_bytes("JPEG")
    frame = data.index(b"\xff\xc0")
    with pytest.raises(UnsupportedImageError, match="12 bits a channel"):
        read_header(io.BytesIO(data[: frame + 4] + b"\x0c" + data[frame + 5 :]))


@pytest.mark.parametrize("kind", ["PNG", "WebP"])
def test_animations_are_refused(kind: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    file = io.BytesIO()
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    with pytest.raises(UnsupportedImageError, match="animated"):
        read_header(io.BytesIO(file.getvalue()))


@pytest.mark.parametrize(("width", "height"), [(2**13 + 1, 2**13), (65_001, 1), (2**31 - 1, 2**31 - 1)])
def test_huge_declared_sizes_are_refused(width: int, height: int) -> None:
    with pytest.raises(UnsupportedImageError, match=r"declares .* expected at most"):
        read_header(io.BytesIO(png_header(width, height)))


def test_the_largest_declared_size_is_read() -> None:
    assert read_header(io.BytesIO(png_header(2**13, 2**13))).height == 2**13


@pytest.mark.parametrize("length", [0, 1, 2])
def test_segments_without_content_are_passed_over_as_pillow_does(length: int) -> None:
    data = image_bytes("JPEG", size=(21, 13))
    data = data[:2] + b"\xff\xe5" + length.to_bytes(2, "big") + data[2:]
    assert Image.open(io.BytesIO(data)).convert("RGB").size == (21, 13)
    header = read_header(io.BytesIO(data))
    assert (header.width, header.height) == (21, 13)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "an empty file"),
        (b"GIF89a" + bytes(20), "GIF89a"),
        (bytes(100), "begins with"),
        (b"\xff\xd8\xff\xe0\x00\x00", "ends within its header"),
        (b"\xff\xd8\xff" + b"\x00\xff" * 5000, "ends within its header"),
        (png_header(0, 5), "declares an image of 5 x 0 pixels"),
        (png_header(5, 5).replace(b"\x05\x08", b"\x06\x08"), "damaged PNG header"),
        (b"RIFF\x10\0\0\0WEBPVP8 \x0a\0\0\0" + bytes(10), "damaged WebP header"),
        (b"RIFF\x10\0\0\0WEBPVP8L\x05\0\0\0" + bytes(5), "damaged WebP header"),
        (b"RIFF\x10\0\0\0WEBPALPH\x0a\0\0\0" + bytes(10), "damaged WebP header"),
    ],
)
def test_broken_headers_are_named(data: bytes, message: str) -> None:
    with pytest.raises(BrokenImageError, match=message):
        read_header(io.BytesIO(data))


@given(
    kind=st.sampled_from(KINDS),
    flips=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255)), max_size=6),
    cut=st.integers(0, 600),
)
def test_damaged_files_never_crash(kind: str, flips: list[tuple[int, int]], cut: int) -> None:
    data = bytearray(image_bytes(kind, exif=exif(6))[:cut])
    for place, value in flips:
        if place < len(data):
            data[place] = value
    try:
        header = read_header(io.BytesIO(bytes(data)))
    except InputError:
        return
    assert header.height > 0
    assert header.width > 0


def test_real_files_as_pillow_shows_them(data: Path) -> None:
    files = sorted(data.glob("imagenet-samples/*/*"))[::20] + sorted(data.glob("imagenette/val/*/*"))[::20]
    files += sorted(data.glob("cifar10/*/*/*.jpg")) + sorted(data.glob("cifar10/test/*/*"))[::100]
    assert len(files) > 100
    for file in files:
        with file.open("rb") as opened:
            header = read_header(opened)
        assert (header.width, header.height) == shown_size(file.read_bytes()), file
