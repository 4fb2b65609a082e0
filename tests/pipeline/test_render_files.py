"""Every kind of file looks as Pillow says it looks; what does not decode, is gone or has changed is named."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image, ImageOps

from labelstore.errors import InputError
from labelstore.format.columns import CROP_COLUMNS, CropRows
from pipeline.images.headers import read_header
from pipeline.images.manifest import Manifest, scan
from pipeline.plan.plan import PlanSpec
from pipeline.render import Renderer, make_renderer
from pipeline.render.cache import Images
from pipeline.render.plain import is_plain
from tests.pipeline.damaged import encoded, png_chunk

MEMORY, REGIONS = 1 << 30, 0
HEIGHT, WIDTH, SIZE = 52, 75, 16


def _picture() -> Image.Image:
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    noise = np.random.default_rng(0).integers(0, 60, (HEIGHT, WIDTH, 3))
    return Image.fromarray((np.stack([2 * y, 2 * x, x + y], axis=2) + noise).astype(np.uint8))


RGB = _picture()
GRAY = RGB.convert("L")
PALETTE = RGB.quantize(60)
ALPHA = Image.merge("RGBA", (*RGB.split(), GRAY.rotate(180)))


def exif(orientation: int, order: str = "<", kind: int = 3, **extra: tuple[int, int, int]) -> bytes:
    """EXIF of one orientation, and of entries (type, count, value or offset) by tag."""
    entries = [(0x0112, kind, 1, orientation), *((int(tag[1:], 16), *rest) for tag, rest in extra.items())]
    body = b"".join(
        struct.pack(order + "HHI", tag, kind, count)
        + struct.pack(order + ("HH" if kind == 3 else "I"), *((value, 0) if kind == 3 else (value,)))
        for tag, kind, count, value in sorted(entries)
    )
    head = (b"II*\0" if order == "<" else b"MM\0*") + struct.pack(order + "IH", 8, len(entries))
    return b"Exif\0\0" + head + body + bytes(4)


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def with_segments(jpeg: bytes, *segments: bytes) -> bytes:
    return jpeg[:2] + b"".join(segments) + jpeg[2:]


def without_adobe(jpeg: bytes) -> bytes:
    start = jpeg.index(b"\xff\xee")
    return jpeg[:start] + jpeg[start + 2 + int.from_bytes(jpeg[start + 2 : start + 4]) :]


def ycck(jpeg: bytes) -> bytes:
    at = jpeg.index(b"Adobe") + 11
    return jpeg[:at] + b"\x02" + jpeg[at + 1 :]


JPEG, PNG = encoded(RGB, "JPEG"), encoded(RGB, "PNG")
CMYK = encoded(RGB.convert("CMYK"), "JPEG")
XMP = b'http://ns.adobe.com/xap/1.0/\0<x:xmpmeta><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'

# name -> (file, whether DALI is trusted with it)
KINDS: dict[str, tuple[bytes, bool]] = {
    **{f"JPEG 4:4:4, 4:2:2, 4:2:0 [{s}]": (encoded(RGB, "JPEG", subsampling=s), True) for s in range(3)},
    "JPEG progressive": (encoded(RGB, "JPEG", progressive=True), True),
    "JPEG with restarts": (encoded(RGB, "JPEG", restart_marker_rows=1), True),
    "JPEG grayscale": (encoded(GRAY, "JPEG"), True),
    "JPEG of RGB components": (encoded(RGB, "JPEG", keep_rgb=True), True),
    "JPEG CMYK by Adobe": (CMYK, False),
    "JPEG CMYK of others": (without_adobe(CMYK), False),
    "JPEG YCCK": (ycck(CMYK), False),
    "JPEG CMYK turned": (encoded(RGB.convert("CMYK"), "JPEG", exif=exif(6)), False),
    "JPEG with junk behind it": (JPEG + b"junk" * 9, True),
    **{f"JPEG turned [{o}]": (encoded(RGB, "JPEG", exif=exif(o)), True) for o in range(1, 9)},
    "JPEG turned, big-endian": (encoded(RGB, "JPEG", exif=exif(6, ">")), True),
    "JPEG grayscale turned": (encoded(GRAY, "JPEG", exif=exif(5)), True),
    "JPEG progressive turned": (encoded(RGB, "JPEG", exif=exif(8), progressive=True), True),
    "JPEG of unknown orientation": (encoded(RGB, "JPEG", exif=exif(9)), True),
    "JPEG turned by a long": (encoded(RGB, "JPEG", exif=exif(6, kind=4)), True),
    "JPEG with EXIF that points outside": (encoded(RGB, "JPEG", exif=exif(6, x011A=(5, 1, 9999))), True),
    "JPEG with empty EXIF": (with_segments(JPEG, segment(0xE1, b"Exif\0\0")), True),
    "JPEG turned by XMP": (with_segments(JPEG, segment(0xE1, XMP)), True),
    **{f"PNG {image.mode}": (encoded(image, "PNG"), True) for image in (RGB, GRAY, PALETTE, ALPHA)},
    "PNG LA": (encoded(ALPHA.convert("LA"), "PNG"), True),
    "PNG of 1 bit": (encoded(GRAY.convert("1"), "PNG"), True),
    "PNG of 2 colours": (encoded(RGB.quantize(2), "PNG"), True),
    "PNG with a transparent colour": (encoded(RGB, "PNG", transparency=RGB.getpixel((3, 3))), True),
    "PNG of transparent colours": (encoded(PALETTE, "PNG", transparency=bytes(range(60))), True),
    "PNG with gamma": (PNG[:33] + png_chunk(b"gAMA", struct.pack(">I", 60000)) + PNG[33:], True),
    **{f"PNG turned [{o}]": (encoded(RGB, "PNG", exif=exif(o)), True) for o in (3, 6)},
    "PNG palette turned": (encoded(PALETTE, "PNG", exif=exif(7)), True),
    "PNG turned behind its pixels": (PNG[:-12] + png_chunk(b"eXIf", exif(6)[6:]) + PNG[-12:], True),
    "PNG without its last two bytes": (PNG[:-2], False),
    "WebP": (encoded(RGB, "WEBP"), True),
    "WebP lossless": (encoded(RGB, "WEBP", lossless=True), True),
    "WebP with alpha": (encoded(ALPHA, "WEBP"), True),
    "WebP turned": (encoded(RGB, "WEBP", exif=exif(6)), True),
    "WebP with alpha turned": (encoded(ALPHA, "WEBP", exif=exif(6)), True),
}


def upright(data: bytes) -> npt.NDArray[np.uint8]:
    """What Pillow sees."""
    return np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))


def rows_of(images: list[int], boxes: list[tuple[int, int]]) -> CropRows:
    """Rows of boxes of the crop's own size, which are not resized, at (top, left)."""
    values = np.zeros((len(CROP_COLUMNS), len(images)), np.uint16)
    values[0], values[2:4], values[4:6] = images, np.array(boxes).T, SIZE
    return CropRows(CROP_COLUMNS, values)


