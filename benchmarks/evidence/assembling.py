"""Run the missing cells of a suite, judge its claims and write the page."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.evidence.cells import Cell, cells_of
from benchmarks.evidence.lab import Lab, data_folder, left_out, require_runnable
from benchmarks.evidence.lines import read_lines
from benchmarks.evidence.page import page_of
from benchmarks.evidence.suite import Part, Suite
from benchmarks.evidence.verdicts import Judged, judge
from benchmarks.studies.ledger import RESULTS, RUNS, Ledger, drawn_data, is_ledger, print_plan, run_cells
from labelstore.command.console import Console
from labelstore.errors import InputError
from pipeline.networks import build_network, save_weights
from trainer.report.html import require_page, write_page

PAGE = "evidence.html"


@dataclass(frozen=True, kw_only=True)
class Places:
    """Files and folders of one call.

    Attributes:
        results: file with one line of JSON for each finished cell.
        studies: folder with the results of the studies.
        folder: folder of the sets, stores and runs.
        out: folder of the page.
    """

    results: Path
    studies: Path
    folder: Path
    out: Path

    @classmethod
    def of(cls, suite: Suite, out: Path, results: Path | None, folder: Path | None) -> Places:
        """The places of a suite; those of one with drawn images are separate, to keep its results apart."""
        apart = f"evidence-{suite.name}" if suite.draw else "evidence"
        folder = folder or RUNS / apart
        own = results or (folder if suite.draw else RESULTS) / "evidence.jsonl"
        return cls(results=own, studies=RESULTS, folder=folder, out=out)


class Evidence:
    """The cells of some parts, as a `Work` that the ledger plans and runs.

    Args:
        parts: the parts, whose cells run in this order.
        seeds: how many of the seeds to run, from the first; all when None.
        lab: runs the cells.
        results: ledger of the finished cells.
    """

    def __init__(self, parts: Sequence[Part], seeds: int | None, lab: Lab, results: Ledger[Cell]) -> None:
        self._parts, self._seeds, self._lab, self._results = parts, seeds, lab, results
        self._first: dict[str, Cell] = {}  # folder of a step -> the cell whose estimate includes it

    def every(self) -> list[Cell]:
        """All cells, the most important ones of each part first."""
        return [cell for part in self._parts for cell in self._cells(part)]

    def to_do(self) -> list[Cell]:
        """The cells without a line. Their steps run again where the folders are gone."""
        return [cell for cell in self.every() if cell not in self._results]

    def _cells(self, part: Part) -> list[Cell]:
        return cells_of(part, scores(part, self._results), self._seeds)

    def seconds(self, cell: Cell) -> float:
        """Estimated seconds: the median of finished cells of this part and student, plus the steps not run by then."""
        *steps, own = self._lab.commands(cell)
        student = dict(cell.choices).get("student")
        alike = [
            line["seconds"]
            for line in self._results.lines
            if line["cell"].get("part") == cell.part
            and line["cell"].get("student") == student
            and isinstance(line.get("seconds"), int | float)
        ]
        missing = [step for step in steps if not self._lab.place(step.out).exists()]
        first = [step for step in missing if self._first.setdefault(step.out, cell) == cell]
        return (median(alike) if alike else own.seconds) + sum(step.seconds for step in first)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Run or continue a cell."""
        return self._lab.run(cell)

    def meaning(self, cell: Cell) -> str:
        """The title of the cell's part."""
        return next(part.title for part in self._parts if part.name == cell.part)

    def found(self, values: Mapping[str, Any]) -> str:
        """The result of a cell, in words."""
        return f"top-1 {values['top1']:.2f} %" if "top1" in values else str(values.get("found", "done"))


