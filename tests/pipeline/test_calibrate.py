"""How a build calibrates: how many crops it takes, what it reaches, and how much memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.build.calibrate import FIT_ROWS, MAX_BYTES, rows_to_fit
from tests.pipeline.wide_labels import measure

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(("images", "columns"), [(1, 64), (10, 100), (1000, 1000), (10**6, 1000), (5000, 21_841)])
def test_rows_to_fit_are_enough_and_bounded(images: int, columns: int) -> None:
    fitted, searched = rows_to_fit(images, columns)
    assert 1 <= searched <= fitted <= FIT_ROWS
    assert 4 * columns * fitted <= MAX_BYTES
    assert fitted >= min(4 * columns, FIT_ROWS, MAX_BYTES // (4 * columns))


def test_labels_of_a_wide_teacher_reach_the_fidelity_on_crops_that_nothing_saw() -> None:
    found = measure(100, 200, 0.95)
    assert found["fidelity"] == pytest.approx(0.95, abs=0.01)
    assert found["components"] <= 112


@pytest.mark.long
def test_twenty_thousand_classes_fit_in_8_gib() -> None:
    command = [sys.executable, "-m", "tests.pipeline.wide_labels", "21841", "5000", "0.95"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    found = json.loads(done.stdout)
    assert found["fidelity"] > 0.94  # drawn labels need more for the top-1 agreement that goes with it
    assert found["peak"] < 8 << 30
