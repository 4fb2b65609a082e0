"""The page of a suite: its missing cells done, its claims judged, and one file made of them."""

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
from labelstore.durable import removing
from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.networks import build_network, save_weights
from trainer.report.html import render

PAGE = Proof("a page of giftwrap", lambda path: path.is_file() and b"giftwrap report" in path.read_bytes()[:4000])


@dataclass(frozen=True, kw_only=True)
class Places:
    """Where a call reads and writes.

    Attributes:
        results: file with a line for each finished cell.
        studies: folder with the lines of the studies.
        folder: for sets, stores and runs.
        out: folder of the page.
    """

    results: Path
    studies: Path
    folder: Path
    out: Path

    @classmethod
    def of(cls, suite: Suite, out: Path, results: Path | None, folder: Path | None) -> Places:
        """The places of a suite; those of drawn images are apart from all others."""
        apart = f"evidence-{suite.name}" if suite.draw else "evidence"
        folder = folder or RUNS / apart
        own = results or (folder if suite.draw else RESULTS) / "evidence.jsonl"
        return cls(results=own, studies=RESULTS, folder=folder, out=out)


class Evidence:
    """The cells of parts.

    Args:
        parts: whose cells are done, in this order.
        seeds: how many seeds are run, the first ones; all when None.
        lab: does cells.
        results: of finished cells.
    """

    def __init__(self, parts: Sequence[Part], seeds: int | None, lab: Lab, results: Ledger[Cell]) -> None:
        self._parts, self._seeds, self._lab, self._results = parts, seeds, lab, results
        self._first: dict[str, Cell] = {}  # the cell whose time has that of a step

    def every(self) -> list[Cell]:
        """All cells, the most important ones of each part first."""
        return [cell for part in self._parts for cell in self._cells(part)]

    def to_do(self) -> list[Cell]:
        """The cells without a line; steps that they need and are gone are made again."""
        return [cell for cell in self.every() if cell not in self._results]

    def _cells(self, part: Part) -> list[Cell]:
        return cells_of(part, scores(part, self._results), self._seeds)

    def seconds(self, cell: Cell) -> float:
        """How long a cell takes, about: as those of its part and student did, and its steps where it is their first."""
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
        """Do a cell, or continue it."""
        return self._lab.run(cell)

    def meaning(self, cell: Cell) -> str:
        """What is done."""
        return next(part.title for part in self._parts if part.name == cell.part)

    def found(self, values: Mapping[str, Any]) -> str:
        """What a cell has found, for people."""
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
    """Do the cells that have no line, and write the page.

    Args:
        suite: with its parts.
        places: where lines, runs and the page are.
        console: where the plan and progress go.
        only: parts whose cells are done, in this order; all when empty.
        minutes: for the cells; the suite's when None.
        dry: print the cells alone.

    Raises:
        InputError: when a cell cannot run, before the first starts, or lines of two test sets meet in a table.
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
    rendered = render(page)
    places.out.mkdir(parents=True, exist_ok=True)
    write_over(places.out / "evidence.html", rendered.html, PAGE)
    found = [each.verdict for each in judged.values()]
    return {
        "page": str(places.out / "evidence.html"),
        "bytes": len(rendered.html),
        **{verdict: found.count(verdict) for verdict in ("holds", "does not hold", "not measured here")},
        "cells left": len(work.to_do()),
    }


def require_places(places: Places) -> None:
    """Refuse, before cells are done, a page or a file of results that could not be written.

    Raises:
        InputError: names it.
    """
    for flag, folder in (("--out", places.out), ("--folder", places.folder)):
        if os.path.lexists(folder) and not folder.is_dir():
            raise InputError(f"{flag} {folder}: expected a folder, found a file")
    if os.path.lexists(page := places.out / "evidence.html"):
        removing.require(page, PAGE)
    if places.results.exists() and not is_ledger(places.results):
        raise InputError(
            f"--results {places.results}: expected a file with a line of JSON for each finished cell, found another "
            f"one; give another name"
        )


def chosen(suite: Suite, only: Sequence[str]) -> list[Part]:
    """The parts of a suite whose cells are wanted, in the order in which they are."""
    named = {part.name: part for part in suite.parts}
    for name in only:
        if name not in named:
            raise InputError(f"--only: expected parts of suite {suite.name}: {', '.join(named)}, found {name!r}")
    return [named[name] for name in dict.fromkeys(only or named)]


def scores(part: Part, results: Ledger[Cell]) -> dict[Cell, float]:
    """Top-1 of the finished cells of a part, by which others are picked."""
    lines = {cell: results.of(cell) for cell in cells_of(part, {})}
    return {cell: line["top1"] for cell, line in lines.items() if line and isinstance(line.get("top1"), int | float)}


def judge_all(suite: Suite, places: Places) -> dict[str, Judged]:
    """Every claim of a suite, by part and id; of the suite's cells, lines of other commands do not count."""
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
    """Drawn images and the weights of a teacher that knows nothing, where they are absent."""
    drawn_data(data, numbers["images"], numbers["side"])
    weights = data / "teacher.safetensors"
    if not weights.exists():
        network = build_network(numbers["teacher"], numbers["teacher_args"], 10, size=numbers["side"])
        save_weights(network.state_dict(), weights)