def make_page(
    suite: Suite,
    places: Places,
    console: Console,
    *,
    only: Sequence[str] = (),
    minutes: float | None = None,
    dry: bool = False,
) -> dict[str, Any]:
    """Run the cells that have no line yet, and write the page.

    Args:
        suite: the suite.
        places: where lines, runs and the page are.
        console: where the plan and progress go.
        only: names of the parts whose cells run, in this order; all when empty.
        minutes: time for the cells; the suite's when None.
        dry: only print the plan; run nothing and write nothing.

    Returns:
        The path and size of the page, and the number of claims of each verdict; with ``dry`` the number of cells.

    Raises:
        InputError: a cell cannot run (checked before the first one starts), or a table mixes results of two test sets.
    """
    require_places(places)
    data = data_folder()
    skipped = {part.name: reason for part in suite.parts if (reason := left_out(part, data, drawn=bool(suite.draw)))}
    lab, results = Lab(suite.parts, places.folder, data), Ledger[Cell](places.results)
    parts = [part for part in chosen(suite, only) if part.name not in skipped]
    work, time = Evidence(parts, suite.seeds, lab, results), suite.minutes if minutes is None else minutes
    for part in parts:
        require_runnable(part, lab)
    with redirect_stdout(sys.stderr if console.as_json else sys.stdout):
        for name, reason in skipped.items():
            console.line(f"{name}: not measured here: {reason}")
        if cells := work.to_do():
            print_plan(work, time)
        if cells and not dry:
            if suite.draw:
                draw(places.folder / "data", suite.draw)
            run_cells(work, results, time)
    if dry:
        return {"cells": len(work.every()), "left": len(cells)}
    judged = judge_all(suite, places)
    page = page_of(suite, judged, {cell.part for cell in work.to_do()}, skipped)
    places.out.mkdir(parents=True, exist_ok=True)
    rendered = write_page(page, places.out / PAGE, replace=True)
    verdicts = [each.verdict for each in judged.values()]
    return {
        "page": str(places.out / PAGE),
        "bytes": len(rendered.html),
        **{verdict: verdicts.count(verdict) for verdict in ("holds", "does not hold", "not measured here")},
        "cells left": len(work.to_do()),
    }


def require_places(places: Places) -> None:
    """Refuse places that could not be written, before any cell runs.

    Raises:
        InputError: a folder is a file, or the page or the file of results holds something else.
    """
    for flag, folder in (("--out", places.out), ("--folder", places.folder)):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"{flag} {folder}: expected a folder, found a file")
    require_page(places.out / PAGE, replace=True)
    if places.results.exists() and not is_ledger(places.results):
        raise InputError(
            f"--results {places.results}: expected a file with a line of JSON for each finished cell, found another "
            f"file; give another name"
        )


def chosen(suite: Suite, only: Sequence[str]) -> list[Part]:
    """The parts with these names, in this order; all parts when there are no names."""
    named = {part.name: part for part in suite.parts}
    for name in only:
        if name not in named:
            raise InputError(f"--only: expected parts of suite {suite.name}: {', '.join(named)}, found {name!r}")
    return [named[name] for name in dict.fromkeys(only or named)]


def scores(part: Part, results: Ledger[Cell]) -> dict[Cell, float]:
    """Top-1 of the finished cells of a part, in percent; `picks` needs it."""
    lines = {cell: results.of(cell) for cell in cells_of(part, {})}
    return {cell: line["top1"] for cell, line in lines.items() if line and isinstance(line.get("top1"), int | float)}


def judge_all(suite: Suite, places: Places) -> dict[str, Judged]:
    """Judge every claim of a suite; the keys are part and id.

    Lines of cells count only if the suite still has their command, so that a changed suite shows no old results.
    """
    results = Ledger[Cell](places.results)
    own = {cell.command for part in suite.parts for cell in cells_of(part, scores(part, results))}
    files = {"evidence": [line for line in read_lines(places.results) if line.get("command") in own]}
    judged = {}
    for part in suite.parts:
        for claim in part.claims:
            names = claim.file.split(" + ")
            for name in names:
                if name not in files:
                    files[name] = read_lines(places.studies / f"{name}.jsonl")
            judged[f"{part.name} {claim.id}"] = judge(claim, [line for name in names for line in files[name]])
    return judged


def draw(data: Path, numbers: Mapping[str, Any]) -> None:
    """Draw random images and write the weights of an untrained teacher, where they are missing."""
    drawn_data(data, numbers["images"], numbers["side"])
    weights = data / "teacher.safetensors"
    if not weights.exists():
        network = build_network(numbers["teacher"], numbers["teacher_args"], 10, size=numbers["side"])
        save_weights(network.state_dict(), weights)
