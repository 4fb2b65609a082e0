"""CIFAR-10 images from a generator that was trained for some minutes, and what students learn from them.

    python -m benchmarks.studies.cifar_generator --dry-run
    python -m benchmarks.studies.cifar_generator --minutes 60
    python -m benchmarks.studies.cifar_generator --device cuda --backbone uvit-s --dtype bfloat16 --results gpu.jsonl

A U-ViT learns the 10,000 bundled training images in the latents of taef2 at 64 px, or in pixels (--vae none --side 32).
A published ResNet-56, which has no other part here, judges 1,000 of its images: how often its first choice is the class
that was asked for, and how far their features are from those of the training images, beside those of the test images.
Students (ConvNet-D3) are trained on 10 generated images a class, three seeds, by hard labels, KL and GIFT with a
published ResNet-20 as teacher, beside as many random and RDED images: students of the study of image sets, whose lines
are read, so that none is trained again. 50 images a class come once.

A finished cell is a line of benchmarks/results/cifar-generator.jsonl, and is not done again; a stopped one continues.
GIFTWRAP_DATA names the folder with cifar10/ and models/.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from benchmarks.studies import image_sets, image_sets_cells
from benchmarks.studies.cifar_generator_cells import MEANINGS, REAL, TOY, TOY_MODEL, Cell, Model, Scale, cells
from benchmarks.studies.cifar_generator_run import GeneratorLab, Pace
from benchmarks.studies.cifar_generator_table import Results, report
from benchmarks.studies.ledger import Ledger, StudyConfig, real_data, run_study
from labelstore.command.console import run_command

NAME, MINUTES = "cifar-generator", 60.0


@dataclass(frozen=True, kw_only=True)
class GeneratorStudyConfig(StudyConfig):
    """Do the cells of the study that have no line yet, the most important ones first, and print its tables."""

    device: str = "cpu"
    """cpu, cuda or cuda:N."""
    model: Annotated[Model, tyro.conf.arg(name="")] = field(default_factory=Model)
    """The generator; at toy size its flags are left out."""


class Study:
    """The cells of the study, and what is done for each.

    Args:
        lab: does them.
        pace: of this machine.
        results: of finished cells.
    """

    def __init__(self, lab: GeneratorLab, pace: Pace, results: Results) -> None:
        self._lab, self._results = lab, results
        self.seconds, self.run = pace.seconds, lab.run

    def every(self) -> list[Cell]:
        """All cells, the most important ones first."""
        return cells(self._lab.scale, self._lab.model.name)

    def to_do(self) -> list[Cell]:
        """The cells without a line, each after those whose files it needs and which are gone."""
        found: list[Cell] = []
        for cell in self.every():
            if self._results.of(cell) is None:
                found += [*self._needed(cell), cell]
        return list(dict.fromkeys(found))

    def _needed(self, cell: Cell) -> list[Cell]:
        """What a cell needs that has a line and no files."""
        lab, found = self._lab, []
        needs_set = cell.kind == "student" and not lab.images(cell).exists()
        if not lab.sets.weights(lab.scale.data).exists():
            found.append(Cell(kind="teacher"))
        if (cell.kind == "judged" or (cell.model and needs_set)) and not lab.run_folder.exists():
            found.append(Cell(kind="generator", model=lab.model.name))
        if needs_set:
            found.append(
                Cell(kind="set", model=cell.model, method=cell.method, per_class=cell.per_class, seed=cell.seed)
            )
        return [each for each in found if each != cell and self._results.of(each) is not None]

    def meaning(self, cell: Cell) -> str:
        """What is done."""
        return MEANINGS[cell.kind]

    def found(self, values: Mapping[str, Any]) -> str:
        """The result of a cell as text."""
        if "top1" in values:
            return f"top-1 {values['top1']:.2f} %"
        if "distance" in values:
            return (
                f"the judge agrees with {values['agreement']:.1f} % of the classes; distance "
                f"{values['distance']:.3f}, floor {values['floor_of_as_many']:.3f}"
            )
        return f"{values['steps']:,} steps, loss {values['loss']:.4f}" if "loss" in values else "made"


def main() -> int:
    """Run what is left of the study."""
    config = tyro.cli(GeneratorStudyConfig, prog="python -m benchmarks.studies.cifar_generator")
    scale, model = (TOY, TOY_MODEL) if config.quick else (REAL, config.model)
    folder, path = config.places(NAME)
    others = None if config.quick else Ledger[image_sets_cells.Cell](image_sets.RESULTS)
    results = Results(path, scale, others)
    data = data_of(scale, folder, quick=config.quick, needed=not config.dry_run)
    lab = GeneratorLab(scale, model, folder, data, config.device, path.with_suffix(".png"))
    study = Study(lab, Pace(lab, config.device), results)
    run_study(config, study, results, MINUTES, lambda: report(scale, results))
    return 0


def data_of(scale: Scale, folder: Path, *, quick: bool, needed: bool) -> Path:
    """The folder of all data sets; drawn for a toy.

    Raises:
        InputError: when images are needed and GIFTWRAP_DATA does not name them.
    """
    if quick:
        return image_sets.data_of(folder, quick=True, needed=needed)
    return real_data([scale.data.train], "cifar10/ and models/", needed=needed)


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.cifar_generator")))