def folder_of(root: Path, files: dict[str, bytes]) -> Manifest:
    (root / "a").mkdir()
    for name, data in files.items():
        (root / "a" / name).write_bytes(data)
    return scan(root, digests=False)


def renderer_of(manifest: Manifest, cache: int) -> Renderer:
    return make_renderer(manifest, PlanSpec(size=SIZE), threads=1, cache_bytes=cache)


@pytest.mark.filterwarnings("ignore:.*(Palette images with Transparency|Corrupt EXIF|Truncated File Read).*")
def test_every_kind_of_file_is_what_pillow_sees(tmp_path: Path) -> None:
    suffixes = {"J": "jpg", "P": "png", "W": "webp"}
    manifest = folder_of(
        tmp_path, {f"{at:03d}.{suffixes[name[0]]}": data for at, (name, (data, _)) in enumerate(KINDS.items())}
    )
    rng = np.random.default_rng(1)
    crops: list[tuple[int, int, int]] = []
    for image in range(len(KINDS)):
        height, width = int(manifest.heights[image]), int(manifest.widths[image])
        corners = [(0, 0), (height - SIZE, width - SIZE), (0, width - SIZE), (height - SIZE, 0)]
        inner = zip(rng.integers(0, height - SIZE, 6).tolist(), rng.integers(0, width - SIZE, 6).tolist(), strict=True)
        crops += [(image, top, left) for top, left in (*corners, *inner)]
    rng.shuffle(crops)
    rows = rows_of([image for image, _, _ in crops], [(top, left) for _, top, left in crops])
    names, seen = list(KINDS), [upright(data) for data, _ in KINDS.values()]
    for cache in (MEMORY, REGIONS):
        found = renderer_of(manifest, cache).render(rows).numpy()
        for crop, (image, top, left) in zip(found, crops, strict=True):
            expected = seen[image][top : top + SIZE, left : left + SIZE]
            assert np.array_equal(crop, expected), f"{names[image]}, cache {cache}, box at {top}, {left}"


def test_regions_of_every_size_are_those_of_the_whole_image(tmp_path: Path) -> None:
    kinds = [(at, turn) for at in range(6) for turn in range(1, 9)]
    files = {
        f"{at}{turn}.jpg": encoded(RGB, "JPEG", subsampling=at % 3, progressive=at > 2, exif=exif(turn))
        for at, turn in kinds
    }
    manifest = folder_of(tmp_path, files)
    rng, n = np.random.default_rng(2), 4_000
    values = np.zeros((len(CROP_COLUMNS), n), np.uint16)
    values[0] = rng.integers(0, len(files), n)
    sides = np.stack([manifest.heights[values[0]], manifest.widths[values[0]]])
    values[4:6] = np.minimum(rng.choice([1, 1, 2, 3, 20, WIDTH], (2, n)), sides)
    room = sides - values[4:6]
    values[2:4] = rng.choice([0.0, 0.3, 1.0], (2, n)) * room
    rows = CropRows(CROP_COLUMNS, values)
    whole, regions = (renderer_of(manifest, cache).render(rows) for cache in (MEMORY, REGIONS))
    assert torch.equal(whole, regions)


