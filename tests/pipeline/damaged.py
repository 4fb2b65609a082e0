"""Damaged files, each a function of its seed: JPEG of every sampling and kind of scan, PNG and WebP, cut and worse."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

HEIGHT, WIDTH = 52, 75
_FRAMES = {0xC0: 0xC9, 0xC1: 0xC9, 0xC2: 0xCA}  # a Huffman frame's marker, and the arithmetic one's


def picture(seed: int, smooth: bool) -> npt.NDArray[np.uint8]:
    """uint8 ``[52, 75, 3]``: smooth, as what a decoder smooths shows, or with noise."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    waves = [128 + 90 * np.sin(x / 9 + seed), 128 + 90 * np.cos(y / 7), 2 * y + x]
    noise = 0 if smooth else np.random.default_rng(seed).integers(-40, 40, (HEIGHT, WIDTH, 3))
    return (np.stack(waves, 2) + noise).clip(0, 255).astype(np.uint8)


def encoded(image: Image.Image, kind: str = "JPEG", **options: Any) -> bytes:
    """A file of a kind."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def png_chunk(name: bytes, body: bytes) -> bytes:
    """A chunk of a PNG file."""
    return len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big")


def segments(jpeg: bytes) -> list[tuple[int, int, int]]:
    """(marker, start, stop) of the segments, each scan with its data; up to the end of the image."""
    found, at = [], 2
    while at + 4 <= len(jpeg) and jpeg[at] == 0xFF and jpeg[at + 1] != 0xD9:
        stop = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4])
        if jpeg[at + 1] == 0xDA:
            while not (jpeg[stop] == 0xFF and jpeg[stop + 1] != 0 and not 0xD0 <= jpeg[stop + 1] <= 0xD7):
                stop += 1
        found.append((jpeg[at + 1], at, stop))
        at = stop
    return found


def arithmetic(jpeg: bytes) -> bytes:
    """The file as one of arithmetic coding, to which nearly all data are code."""
    frame = next(start for marker, start, _ in segments(jpeg) if marker in _FRAMES)
    return jpeg[: frame + 1] + bytes([_FRAMES[jpeg[frame + 1]]]) + jpeg[frame + 2 :]


def _whole_files() -> list[bytes]:
    """Undamaged files of every kind."""
    files = []
    for seed in range(4):
        rgb = Image.fromarray(picture(seed, smooth=seed % 2 == 0))
        for progressive in (False, True):
            rows = {"restart_marker_rows": 1} if seed > 1 else {}
            every: dict[str, Any] = {"progressive": progressive, "quality": 60 + 10 * seed, **rows}
            files += [encoded(rgb, subsampling=subsampling, **every) for subsampling in range(3)]
            files += [encoded(rgb.convert(mode), **every) for mode in ("L", "CMYK")]
            files += [encoded(rgb, optimize=True, restart_marker_blocks=3, **{**every, "restart_marker_rows": 0})]
    return files + [arithmetic(file) for file in files[3::5]]


WHOLE = _whole_files()


def _flip(data: bytearray, rng: np.random.Generator) -> None:
    data[int(rng.integers(2, len(data)))] ^= 1 << int(rng.integers(8))


def _put(data: bytearray, rng: np.random.Generator) -> None:
    data[int(rng.integers(2, len(data)))] = int(rng.choice([0, 255, int(rng.integers(256))]))


def _marker(data: bytearray, rng: np.random.Generator) -> None:
    at = _in_scan(data, rng)
    others = [0x00, 0x01, 0x02, 0xBF, 0xC0, 0xC4, 0xD0, 0xD3, 0xD7, 0xD8, 0xD9, 0xDA, 0xDC, 0xDD, 0xE0, 0xFE, 0xFF]
    data[at : at + int(rng.integers(0, 3))] = bytes([0xFF, int(rng.choice(others))])


def _cut(data: bytearray, rng: np.random.Generator) -> None:
    del data[int(rng.integers(len(data) // 3, len(data))) :]


def _cut_and_end(data: bytearray, rng: np.random.Generator) -> None:
    _cut(data, rng)
    data += b"\xff\xd9" + bytes(int(rng.integers(0, 9)))


def _end_early(data: bytearray, rng: np.random.Generator) -> None:
    at = _in_scan(data, rng)
    data[at:] = b"\xff\xd9" + WHOLE[int(rng.integers(len(WHOLE)))]


def _follow(data: bytearray, rng: np.random.Generator) -> None:
    """Another image without its end, or only its scan, behind this one's data."""
    other = WHOLE[int(rng.integers(len(WHOLE)))]
    del data[-2:]
    data += other[int(rng.choice([0, 2, other.index(b"\xff\xda")])) :]


def _splice(data: bytearray, rng: np.random.Generator) -> None:
    other, at = WHOLE[int(rng.integers(len(WHOLE)))], _in_scan(data, rng)
    data[at:] = other[min(at, len(other) - 2) :]


