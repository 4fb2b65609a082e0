"""The study of generated digits: the command of `make demo-generate`, and its report."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import tyro

from benchmarks.studies.digits_generator import FOLDER, RESULTS, Step, StudyConfig, add, report
from benchmarks.studies.ledger import Ledger

MAKEFILE = Path(__file__).parents[2] / "Makefile"


def test_make_runs_the_study_beside_the_demo_and_keeps_the_committed_lines() -> None:
    lines = MAKEFILE.read_text().splitlines()
    recipe = lines[next(at for at, line in enumerate(lines) if line.startswith("demo-generate:")) + 1]
    python, _, module, *flags = shlex.split(recipe)
    assert (python, module) == ("$(PY)", "benchmarks.studies.digits_generator")
    config = tyro.cli(StudyConfig, args=flags)
    assert config.folder not in (FOLDER, RESULTS.parent)
    assert config.results != RESULTS
    assert config.results.parent == Path("runs/demo")


def test_the_report_has_every_cell_beside_its_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Ledger[Step](tmp_path / "lines.jsonl")
    add(lines, "generator", 0.0, {"steps": 4_200, "last": {"loss": 0.25}})
    add(lines, "recognised", 0.0, {"images": 500, "agreement": 99.8})
    add(lines, "generated hard", 0.0, {"top1": [91.0, 92.0, 93.0]})
    add(lines, "real hard", 0.0, {"top1": [95.0]})
    capsys.readouterr()
    again = Ledger[Step](lines.path)
    assert all(Step(name) in again for name in ("generator", "recognised", "generated hard", "real hard"))
    report({line["cell"]["name"]: line for line in again.lines})
    text = capsys.readouterr().out
    assert "generator: 4,200 steps" in text
    assert "99.8 % of 500 generated digits (goal: 95 %)" in text
    assert "generated hard   92.00 %  of 91.00, 92.00, 93.00 (goal: 88 %)" in text
    assert "real hard        95.00 %  of 95.00\n" in text
