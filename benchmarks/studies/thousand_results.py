"""The results of the study of early teachers: a file with a line for each cell that is finished."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.studies.thousand_cells import Cell, Scale, student


class Results:
    """Lines of finished cells, which are not trained again.

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

    def __contains__(self, cell: Cell) -> bool:
        return _key(cell.to_json()) in self._lines

    def of(self, cell: Cell) -> Mapping[str, Any] | None:
        """The line of a cell."""
        return self._lines.get(_key(cell.to_json()))

    def add(self, cell: Cell, values: Mapping[str, Any]) -> None:
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

    def top1(self, scale: Scale, per_class: int, expert: int | None, **more: Any) -> list[float]:
        """Top-1 in percent of the finished students of all seeds."""
        found = [self.of(student(scale, per_class, expert, seed, **more)) for seed in scale.seeds]
        return [line["top1"] for line in found if line]

    def best(self, scale: Scale) -> dict[int, int]:
        """For each number of images a class the epoch of the expert whose students are best, when all are trained."""
        found = {}
        for per_class in scale.several:
            means = {epoch: self.top1(scale, per_class, epoch) for epoch in scale.experts}
            if all(means.values()):
                found[per_class] = max(means, key=lambda epoch: fmean(means[epoch]))
        return found

    def expert(self, epochs: Sequence[int]) -> dict[int, Mapping[str, Any]]:
        """How the expert of the first seed does, by epoch: of runs of these lengths, the longest that is finished."""
        found: dict[int, Mapping[str, Any]] = {}
        for length in sorted(epochs):
            line = self.of(Cell(kind="expert", epochs=length))
            found |= {row["epoch"]: row for row in line["epochs"]} if line else {}
        return found


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)
