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
``--device cuda --jobs 6`` does several cells at the same time on a GPU, in minutes.

A finished cell is a line of benchmarks/results/hello.jsonl, and is not done again. A stopped cell continues where it
was stopped. GIFTWRAP_DATA names the folder with cifar10/ and models/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from benchmarks.studies.hello_cells import MEANINGS, REAL, TOY, Cell, cells, needs
from benchmarks.studies.hello_run import Lab, Pace
from benchmarks.studies.hello_table import report
from benchmarks.studies.jobs import run_together
from benchmarks.studies.ledger import Ledger, StudyConfig, drawn_data, real_data, run_study
from labelstore.command.console import run_command
from labelstore.errors import InputError
from pipeline.networks import build_network, save_weights

NAME, MINUTES = "hello", 60.0


@dataclass(frozen=True, kw_only=True)
class HelloConfig(StudyConfig):
    """Do the cells of the study that have no line yet, the most important ones first, and print its tables."""

    device: str = "cpu"
    """cpu, cuda or cuda:N, for all commands of the study."""
    jobs: int = 1
    """Cells at the same time, each in a process; 6 suit a GPU. On a CPU one takes all cores."""

    def __post_init__(self) -> None:
        """Refuse a number of processes that cannot be."""
        if self.jobs < 1:
            raise InputError(f"--jobs: expected at least 1, found {self.jobs}")


class Study:
    """The cells of the study, and what is done for each.

    Args:
        lab: does them.
        pace: of this machine.
        results: of finished cells.
    """

    def __init__(self, lab: Lab, pace: Pace, results: Ledger[Cell]) -> None:
        self._lab, self._results = lab, results
        self.seconds, self.run = pace.seconds, lab.run

    def every(self) -> list[Cell]:
        """All cells, the most important ones first."""
        return cells(self._lab.scale)

    def to_do(self) -> list[Cell]:
        """The cells without a line; the lab makes again what they need and is gone."""
        return [cell for cell in self.every() if cell not in self._results]

    def needs(self, cell: Cell) -> list[Cell]:
        """Cells that have to be finished before it begins."""
        return needs(self._lab.scale, cell)

    def alone(self, cell: Cell) -> bool:
        """No cell measures time."""
        del cell
        return False

    def meaning(self, cell: Cell) -> str:
        """What is done."""
        return MEANINGS[cell.kind]

    def found(self, values: Mapping[str, Any]) -> str:
        """The result of a cell as text."""
        if "top1" in values:
            return f"top-1 {values['top1']:.2f} %"
        agreement = values["agreement"]
        return "made" if agreement is None else f"made, the strong teacher agrees with {agreement:.1f} % of the targets"


def main() -> int:
    """Run what is left of the study."""
    config = tyro.cli(HelloConfig, prog="python -m benchmarks.studies.hello")
    scale = TOY if config.quick else REAL
    folder, path = config.places(NAME)
    results = Ledger[Cell](path)
    data = data_of(folder, quick=config.quick, needed=not config.dry_run)
    study = Study(Lab(scale, folder, data, config.device, config.jobs), Pace(scale, config.device), results)

    def together(minutes: float) -> None:
        run_together(study, results, minutes, config.jobs)

    run = together if config.jobs > 1 else None
    run_study(config, study, results, MINUTES, lambda: report(scale, results), run)
    return 0


def data_of(folder: Path, *, quick: bool, needed: bool) -> Path:
    """The folder of all data sets; drawn for a toy.

    Raises:
        InputError: when images are needed and GIFTWRAP_DATA does not name them.
    """
    if not quick:
        wanted = (REAL.train, REAL.encoder.weights, REAL.strong.weights)
        return real_data(wanted, "cifar10/ and models/", needed=needed)
    if needed:
        draw_data(folder / "data")
    return folder / "data"


def draw_data(data: Path) -> None:
    """Images and weights of a toy, where they are absent."""
    drawn_data(data, TOY.images, TOY.size)
    if (data / TOY.encoder.weights).exists():
        return
    network = build_network(TOY.encoder.name, TOY.encoder.args, 10, size=TOY.size)
    save_weights(network.state_dict(), data / TOY.encoder.weights)


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.hello")))