def _delete(data: bytearray, rng: np.random.Generator) -> None:
    at = _in_scan(data, rng)
    del data[at : at + int(rng.integers(1, 30))]


def _insert(data: bytearray, rng: np.random.Generator) -> None:
    at = _in_scan(data, rng)
    data[at:at] = rng.integers(0, 256, int(rng.integers(1, 20)), np.uint8).tobytes()


def _zeros(data: bytearray, rng: np.random.Generator) -> None:
    at, count = _in_scan(data, rng), int(rng.integers(1, 200))
    data[at : at + count] = bytes(min(count, len(data) - at))


def _pad(data: bytearray, rng: np.random.Generator) -> None:
    data[-2:-2] = rng.choice([0, 255, 7], 1).astype(np.uint8).tobytes() * int(rng.integers(1, 40))


def _restart(data: bytearray, rng: np.random.Generator) -> None:
    """A restart marker lost, doubled or of another number."""
    places = [at for at in range(20, len(data) - 1) if data[at] == 0xFF and 0xD0 <= data[at + 1] <= 0xD7]
    if places:
        at = int(rng.choice(places))
        data[at : at + 2] = [b"", data[at : at + 2] * 2, b"\xff\xd0", b"\xff\xd6"][int(rng.integers(4))]


def _segment(data: bytearray, rng: np.random.Generator) -> None:
    """A segment or a scan lost, doubled, exchanged with the next, or junk before it."""
    try:
        parts = segments(bytes(data))
    except IndexError:
        return
    if len(parts) < 2:
        return
    first = int(rng.integers(len(parts) - 1))
    scans = [at for at, (marker, _, _) in enumerate(parts[:-1]) if marker == 0xDA]
    if scans and rng.random() < 0.6:
        first = int(rng.choice([*scans, *(at + 1 for at in scans)]))
    _, start, stop = parts[first]
    behind = parts[min(first + 1, len(parts) - 1)][2]
    how = int(rng.integers(5))
    if how == 0:
        del data[start:stop]
    elif how == 1:
        data[start:start] = data[start:stop]
    elif how == 2:
        data[start:behind] = data[stop:behind] + data[start:stop]
    elif how == 3:
        data[start:start] = rng.integers(0, 256, 3, np.uint8).tobytes()
    else:
        data[start:] = b"\xff\xd9"


def _header(data: bytearray, rng: np.random.Generator) -> None:
    """A field of a frame, a scan or a restart interval changed."""
    try:
        parts = [part for part in segments(bytes(data)) if part[0] in (0xC0, 0xC2, 0xDA, 0xDD, 0xC4, 0xDB)]
    except IndexError:
        return
    if parts:
        marker, start, _ = parts[int(rng.integers(len(parts)))]
        length = int.from_bytes(data[start + 2 : start + 4])
        at = start + int(rng.integers(4, 2 + max(length, 3)))
        if not (marker in (0xC0, 0xC2) and at < start + 9 and rng.random() < 0.7):
            data[at] = int(rng.choice([0, 1, 2, 3, 0x11, 0x12, 0x21, 0x22, 63, data[at] ^ 1]))


HARMS: tuple[Callable[[bytearray, np.random.Generator], None], ...] = (
    _flip,
    _put,
    _marker,
    _cut,
    _cut_and_end,
    _end_early,
    _follow,
    _splice,
    _delete,
    _insert,
    _zeros,
    _pad,
    _restart,
    _segment,
    _header,
)


def _in_scan(data: bytearray, rng: np.random.Generator) -> int:
    """A place in the data of the scans."""
    first = data.find(b"\xff\xda") + 14
    return int(rng.integers(min(first, len(data) - 2), len(data) - 1))


def damaged(kind: str, seed: int) -> bytes:
    """A damaged file of a kind: JPEG, PNG, WEBP, or SCANS, progressive JPEG without some of its scans."""
    if kind == "SCANS":
        return without_scans(seed)
    return damaged_jpeg(seed) if kind == "JPEG" else damaged_still(kind, seed)


def without_scans(seed: int) -> bytes:
    """A whole file but for some scans: the last ones, as when a download stops, or any."""
    rng = np.random.default_rng(seed)
    progressive = [file for file in WHOLE if b"\xff\xc2\0" in file]
    data = progressive[int(rng.integers(len(progressive)))]
    parts = segments(data)
    scans = [at for at, (marker, _, _) in enumerate(parts) if marker == 0xDA]
    if rng.random() < 0.5:
        lost = set(scans[int(rng.integers(1, len(scans) + 1)) :])
    else:
        lost = set(rng.choice(scans[1:], int(rng.integers(1, 3)), replace=False).tolist())
    kept = (data[start:stop] for at, (_, start, stop) in enumerate(parts) if at not in lost)
    return data[:2] + b"".join(kept) + b"\xff\xd9"


