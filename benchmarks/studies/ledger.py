"""What studies of many cells have in common: lines of finished cells, their order, time and progress."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Generic, Protocol, TypeVar

from benchmarks.harness import machine
from labelstore.command.console import duration


class Cell(Protocol):
    """One training, or another piece of work of a study, that is done once."""

    @property
    def name(self) -> str:
        """In words; unique in the study."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, as a line of results has them."""


CellT = TypeVar("CellT", bound=Cell)
InT = TypeVar("InT", bound=Cell, contravariant=True)


class Ledger(Generic[InT]):
    """Lines of finished cells, which are not done again.

    Args:
        path: of the file; a last line that was cut off is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, Mapping[str, Any]] = {}
        for text in path.read_text().splitlines() if path.exists() else []:
            try:
                line = json.loads(text)
                self._lines[_key(line["cell"])] = line
            except (ValueError, LookupError, TypeError):
                continue

    def __contains__(self, cell: InT) -> bool:
        return _key(cell.to_json()) in self._lines

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """All lines, in the order in which their cells were finished."""
        return [*self._lines.values()]

    def of(self, cell: InT) -> Mapping[str, Any] | None:
        """The line of a cell."""
        return self._lines.get(_key(cell.to_json()))

    def add(self, cell: InT, values: Mapping[str, Any]) -> None:
        """Append a line, durably."""
        line = {"cell": cell.to_json(), **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.read_bytes() if self.path.exists() else b"\n"
        cut_off = not before.endswith(b"\n")
        with self.path.open("a") as file:
            file.write("\n" * cut_off + json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self._lines[_key(line["cell"])] = line


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


class Work(Protocol[CellT]):
    """A study."""

    def every(self) -> Sequence[CellT]:
        """All its cells, the most important ones first; they may depend on what has been found."""

    def to_do(self) -> Sequence[CellT]:
        """The cells without a line, in that order, after those whose files are needed again and are gone."""

    def seconds(self, cell: CellT, /) -> float:
        """How long a cell takes, about."""

    def run(self, cell: CellT, /) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line, with its ``seconds``."""

    def meaning(self, cell: CellT, /) -> str:
        """What is done, for people."""

    def found(self, values: Mapping[str, Any], /) -> str:
        """What a cell has found, for people."""


def run_cells(work: Work[CellT], ledger: Ledger[CellT], minutes: float) -> None:
    """Do cell after cell until all are finished or the time is used up.

    What is still to come is estimated by the study, corrected by how long finished cells of this call took.
    """
    start, expected, taken = time.monotonic(), 0.0, 0.0
    while left := work.to_do():
        cell, factor = left[0], taken / expected if expected else 1.0
        used, estimate = time.monotonic() - start, work.seconds(cell)
        if used + factor * estimate > 60 * minutes:
            needed = duration(factor * estimate)
            print(f"{len(left)} cells are left; the next one takes {needed}, more than --minutes leaves")
            return
        values = work.run(cell)
        expected, taken = expected + estimate, taken + values["seconds"]
        if cell not in ledger:
            ledger.add(cell, {**values, "estimate": round(estimate, 1), "machine": machine()})
        after = sum(map(work.seconds, work.to_do())) * taken / expected
        print(
            f"{cell.name}: {work.found(values)} in {values['seconds']:.0f} s; about {duration(after)} left", flush=True
        )


def print_plan(work: Work[CellT], minutes: float) -> None:
    """Print every cell that is left, how long it takes, and where the time ends."""
    left, used, fitting = work.to_do(), 0.0, 0
    print(f"{len(work.every())} cells, {len(left)} of them to do:")
    for cell in left:
        seconds = work.seconds(cell)
        used += seconds
        fits = used <= 60 * minutes
        fitting += fits
        note = "" if fits else f"  beyond {minutes:g} minutes"
        print(f"  {cell.name:<42} {work.meaning(cell):<40} {seconds:6.0f} s {duration(used):>12}{note}")
    print(f"{duration(used)} for all; {fitting} of {len(left)} cells fit into {minutes:g} minutes")
