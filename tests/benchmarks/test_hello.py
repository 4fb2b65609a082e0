"""The study of HeLlO: its cells and their order, what they do at toy size, and its tables."""

from __future__ import annotations

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from benchmarks.studies import hello as study
from benchmarks.studies import jobs
from benchmarks.studies.hello_cells import ABLATION, REAL, STORED, TOY, WHOLE, Cell, Scale, cells
from benchmarks.studies.hello_run import Lab, Pace
from benchmarks.studies.hello_table import report, sections
from benchmarks.studies.jobs import run_together, startable
from benchmarks.studies.ledger import Ledger, run_cells
from labelstore.errors import InputError


@pytest.mark.parametrize("scale", [REAL, TOY])
def test_teachers_projectors_and_sets_come_before_what_needs_them(scale: Scale) -> None:
    every = cells(scale)
    assert len(every) == len({cell.name for cell in every}) == len(set(every))
    assert every[0].kind == "teacher"
    projectors, sets = set[str](), set[str]()
    for cell in every:
        projectors |= {cell.labels} if cell.kind == "projector" else set()
        sets |= {cell.set} if cell.kind == "set" else set()
        assert cell.kind != "student" or (cell.set in sets and cell.labels in {*projectors, *STORED})
    assert projectors == {*ABLATION}
    assert sum(cell.kind == "student" for cell in every) == 14 * len(scale.seeds)
    assert REAL.weak == 9


def test_a_projector_labels_a_student_and_what_is_missing_is_made(tmp_path: Path) -> None:
    study.draw_data(tmp_path / "data")
    lab = Lab(TOY, tmp_path, tmp_path / "data")
    found = lab.run(Cell(kind="projector", labels=WHOLE))
    assert len(found["teachers"]) == TOY.weak == 2
    assert found["bytes"] < found["bytes_with_encoder"]
    updated = lab.run(Cell(kind="set", set="updated"))
    assert 0 <= updated["agreement"] <= 100
    again = lab.run(Cell(kind="set", set="updated"))  # as after a kill, without a line
    assert again["agreement"] == updated["agreement"]
    record = json.loads((tmp_path / "sets" / "updated" / "synthesis.json").read_text())
    assert (record["method"], record["count"], record["parameters"]["update_steps"]) == ("hello-update", 10, 2)
    cell = Cell(kind="student", set="updated", labels=WHOLE)
    assert 0 <= lab.run(cell)["top1"] <= 100
    made_of = json.loads((tmp_path / "students" / cell.name / "config.json").read_text())["made_of"]
    assert made_of["loss"]["name"] == "mse+ce"
    assert (made_of["run"]["student"], made_of["run"]["recipe"]) == (TOY.student, "hello")


class Quick(Lab):
    """A lab whose cells take no time, and which lists them."""

    def run(self, cell: Cell) -> dict[str, Any]:
        with (self.folder / "done").open("a") as file:
            file.write(f"{cell.name}\n")
        if cell.kind == "set":
            return {"agreement": 50.0, "agreement_on_crops": 40.0, "cross_entropy": 1.0, "seconds": 0.1}
        place = float([*STORED, *ABLATION].index(cell.labels)) if cell.labels else 0.0
        shared = {"top1": 10 * place + cell.seed, "seconds": 0.1}
        if cell.kind != "projector":
            return shared
        sizes = {"parameters": 7, "bytes": 28, "bytes_with_encoder": 100}
        return {**shared, **sizes, "teachers": [1.0, 2.0], "teachers_top1": 3.0, "fidelity": 0.9}


class Still(Pace):
    """A pace that measures nothing."""

    def seconds(self, cell: Cell) -> float:
        del cell
        return 1.0