def damaged_jpeg(seed: int) -> bytes:
    """A damaged JPEG; seeds run through the kinds of damage."""
    rng = np.random.default_rng(seed)
    data = bytearray(WHOLE[int(rng.integers(len(WHOLE)))])
    more = [HARMS[int(at)] for at in rng.integers(len(HARMS), size=rng.choice([0, 0, 1]))]
    for harm in (HARMS[seed % len(HARMS)], *more):
        if len(data) > 40:
            harm(data, rng)
    return bytes(data)


def _stills() -> dict[str, list[bytes]]:
    """Undamaged PNG and WebP files of every kind."""
    rgb = Image.fromarray(picture(0, smooth=False))
    alpha = rgb.copy()
    alpha.putalpha(rgb.convert("L"))
    modes = [rgb, alpha, rgb.quantize(40), rgb.convert("L"), rgb.convert("1"), alpha.convert("LA")]
    small = rgb.resize((30, 20))
    return {
        "PNG": [
            *(encoded(image, "PNG") for image in modes),
            encoded(rgb.quantize(9), "PNG", transparency=bytes(range(9))),
            encoded(rgb, "PNG", icc_profile=b"no profile" * 20),
        ],
        "WEBP": [
            *(encoded(image, "WEBP", lossless=lossless) for image in (rgb, alpha) for lossless in (False, True)),
            encoded(rgb, "WEBP", icc_profile=b"no profile" * 20),
            encoded(rgb, "WEBP", save_all=True, append_images=[small.resize(rgb.size)]),
            one_frame(encoded(small, "WEBP"), (2, 4)),
        ],
    }


def one_frame(webp: bytes, offset: tuple[int, int]) -> bytes:
    """A still WebP as the only frame of an animation, (top, left) within a larger canvas."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return name + len(body).to_bytes(4, "little") + body + bytes(len(body) & 1)

    def three(number: int) -> bytes:
        return number.to_bytes(3, "little")

    width, height = Image.open(io.BytesIO(webp)).size
    top, left = offset
    frame = three(left // 2) + three(top // 2) + three(width - 1) + three(height - 1) + three(100) + b"\0" + webp[12:]
    head = bytes([2, 0, 0, 0]) + three(width + left + 5) + three(height + top + 3)
    body = b"WEBP" + chunk(b"VP8X", head) + chunk(b"ANIM", bytes(6)) + chunk(b"ANMF", frame)
    return b"RIFF" + len(body).to_bytes(4, "little") + body


STILLS = _stills()


def _chunks(data: bytes, kind: str) -> list[tuple[int, int]]:
    """(start, stop) of the chunks of a PNG or WebP file."""
    found, at = [], 8 if kind == "PNG" else 12
    while at + 8 <= len(data):
        if kind == "PNG":
            stop = at + 12 + int.from_bytes(data[at : at + 4])
        else:
            length = int.from_bytes(data[at + 4 : at + 8], "little")
            stop = at + 8 + length + (length & 1)
        found.append((at, min(stop, len(data))))
        at = stop
    return found


def damaged_still(kind: str, seed: int) -> bytes:
    """A damaged PNG or WebP file: bytes or whole chunks lost, changed, exchanged; checksums put right or not."""
    rng = np.random.default_rng(seed)
    data = bytearray(STILLS[kind][int(rng.integers(len(STILLS[kind])))])
    for _ in range(int(rng.choice([1, 1, 2]))):
        chunks = _chunks(bytes(data), kind)
        (start, stop), how = chunks[int(rng.integers(len(chunks)))], int(rng.integers(8))
        if how == 0:
            del data[start:stop]
        elif how == 1:
            data[start:start] = data[start:stop]
        elif how == 2:
            body = bytes(rng.integers(0, 256, int(rng.integers(0, 9)), np.uint8))
            name = [b"tEXt", b"gAMA", b"zzZz", b"EXTR", b"ICCP"][int(rng.integers(5))]
            sizes = len(body).to_bytes(4, "big"), len(body).to_bytes(4, "little")
            data[stop:stop] = sizes[0] + name + body + bytes(4) if kind == "PNG" else name + sizes[1] + body
        elif how == 3 and stop - start > 1:
            del data[int(rng.integers(start, stop - 1)) :]
        else:
            harm = [_flip, _put, _tail][int(rng.integers(3))]
            harm(data, rng)
            if kind == "PNG" and rng.random() < 0.6:
                _mend(data)
        if len(data) < 40:
            break
        if kind == "WEBP" and rng.random() < 0.7:
            data[4:8] = (len(data) - 8).to_bytes(4, "little")
    return bytes(data)


def _tail(data: bytearray, rng: np.random.Generator) -> None:
    """Bytes lost near the end."""
    at = len(data) - int(rng.integers(1, min(60, len(data))))
    del data[at : at + int(rng.integers(1, 20))]


def _mend(data: bytearray) -> None:
    """Put the checksums of a PNG right."""
    for start, stop in _chunks(bytes(data), "PNG"):
        if stop - start >= 12:
            data[stop - 4 : stop] = zlib.crc32(data[start + 4 : stop - 4]).to_bytes(4, "big")