@pytest.mark.parametrize("name", KINDS)
def test_dali_is_trusted_with_what_was_found_equal(name: str) -> None:
    data, plain = KINDS[name]
    assert is_plain(read_header(io.BytesIO(data)).kind, data) == plain


def test_dali_is_not_trusted_with_what_crashes_it() -> None:
    assert not is_plain("JPEG", JPEG[: len(JPEG) // 2])


WHOLE = {"jpg": JPEG, "png": PNG, "webp": encoded(RGB, "WEBP")}
BROKEN: dict[str, tuple[str, bytes]] = {
    "JPEG cut in half": ("jpg", JPEG[: len(JPEG) // 2]),
    "JPEG cut in half, with a thumbnail": (
        "jpg",
        with_segments(JPEG, segment(0xE1, exif(1) + b"\xff\xd8\xff\xd9"))[: len(JPEG) // 2],
    ),
    "progressive JPEG cut in half": ("jpg", KINDS["JPEG progressive"][0][:1200]),
    "PNG cut in half": ("png", PNG[: len(PNG) // 2]),
    "PNG with a flipped byte": ("png", PNG[:900] + bytes([PNG[900] ^ 255]) + PNG[901:]),
    "WebP cut in half": ("webp", KINDS["WebP"][0][: len(KINDS["WebP"][0]) // 2]),
}


@pytest.mark.parametrize("cache", [MEMORY, REGIONS])
@pytest.mark.parametrize("name", BROKEN)
def test_a_file_that_does_not_decode_any_more_is_named(tmp_path: Path, name: str, cache: int) -> None:
    suffix, data = BROKEN[name]
    good = {f"{at}.jpg": JPEG for at in range(5)}
    manifest = folder_of(tmp_path, {**good, f"3x.{suffix}": WHOLE[suffix]})
    (tmp_path / "a" / f"3x.{suffix}").write_bytes(data)
    bad = [name.removeprefix("a/") for name in manifest.names].index(f"3x.{suffix}")
    renderer = renderer_of(manifest, cache)
    places = [(0, 0), (HEIGHT - SIZE, 0)]
    rows = rows_of([0, 1, bad, bad, 5], [places[0], places[1], *places, places[0]])
    with pytest.raises(InputError, match=f"a/3x.{suffix}: expected an image that decodes, as when .*, found: "):
        renderer.render(rows)
    rest = renderer.render(rows_of([0, 5], [(0, 0), (3, 4)])).numpy()  # the others still render
    np.testing.assert_array_equal(rest[1], upright(JPEG)[3 : 3 + SIZE, 4 : 4 + SIZE])


@pytest.mark.parametrize("cache", [MEMORY, REGIONS])
@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda path: path.unlink(), "No such file"),
        (lambda path: path.write_bytes(b"words"), "expected a JPEG, PNG, WebP or PPM"),
        (lambda path: path.write_bytes(b""), "empty file"),
        (
            lambda path: path.write_bytes(encoded(RGB.resize((80, 60)), "JPEG")),
            "expected 52 x 75 pixels.*found 60 x 80",
        ),
        (
            lambda path: path.write_bytes(encoded(RGB, "JPEG", exif=exif(6))),
            "expected 52 x 75 pixels.*found 75 x 52",
        ),
    ],
)
def test_a_file_that_is_gone_or_has_changed_is_named(
    tmp_path: Path, change: Callable[[Path], object], words: str, cache: int
) -> None:
    manifest = folder_of(tmp_path, {"0.jpg": JPEG, "1.jpg": JPEG})
    renderer = renderer_of(manifest, cache)
    change(Path(manifest.place(1)))
    with pytest.raises(InputError, match=f"a/1.jpg: .*{words}"):
        renderer.render(rows_of([0, 1], [(0, 0), (0, 0)]))


@pytest.mark.parametrize("cache", [MEMORY, REGIONS])
def test_a_stop_in_the_middle_leaves_nothing_behind(
    tmp_path: Path, cache: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    manifest = folder_of(tmp_path, {f"{at}.jpg": JPEG for at in range(3)})
    monkeypatch.setattr("pipeline.render.crops.CHUNK_CROPS", 1)
    renderer = renderer_of(manifest, cache)
    rows = rows_of([0, 1, 2] * 4, [(at, 2 * at) for at in range(12)])
    original = Images.begin

    def stopped(images: Images, wanted: Sequence[int]) -> Any:
        begun = original(images, wanted)

        def wait() -> object:
            if 2 in wanted:
                raise KeyboardInterrupt
            return begun()

        return wait

    with monkeypatch.context() as patch:
        patch.setattr(Images, "begin", stopped)
        with pytest.raises(KeyboardInterrupt):
            renderer.render(rows)
    assert torch.equal(renderer.render(rows), renderer_of(manifest, cache).render(rows))
