"""The results of the study of early teachers: a file with a line for each cell that is finished."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.studies.ledger import Ledger
from benchmarks.studies.thousand_cells import Cell, Scale, student


class Results(Ledger[Cell]):
    """Lines of finished cells, which are not trained again."""

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
