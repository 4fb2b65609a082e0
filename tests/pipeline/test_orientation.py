"""How files are turned: in whose eyes, what of them a decoder sees, and where a box of the upright image is stored."""

from __future__ import annotations

import io
import struct
import threading
import tracemalloc
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps

from labelstore.errors import InputError
from pipeline.images.headers import BrokenImageError, Header, read_header
from pipeline.images.manifest import scan
from pipeline.quiet import quiet
from pipeline.render.bare import bare
from pipeline.render.dali import stored_box, upright
from tests.pipeline.damaged import png_chunk
from tests.pipeline.exif_files import TURNS, bases, riff, segment

SIX = b"MM\0*\0\0\0\x08\0\1" + struct.pack(">HHIHH", 0x112, 3, 1, 6, 0) + bytes(4)
JPEG, PNG, WEBP = (bases(kind)[0] for kind in ("JPEG", "PNG", "WebP"))
PACKET = b'<x:xmpmeta xmlns:tiff="http://ns.adobe.com/tiff/1.0/" tiff:Orientation="6"/>'
PROFILE = b"\nexif\n%8d\n%s\n" % (len(SIX), SIX.hex().encode())


def before_pixels(data: bytes) -> bytes:
    return PNG[:33] + data + PNG[33:]


def behind_pixels(data: bytes) -> bytes:
    return PNG[:-12] + data + PNG[-12:]


def extended(flags: int, *chunks: bytes) -> bytes:
    sides = b"".join((side - 1).to_bytes(3, "little") for side in Image.open(io.BytesIO(WEBP)).size)
    body = riff(b"VP8X", bytes([flags, 0, 0, 0]) + sides) + WEBP[12:] + b"".join(chunks)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


TURNED = {
    "JPEG, EXIF": JPEG[:2] + segment(0xE1, b"Exif\0\0" + SIX) + JPEG[2:],
    "JPEG, EXIF in two segments": JPEG[:2]
    + segment(0xE1, b"Exif\0\0" + SIX[:12])
    + segment(0xE1, b"Exif\0\0" + SIX[12:])
    + JPEG[2:],
    "JPEG, XMP": JPEG[:2] + segment(0xE1, b"http://ns.adobe.com/xap/1.0/\0" + PACKET) + JPEG[2:],
    "PNG, eXIf": before_pixels(png_chunk(b"eXIf", SIX)),
    "PNG, eXIf behind the pixels": behind_pixels(png_chunk(b"eXIf", SIX)),
    "PNG, profile": before_pixels(png_chunk(b"tEXt", b"Raw profile type exif\0" + PROFILE)),
    "PNG, compressed profile": behind_pixels(png_chunk(b"zTXt", b"Raw profile type exif\0\0" + zlib.compress(PROFILE))),
    "PNG, XMP": behind_pixels(png_chunk(b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + PACKET)),
    "WebP, EXIF": extended(8, riff(b"EXIF", SIX)),
    "WebP, XMP": extended(4, riff(b"XMP ", PACKET)),
}
UNTURNED = {
    "JPEG, EXIF behind the pixels": JPEG + segment(0xE1, b"Exif\0\0" + SIX),
    "WebP, EXIF without its flag": extended(0, riff(b"EXIF", SIX)),
    "WebP, EXIF without an extended header": WEBP + riff(b"EXIF", SIX),
}


@pytest.mark.parametrize("name", [*TURNED, *UNTURNED])
def test_each_place_counts_where_it_counts_for_pillow(name: str) -> None:
    data = {**TURNED, **UNTURNED}[name]
    header = read_header(io.BytesIO(data))
    assert header.orientation == (6 if name in TURNED else 1)
    assert (header.width, header.height) == ImageOps.exif_transpose(Image.open(io.BytesIO(data))).size


@pytest.mark.parametrize("name", [*TURNED, *UNTURNED])
def test_a_decoder_is_given_pixels_and_no_metadata(name: str) -> None:
    data = {**TURNED, **UNTURNED}[name]
    kind = name.partition(",")[0]
    stored = bare(kind, data)
    assert stored is not None
    assert stored.split(b"\xff\xda")[0] == JPEG.split(b"\xff\xda")[0] if kind == "JPEG" else stored in (PNG, WEBP)
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(stored))), np.asarray(Image.open(io.BytesIO(data))))


