"""The study of image sets: its cells and their order, what they do at toy size, and its tables."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.step import draw_set
from benchmarks.studies import image_sets as study
from benchmarks.studies.image_sets_cells import LABELS, METHODS, REAL, TOY, Cell, Scale, cells, student_cell
from benchmarks.studies.image_sets_run import Lab, Pace
from benchmarks.studies.image_sets_table import Results, report, sections
from benchmarks.studies.ledger import run_cells
from labelstore import LabelStore

SMALL = replace(TOY, seeds=(0,), epochs={1: 2})
DRAWN = TOY.data[0]


@pytest.mark.parametrize("scale", [REAL, TOY])
def test_teachers_and_sets_come_before_what_needs_them(scale: Scale) -> None:
    every = cells(scale, {(data.name, max(scale.epochs)): ("rded", "gift") for data in scale.data})
    assert len(every) == len({cell.name for cell in every}) == len(set(every))
    trained = {data.name for data in scale.data if data.weights is not None}
    made: set[str] = set()
    for cell in every:
        trained |= {cell.data} if cell.kind == "teacher" else set()
        made |= {cell.set_name} if cell.kind == "set" else set()
        assert cell.data in trained
        assert cell.kind != "student" or cell.set_name in made
    students = sum(len(data.students) - 1 for data in scale.data)
    compared = len(scale.data) * len(METHODS) * len(scale.epochs) * len(scale.seeds)
    teachers = sum(data.weights is None for data in scale.data)
    assert len(every) == teachers + compared * (1 + len(LABELS)) + students * len(scale.seeds)


def test_a_set_is_made_and_students_are_trained_on_it(tmp_path: Path) -> None:
    for split in ("train", "test"):
        draw_set(tmp_path / "data" / split, 40, (DRAWN.side, DRAWN.side))
    lab = Lab(SMALL, tmp_path, tmp_path / "data")
    made = Cell(kind="set", data="drawn", method="rded", per_class=1)
    for cell in (Cell(kind="teacher", data="drawn"), made):
        lab.run(cell)
    assert sum(1 for _ in lab.images(made).rglob("*.png")) == 10
    for labels in ("hard", "gift"):
        cell = student_cell("drawn", "rded", 1, 0, labels, "convnet-d2")
        found = lab.run(cell)
        made_of = json.loads((tmp_path / "students" / cell.name / "config.json").read_text())["made_of"]
        assert made_of["loss"]["name"] == {"hard": "ce", "gift": "gift"}[labels]
        assert (made_of["run"]["student"], made_of["run"]["recipe"]) == ("convnet-d2", "gift")
        assert (found["steps"], 0 <= found["top1"] <= 100) == (2, True)
    store = LabelStore.open(tmp_path / "stores" / made.set_name)
    assert (store.identity.images, store.state.views_sealed) == (10, 2)


class Quick(Lab):
    """A lab whose cells take no time: its students are as good as their labels and methods are late in the lists."""

    def run(self, cell: Cell) -> dict[str, Any]:
        with (self.folder / "done").open("a") as file:
            file.write(f"{cell.name}\n")
        if cell.kind == "teacher":
            self.weights(self.scale.named(cell.data)).parent.mkdir(parents=True, exist_ok=True)
            self.weights(self.scale.named(cell.data)).touch()
        elif cell.kind == "set":
            self.images(cell).mkdir(parents=True)
            return {"agreement": 50.0, "cross_entropy": 1.0, "seconds": 0.1}
        else:
            return {"top1": 10.0 * METHODS.index(cell.method) + LABELS.index(cell.labels) + cell.seed, "seconds": 0.1}
        return {"top1": 99.0, "seconds": 0.1}


def test_what_is_done_is_not_done_again_unless_its_files_are_gone(tmp_path: Path) -> None:
    lab, results = Quick(TOY, tmp_path, tmp_path), Results(tmp_path / "results.jsonl")
    run_cells(study.Study(lab, Pace(TOY), results), results, 60)
    done = (tmp_path / "done").read_text().splitlines()
    assert len(done) == len({*done}) == len(study.Study(lab, Pace(TOY), results).every())
    assert done[-1] == "drawn-sre2l-ipc2-seed1-gift-convnet-d2"
    assert study.Study(lab, Pace(TOY), Results(results.path)).to_do() == []
    lines = results.path.read_text().splitlines()
    results.path.write_text("".join(f"{line}\n" for line in lines[:-1]))
    left = study.Study(Quick(TOY, tmp_path / "elsewhere", tmp_path), Pace(TOY), Results(results.path)).to_do()
    assert [cell.kind for cell in left] == ["teacher", "set", "student"]


def test_tables_have_means_over_seeds_and_the_controls(tmp_path: Path) -> None:
    lab, results = Quick(TOY, tmp_path, tmp_path), Results(tmp_path / "results.jsonl")
    assert [*sections(TOY, results)] == []
    run_cells(study.Study(lab, Pace(TOY), results), results, 60)
    text = report(TOY, results)
    assert "| random | 0.50 ± 0.71 (2) | 1.50 ± 0.71 (2) | 2.50 ± 0.71 (2) |" in text
    assert "| convnet-d2, drawn, sre2l, GIFT, 2 a class | 22.50 ± 0.71 (2) |" in text
    assert "| drawn, rded, 1 a class | 50.00 ± 0.00 (2) | 1.00 ± 0.00 (2) |" in text
    assert results.path.with_suffix(".md").read_text() == text
    assert results.path.with_suffix(".png").exists()


def test_a_dry_run_needs_no_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--quick", "--dry-run"])
    assert study.main() == 0
    assert "49 cells, 49 of them to do" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]
