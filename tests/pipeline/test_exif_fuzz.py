"""Every manner of EXIF and XMP: each file is turned as Pillow turns it, to the pixel, and none ends the process."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from tests.pipeline.exif_files import SUFFIXES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("first", "count"), [(0, 1_500), pytest.param(1_500, 20_000, marks=pytest.mark.long)], ids=["short", "long"]
)
def test_files_with_exif_and_xmp_are_what_pillow_shows(first: int, count: int) -> None:
    words = [sys.executable, "-m", "tests.pipeline.exif_files", str(first), str(count)]
    ended = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = [json.loads(line) for line in ended.stdout.splitlines()]
    assert ended.returncode == 0, f"ended by {ended.returncode} after {lines[-1:]}: {ended.stderr[-2000:]}"
    assert [wrong for line in lines for wrong in line.get("wrong", ())] == []
    assert sum(line.get("files", 0) for line in lines) == count
    counts: Counter[str] = Counter()
    for line in lines:
        counts.update(line.get("counts", {}))
    for kind in SUFFIXES:  # the fuzzer reaches what it is there for
        assert counts[f"{kind} turned"] > count // 12
        assert counts[f"{kind} by DALI"] > count // 5
        assert counts[f"{kind} refused"] > 0
