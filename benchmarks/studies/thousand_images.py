"""Early teachers on random real images, after "A Label is Worth a Thousand Images" (arXiv 2406.10485), on CIFAR-10.

    python -m benchmarks.studies.thousand_images --dry-run
    python -m benchmarks.studies.thousand_images --minutes 40

Experts are ConvNet-D3, trained on the 10,000 bundled images without augmentation, by SGD at a constant 0.01 with
momentum 0.9 in batches of 256. Students are ConvNet-D3 on 1 to 50 random images a class, each with one label, by the
recipe no-distillation, tested on the 10,000 test images after their last step.

It is sized for 40 minutes on 2 CPU cores, and so differs from the paper: 10,000 training images, not 50,000; experts
of some hundred steps at that rate, where the paper takes 5e-4 without momentum for some 25,000 steps, with DSA;
students of 150 to 300 steps, in batches of 10 (1 image a class), 15 (3), 25 (10) and 50 (50), where the paper takes
3,000 epochs in batches of 256; no ZCA whitening; one kind of DSA a crop, not a batch; the last evaluation, where the
paper reports the best one.

A finished cell is a line of benchmarks/results/thousand-images.jsonl, and is not trained again. A stopped cell
continues where it was stopped. Cells are trained in the order of their importance until the time is used up.
GIFTWRAP_DATA names the folder with cifar10/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import tyro

from benchmarks.studies.ledger import StudyConfig, drawn_data, real_data, run_study
from benchmarks.studies.thousand_cells import CIFAR, MEANINGS, TOY, Cell, cells, kept
from benchmarks.studies.thousand_results import Results
from benchmarks.studies.thousand_run import Lab, Pace
from benchmarks.studies.thousand_table import report
from labelstore.command.console import run_command

NAME, MINUTES = "thousand-images", 40.0


def main() -> int:
    """Run what is left of the study."""
    config = tyro.cli(StudyConfig, prog="python -m benchmarks.studies.thousand_images")
    scale = TOY if config.quick else CIFAR
    folder, path = config.places(NAME)
    results = Results(path)
    lab = Lab(scale, folder, data_of(folder, quick=config.quick, needed=not config.dry_run))
    pace = Pace(scale)
    print(f"measured: {pace.crops_per_second:,.0f} crops/s of {scale.network} in steps of 100")
    run_study(config, Study(lab, pace, results), results, MINUTES, lambda: report(scale, results))
    return 0


def data_of(folder: Path, *, quick: bool, needed: bool) -> Path:
    """The folder with the class folders ``train`` and ``test``; drawn for a toy.

    Raises:
        InputError: when images are needed and GIFTWRAP_DATA does not name them.
    """
    if not quick:
        return real_data(["cifar10/train"], "cifar10/train and cifar10/test", needed=needed) / "cifar10"
    return drawn_data(folder / "data", TOY.images, TOY.side) if needed else folder / "data"


class Study:
    """The cells of the study, and what is done for each.

    Args:
        lab: trains them.
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
        """The cells without a line, after experts whose weights are needed and are gone."""
        lab, results, every = self._lab, self._results, self.every()
        left = [cell for cell in every if cell not in results]
        gone = [cell.expert for cell in left if cell.expert is not None and not lab.weights(cell.expert).exists()]
        again = [
            cell
            for cell in every
            if cell.kind == "expert" and cell.seed == 0 and cell in results and {*gone} & {*kept(lab.scale, cell)}
        ]
        return [*again, *left]

    def meaning(self, cell: Cell) -> str:
        """What is trained."""
        return MEANINGS[cell.kind]

    def found(self, values: Mapping[str, Any]) -> str:
        """The result of a cell as text."""
        rows = values.get("epochs")
        last = rows[-1] if isinstance(rows, list) else values
        return f"top-1 {last['top1']:.2f} %"


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.thousand_images")))
