"""Files decode where Pillow says so, to Pillow's pixels however they are read; damaged ones are named, and no more."""

from __future__ import annotations

import ctypes
import errno
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from labelstore.format.columns import CROP_COLUMNS, CropRows
from pipeline.images.decodes import require_decodes
from pipeline.images.headers import BrokenImageError
from pipeline.images.manifest import scan
from pipeline.plan.plan import PlanSpec
from pipeline.render import make_renderer
from pipeline.render.cache import DamagedImageWarning
from pipeline.render.complaints import Listener
from pipeline.render.jpeg_scans import Scans, scans_of
from tests.pipeline.damaged import WHOLE, encoded, picture, segments

CHILD = "tests.pipeline.damaged_child"


def run_child(folder: Path, *runs: tuple[str, int, int]) -> None:
    """Damaged files: the same verdict as Pillow's, the same pixels whole and by region, and not a word."""
    words = [str(word) for run in runs for word in run]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ended = subprocess.run(
        [sys.executable, "-m", CHILD, folder, *words], env=environment, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr == ""
    for (kind, first, behind), found in zip(runs, json.loads(ended.stdout), strict=True):
        assert found["failed"] == {}, kind
        assert found["counts"]["files"] == behind - first
        assert found["counts"]["accepted"] > (behind - first) / 5  # so that pixels were compared


def test_damaged_files_are_what_pillow_says(tmp_path: Path) -> None:
    run_child(tmp_path, ("JPEG", 0, 400), ("SCANS", 0, 40), ("PNG", 0, 80), ("WEBP", 0, 80))


@pytest.mark.long
def test_many_damaged_files_are_what_pillow_says(tmp_path: Path) -> None:
    run_child(tmp_path, ("JPEG", 1000, 11_000), ("SCANS", 100, 1000), ("PNG", 1000, 3000), ("WEBP", 1000, 3000))


def test_neither_a_bad_disk_nor_a_lack_of_memory_is_a_broken_image(monkeypatch: pytest.MonkeyPatch) -> None:
    class BadDisk(io.BytesIO):
        def read(self, size: int | None = -1, /) -> bytes:
            if self.tell() > 500:
                raise OSError(errno.EIO, "Input/output error")
            return super().read(min(size or 500, 500))

    with pytest.raises(OSError, match="Input/output"):
        require_decodes(BadDisk(WHOLE[0]))
    with pytest.raises(BrokenImageError, match="does not decode"):
        require_decodes(io.BytesIO(WHOLE[0][:500]))

    def full(image: Image.Image) -> None:
        raise MemoryError

    monkeypatch.setattr(Image.Image, "load", full)
    with pytest.raises(MemoryError):
        require_decodes(io.BytesIO(WHOLE[0]))


def without(jpeg: bytes, part: bytes) -> bytes:
    """The file without the first place of some bytes."""
    at = jpeg.index(part)
    return jpeg[:at] + jpeg[at + len(part) :]


def first_scans(jpeg: bytes, count: int) -> bytes:
    """The file up to some scan."""
    scans = [stop for marker, _, stop in segments(jpeg) if marker == 0xDA]
    return jpeg[: scans[count - 1]] + b"\xff\xd9"


RGB = Image.fromarray(picture(1, smooth=False))
BASELINE, PROGRESSIVE = encoded(RGB), encoded(RGB, progressive=True)
RESTARTS = encoded(RGB, restart_marker_blocks=2)


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (BASELINE, Scans.WHOLE),
        (PROGRESSIVE, Scans.WHOLE),
        (RESTARTS, Scans.WHOLE),
        (encoded(RGB, progressive=True, restart_marker_rows=1, subsampling=0), Scans.WHOLE),
        (encoded(RGB.convert("L"), restart_marker_blocks=5), Scans.WHOLE),
        (BASELINE + b"junk" + PROGRESSIVE, Scans.WHOLE),
        (encoded(RGB.convert("CMYK")), Scans.OTHER),
        *((first_scans(PROGRESSIVE, count), Scans.OTHER) for count in range(1, 10)),
        (BASELINE[:-2] + b"\xff\xff\xd9", Scans.OTHER),
        (BASELINE[:-2], Scans.DAMAGED),
        (without(RESTARTS, b"\xff\xd1"), Scans.DAMAGED),
        (RESTARTS.replace(b"\xff\xd1", b"\xff\xd2", 1), Scans.DAMAGED),
        (BASELINE[:-2] + b"\xff\xd0\xff\xd9", Scans.DAMAGED),
        (BASELINE[:-2] + BASELINE, Scans.DAMAGED),
        (BASELINE[:-40] + b"\xff\x02" + BASELINE[-40:], Scans.DAMAGED),
        (BASELINE[:2] + b"\0" + BASELINE[2:], Scans.DAMAGED),
    ],
)
def test_scans(data: bytes, found: Scans) -> None:
    assert scans_of(data) is found


def c_stderr(text: bytes) -> None:
    """Write to standard error as C libraries do."""
    c = ctypes.CDLL(None)
    c.fputs(text, ctypes.c_void_p.in_dll(c, "stderr"))
    c.fflush(None)


def test_what_decoders_write_is_heard_and_what_others_write_is_handed_on(capfd: pytest.CaptureFixture[str]) -> None:
    first, second = Listener(), Listener()
    first.start()
    c_stderr(b"Corrupt JPEG data: 7 extraneous bytes before marker 0xd9\n")
    second.start()
    c_stderr(b"something else\n")
    print("of Python", file=sys.stderr, flush=True)
    assert capfd.readouterr().err == "of Python\n"
    assert not second.stop()
    assert first.stop()
    assert not first.stop()
    assert capfd.readouterr().err == "something else\n"
    c_stderr(b"Corrupt JPEG data: printed again\n")
    assert capfd.readouterr().err == "Corrupt JPEG data: printed again\n"


@pytest.mark.parametrize("cache", [1 << 30, 0])
@pytest.mark.parametrize(
    "data",
    [without(RESTARTS, b"\xff\xd1"), BASELINE[:-2] + bytes(20) + BASELINE[-2:], BASELINE[:-60] + BASELINE[-2:]],
    ids=["a restart marker lost", "bytes too many", "data that end early"],
)
def test_a_damaged_file_that_decodes_is_named_once(
    tmp_path: Path, data: bytes, cache: int, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    for name, content in (("0.jpg", BASELINE), ("1.jpg", data), ("2.jpg", PROGRESSIVE)):
        (tmp_path / "a" / name).write_bytes(content)
    values = np.zeros((len(CROP_COLUMNS), 30), np.uint16)
    values[0], values[2], values[4:6] = np.arange(30) % 3, 52 - 8, 8
    renderer = make_renderer(scan(tmp_path), PlanSpec(size=8), threads=1, cache_bytes=cache)
    with pytest.warns(DamagedImageWarning, match=r"a/1\.jpg: its JPEG data are damaged") as caught:
        crops = renderer.render(CropRows(CROP_COLUMNS, values)).numpy()
    renderer.render(CropRows(CROP_COLUMNS, values))  # a second warning would be an error here
    assert len(caught) == 1
    assert capfd.readouterr().err == ""
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[52 - 8 :, :8]
    assert all(np.array_equal(crop, expected) for crop in crops[1::3])
