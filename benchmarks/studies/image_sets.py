"""Random, RDED and SRe2L images by hard labels, KL and GIFT, on CIFAR-10 and Imagenette.

    python -m benchmarks.studies.image_sets --dry-run
    python -m benchmarks.studies.image_sets --minutes 60

Sets of 1 and 10 images a class are made by `giftwrap synthesize`, three seeds each: random images (centre fit), RDED
(factor 1 for CIFAR-10 at 32 px, 2 for Imagenette at 64 px) and SRe2L. Students are trained by the recipe gift: on hard
labels (cross-entropy), and from a store by KL and by GIFT. Random images and hard labels are the controls
(arXiv 2604.18811). CIFAR-10: a published ResNet-20 as teacher, ConvNet-D3 as student, ResNet-20 on the best cell.
Imagenette: ConvNet-D4 of width 32 as teacher, trained here on the 100 bundled images a class, and as student.

It is sized for 60 minutes on 2 CPU cores, and so differs from the papers: pools of 300 (CIFAR-10) and 100 images a
class; SRe2L with 300 steps, where the authors take 1,000 to 4,000; students of 150 steps, where GIFT takes 1,000
epochs and RDED 300; a teacher that is weak on Imagenette; the last evaluation, where the papers report the best one.

A finished cell is a line of benchmarks/results/image-sets.jsonl, and is not done again. A stopped cell continues where
it was stopped. GIFTWRAP_DATA names the folder with cifar10/, imagenette/ and models/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from benchmarks.studies.image_sets_cells import MEANINGS, REAL, TOY, Cell, cells
from benchmarks.studies.image_sets_run import Lab, Pace
from benchmarks.studies.image_sets_table import Results, report
from benchmarks.studies.ledger import StudyConfig, drawn_data, real_data, run_study
from labelstore.command.console import run_command

NAME, MINUTES = "image-sets", 60.0
RESULTS = Path("benchmarks/results/image-sets.jsonl")  # which other studies read too


class Study:
    """The cells of the study, and what is done for each.

    Args:
        lab: does them.
        pace: of this machine.
        results: of finished cells.
    """

    def __init__(self, lab: Lab, pace: Pace, results: Results) -> None:
        self._lab, self._results = lab, results
        self.seconds, self.run = pace.seconds, lab.run

    def every(self) -> list[Cell]:
        """All cells, the most important ones first."""
        return cells(self._lab.scale, self._results.best(self._lab.scale))

    def to_do(self) -> list[Cell]:
        """The cells without a line, each after those whose files it needs and which are gone."""
        found: list[Cell] = []
        for cell in self.every():
            if cell in self._results:
                continue
            found += [each for each in self._needed(cell) if each not in found]
            found.append(cell)
        return list(dict.fromkeys(found))

    def _needed(self, cell: Cell) -> list[Cell]:
        """The teacher and the set of a cell, where they have a line and no files."""
        lab = self._lab
        data = lab.scale.named(cell.data)
        needed = [] if lab.weights(data).exists() else [Cell(kind="teacher", data=cell.data)]
        if cell.kind == "student" and not lab.images(cell).exists():
            needed.append(
                Cell(kind="set", data=cell.data, method=cell.method, per_class=cell.per_class, seed=cell.seed)
            )
        return [each for each in needed if each != cell and each in self._results]

    def meaning(self, cell: Cell) -> str:
        """What is done."""
        return MEANINGS[cell.kind]

    def found(self, values: Mapping[str, Any]) -> str:
        """The result of a cell as text."""
        if "top1" in values:
            return f"top-1 {values['top1']:.2f} %"
        return f"made, the teacher agrees with {values['agreement']:.1f} % of the targets"


def main() -> int:
    """Run what is left of the study."""
    config = tyro.cli(StudyConfig, prog="python -m benchmarks.studies.image_sets")
    scale = TOY if config.quick else REAL
    folder, path = config.places(NAME)
    results = Results(path)
    lab = Lab(scale, folder, data_of(folder, quick=config.quick, needed=not config.dry_run))
    study = Study(lab, Pace(scale), results)
    run_study(config, study, results, MINUTES, lambda: report(scale, results))
    return 0


def data_of(folder: Path, *, quick: bool, needed: bool) -> Path:
    """The folder of all data sets; drawn for a toy.

    Raises:
        InputError: when images are needed and GIFTWRAP_DATA does not name them.
    """
    if not quick:
        wanted = [each.train for each in REAL.data]
        return real_data(wanted, "cifar10/, imagenette/ and models/", needed=needed)
    return drawn_data(folder / "data", 40, TOY.data[0].side) if needed else folder / "data"


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.image_sets")))
