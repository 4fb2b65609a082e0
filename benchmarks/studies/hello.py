"""HeLlO on CIFAR-10: a projector of weak teachers, students of its labels, and what each part of it is worth.

    python -m benchmarks.studies.hello --dry-run
    python -m benchmarks.studies.hello --minutes 60

Nine checkpoints of one run of a ConvNet-D3 of width 64, on the 10,000 bundled images, are weak teachers. Projectors on
ImageNet's MobileNetV2, CIFAR-10 rendered at 64 px for it, learn their mean logits, or those of a published ResNet-56.
Students, ConvNet-D3 too, learn from 10 images a class, random ones (centre fit) and RDED's: by hard labels, by stored
labels of the weak teachers and of ResNet-56, and by projectors online. The ablation is the paper's: a linear probe,
+ weak teachers, + LoRA, + a head that starts from class means (where the paper has text), + the image update.

It is sized for 60 minutes on 2 CPU cores, and so differs from the paper (arXiv 2408.08201), whose sets are ImageNet's,
whose encoder is CLIP's RN50, and which states neither epochs nor rates: projectors of 2 epochs, students of 80. The
linear probe weighs its hard cross-entropy 10,000 times as much as the squared error. The last evaluation counts.

A finished cell is a line of benchmarks/results/hello.jsonl, and is not done again. A stopped cell continues where it
was stopped. GIFTWRAP_DATA names the folder with cifar10/ and models/.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.step import draw_set
from benchmarks.studies.hello_cells import MEANINGS, REAL, TOY, Cell, cells
from benchmarks.studies.hello_run import Lab, Pace
from benchmarks.studies.hello_table import report
from benchmarks.studies.ledger import Ledger, print_plan, run_cells
from labelstore.command.console import run_command
from labelstore.errors import InputError
from pipeline.networks import build_network, save_weights

RESULTS = Path("benchmarks/results/hello.jsonl")
FOLDER = Path("runs/hello")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Do the cells of the study that have no line yet, the most important ones first, and print its tables."""

    dry_run: bool = False
    """Print all cells and how long they take, by the pace that is measured now, and do nothing."""
    minutes: float = 60.0
    """Time for this call: a cell that would take longer than what is left of it is not started."""
    results: Path | None = None
    """File with a line for each finished cell; the tables are written beside it."""
    folder: Path | None = None
    """Folder for sets, stores and runs, runs/hello when left out."""
    quick: bool = False
    """The same at toy size, on drawn images, in a folder and a file of its own."""


class Study:
    """The cells of the study, and what is done for each.

    Args:
        lab: does them.
        pace: of this machine.
        results: of finished cells.
    """

    def __init__(self, lab: Lab, pace: Pace, results: Ledger[Cell]) -> None:
        self._lab, self._pace, self._results = lab, pace, results

    def every(self) -> list[Cell]:
        """All cells, the most important ones first."""
        return cells(self._lab.scale)

    def to_do(self) -> list[Cell]:
        """The cells without a line; the lab makes again what they need and is gone."""
        return [cell for cell in self.every() if cell not in self._results]

    def seconds(self, cell: Cell) -> float:
        """How long a cell takes, about."""
        return self._pace.seconds(cell)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it."""
        return self._lab.run(cell)

    def meaning(self, cell: Cell) -> str:
        """What is done."""
        return MEANINGS[cell.kind]

    def found(self, values: Mapping[str, Any]) -> str:
        """What a cell has found, for people."""
        if "top1" in values:
            return f"top-1 {values['top1']:.2f} %"
        agreement = values["agreement"]
        return "made" if agreement is None else f"made, the strong teacher agrees with {agreement:.1f} % of the targets"


def main() -> int:
    """Run what is left of the study."""
    config = tyro.cli(StudyConfig, prog="python -m benchmarks.studies.hello")
    scale = TOY if config.quick else REAL
    folder = config.folder or FOLDER.with_name(f"{FOLDER.name}{'-quick' * config.quick}")
    results: Ledger[Cell] = Ledger(config.results or (folder / RESULTS.name if config.quick else RESULTS))
    lab = Lab(scale, folder, data_of(folder, quick=config.quick, needed=not config.dry_run))
    study = Study(lab, Pace(scale), results)
    if config.dry_run:
        print_plan(study, config.minutes)
        return 0
    run_cells(study, results, config.minutes)
    print(f"\n{report(scale, results)}")
    return 0


def data_of(folder: Path, *, quick: bool, needed: bool) -> Path:
    """The folder of all data sets; drawn for a toy.

    Raises:
        InputError: when images are needed and GIFTWRAP_DATA does not name them.
    """
    if quick:
        if needed and not (folder / "data").exists():
            draw_data(folder / "data")
        return folder / "data"
    data = Path(os.environ.get("GIFTWRAP_DATA", ""))
    if needed and not all((data / each).exists() for each in (REAL.train, REAL.encoder.weights, REAL.strong.weights)):
        raise InputError("set GIFTWRAP_DATA to the folder with cifar10/ and models/")
    return data


def draw_data(data: Path) -> None:
    """Images and weights of a toy."""
    for split in (TOY.train, TOY.test):
        draw_set(data / split, TOY.images, (TOY.size, TOY.size))
    network = build_network(TOY.encoder.name, TOY.encoder.args, 10, size=TOY.size)
    save_weights(network.state_dict(), data / TOY.encoder.weights)


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.hello")))