DAMAGED = {
    # with a resolution in JFIF: otherwise Pillow looks for it in EXIF, and forgives what it finds there
    "JPEG": JPEG[:13] + b"\1\0\x48\0\x48" + JPEG[18:20] + segment(0xE1, b"Exif\0\0no table") + JPEG[20:],
    "PNG": before_pixels(png_chunk(b"eXIf", b"II+\0" + bytes(20))),
    "WebP": extended(8, riff(b"EXIF", b"\0\0\0\0")),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_metadata_in_which_pillow_stumbles_is_named_and_can_be_left_out(tmp_path: Path, kind: str) -> None:
    with pytest.raises(Exception, match=r"TIFF|unpack"):  # what users of Pillow get
        ImageOps.exif_transpose(Image.open(io.BytesIO(DAMAGED[kind])))
    with pytest.raises(BrokenImageError, match=r"metadata .* Pillow finds no orientation .*exiftool"):
        read_header(io.BytesIO(DAMAGED[kind]))
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "0.jpg").write_bytes(JPEG)
    (tmp_path / "a" / f"1.{kind.lower()}").write_bytes(DAMAGED[kind])
    with pytest.raises(InputError, match=rf"a/1\.{kind.lower()}: has metadata"):
        scan(tmp_path)
    assert scan(tmp_path, skip_broken=True).skipped == (f"a/1.{kind.lower()}",)


def test_a_length_that_is_a_lie_takes_no_memory() -> None:
    data = PNG[:33] + struct.pack(">I", 2**32 - 1) + b"eXIf" + SIX
    tracemalloc.start()
    try:
        with pytest.raises(BrokenImageError):
            read_header(io.BytesIO(data))
        assert tracemalloc.get_traced_memory()[1] < 32 << 20
    finally:
        tracemalloc.stop()


@given(
    st.integers(1, 8),
    st.tuples(st.integers(1, 12), st.integers(1, 12)),
    st.tuples(*[st.floats(0, 1, exclude_max=True)] * 4),
)
def test_a_box_of_the_stored_image_turned_is_the_box_of_the_upright_one(
    orientation: int, sides: tuple[int, int], at: tuple[float, float, float, float]
) -> None:
    stored = torch.arange(3 * sides[0] * sides[1], dtype=torch.uint8).view(*sides, 3)
    turned = Image.fromarray(stored.numpy())
    if orientation > 1:
        turned = turned.transpose(TURNS[orientation])
    expected = np.asarray(turned)
    height, width = expected.shape[:2]
    top, left = int(at[0] * height), int(at[1] * width)
    box = np.array([top, left, 1 + int(at[2] * (height - top)), 1 + int(at[3] * (width - left))], np.int32)
    y, x, h, w = stored_box(box, Header("JPEG", height, width, orientation))
    found = upright(stored[y : y + h, x : x + w], orientation)
    assert found.is_contiguous()
    assert np.array_equal(found.numpy(), expected[top : top + box[2], left : left + box[3]])
    assert np.array_equal(upright(stored, orientation).numpy(), expected)


def test_threads_are_quiet_together_and_leave_the_filters_as_they_were() -> None:
    before, failed = list(warnings.filters), []
    inside, leave = threading.Barrier(3), threading.Event()

    def stay() -> None:
        try:
            with quiet():
                inside.wait()
                leave.wait()
                warnings.warn("heard", stacklevel=1)
        except UserWarning as warning:
            failed.append(warning)

    threads = [threading.Thread(target=stay) for _ in range(2)]
    for thread in threads:
        thread.start()
    with quiet():
        inside.wait()
    leave.set()
    for thread in threads:
        thread.join()
    assert not failed
    assert warnings.filters == before
    with pytest.raises(UserWarning, match="heard"):
        warnings.warn("heard", stacklevel=1)