def test_what_is_done_is_not_done_again_and_tables_stand_beside_the_papers(tmp_path: Path) -> None:
    lab, results = Quick(TOY, tmp_path, tmp_path), Ledger[Cell](tmp_path / "hello.jsonl")
    assert [*sections(TOY, results)] == []
    run_cells(study.Study(lab, Still(TOY), results), results, 60)
    done = (tmp_path / "done").read_text().splitlines()
    assert len(done) == len({*done}) == len(cells(TOY))
    again = Ledger[Cell](results.path)
    assert study.Study(lab, Still(TOY), again).to_do() == []
    text = report(TOY, again)
    assert results.path.with_suffix(".md").read_text() == text
    assert "| linear probe on hard labels | 30.00 |  | 28.2 |" in text
    assert "| + LoRA | 50.00 | +10.00 | 43.5 |" in text
    assert "| + image update | 60.00 | +0.00 | 43.7 |" in text
    assert "| stored, strong teacher | 20.00 | 20.00 |  |" in text
    assert "lies +30.00 points from the linear probe (goal: +10, reached)" in text


class Few(study.Study):
    """Some cells of the study, one of which other cells need."""

    def every(self) -> list[Cell]:
        hard, weak = (Cell(kind="student", set="random", labels=labels) for labels in ("hard", "weak"))
        return [Cell(kind="teacher"), Cell(kind="set", set="random"), weak, hard]


@pytest.mark.long
def test_two_jobs_give_the_same_lines_as_one(tmp_path: Path) -> None:
    study.draw_data(tmp_path / "data")
    found = []
    for name in ("one", "two"):
        results = Ledger[Cell](tmp_path / name / "hello.jsonl")
        work = Few(Lab(TOY, tmp_path / name, tmp_path / "data"), Still(TOY), results)
        if name == "one":
            run_cells(work, results, 60)
        else:
            run_together(work, results, 60, jobs=2)
        lines = {json.dumps(line["cell"]): dict(line) for line in Ledger[Cell](results.path).lines}
        assert all(line.pop("seconds") >= 0 and line.pop("device") == "cpu" for line in lines.values())
        found.append(lines)
    one, two = found
    assert len(one) == 4
    assert {name: {**line, "jobs": 2} for name, line in one.items()} == two


class Failing(Quick):
    """A lab without weak teachers."""

    def run(self, cell: Cell) -> dict[str, Any]:
        if cell.kind == "teacher":
            raise InputError("no teacher")
        return super().run(cell)


def test_what_a_failed_cell_does_not_hold_up_is_done_nevertheless(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jobs, "workers", ThreadPoolExecutor)  # the test above has processes
    results = Ledger[Cell](tmp_path / "hello.jsonl")
    work = Few(Failing(TOY, tmp_path, tmp_path), Still(TOY), results)
    with pytest.raises(InputError, match="no teacher"):
        run_together(work, results, 60, jobs=2)
    assert sorted(line["cell"]["labels"] for line in results.lines) == ["", "hard"]


@pytest.mark.parametrize("scale", [REAL, TOY])
def test_a_cell_begins_after_what_it_needs(tmp_path: Path, scale: Scale) -> None:
    results = Ledger[Cell](tmp_path / "hello.jsonl")
    work = study.Study(Quick(scale, tmp_path, tmp_path), Still(scale), results)
    every, running = cells(scale), list[Cell]()
    assert all(needed in every[: every.index(cell)] for cell in every for needed in work.needs(cell))
    while left := work.to_do():
        running += startable(work, left, running, 6)
        assert 0 < len(running) == len({*running}) <= 6
        assert all(needed in results for cell in running for needed in work.needs(cell))
        cell = running.pop(len(left) % len(running))  # any may be the first to end
        results.add(cell, {})


def test_a_dry_run_needs_no_data_and_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["study", "--quick", "--dry-run"])
    assert study.main() == 0
    assert "23 cells, 23 of them to do" in capsys.readouterr().out
    assert not [*tmp_path.iterdir()]
    with pytest.raises(InputError, match="GIFTWRAP_DATA"):
        study.data_of(tmp_path, quick=False, needed=True)
