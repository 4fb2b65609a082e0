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

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import tyro

from benchmarks.harness import machine
from benchmarks.studies.thousand_cells import CIFAR, MEANINGS, TOY, Cell, cells, kept
from benchmarks.studies.thousand_results import Results
from benchmarks.studies.thousand_run import Lab, Pace
from benchmarks.studies.thousand_table import report
from labelstore.command.console import duration, run_command
from labelstore.errors import InputError

RESULTS = Path("benchmarks/results/thousand-images.jsonl")
FOLDER = Path("runs/thousand-images")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Train the cells of the study that have no line yet, the most important ones first, and print its table."""

    dry_run: bool = False
    """Print all cells and how long they take, by the pace that is measured now, and train nothing."""
    minutes: float = 40.0
    """Time for this call: a cell that would take longer than what is left of it is not started."""
    results: Path | None = None
    """File with a line for each finished cell; table and picture are written beside it."""
    folder: Path | None = None
    """Folder for images, stores and runs, runs/thousand-images when left out."""
    quick: bool = False
    """The same at toy size, on drawn images, in a folder and a file of its own."""


def main() -> int:
    """Run what is left of the study."""
    config = tyro.cli(StudyConfig, prog="python -m benchmarks.studies.thousand_images")
    scale = TOY if config.quick else CIFAR
    folder = config.folder or FOLDER.with_name(f"{FOLDER.name}{'-quick' * config.quick}")
    results = Results(config.results or (folder / RESULTS.name if config.quick else RESULTS))
    lab = Lab(scale, folder, data_of(folder, quick=config.quick, needed=not config.dry_run))
    pace = Pace(scale)
    print(f"measured: {pace.crops_per_second:,.0f} crops/s of {scale.network} in steps of 100")
    if config.dry_run:
        print_plan(lab, pace, results, config.minutes)
        return 0
    run(lab, pace, results, config.minutes)
    print(f"\n{report(scale, results)}")
    return 0


def data_of(folder: Path, *, quick: bool, needed: bool) -> Path:
    """The folder with the class folders ``train`` and ``test``; drawn for a toy.

    Raises:
        InputError: when images are needed and GIFTWRAP_DATA does not name them.
    """
    if quick:
        from benchmarks.step import draw_set

        for split in ("train", "test"):
            if needed and not (folder / "data" / split).exists():
                draw_set(folder / "data" / split, TOY.images, (TOY.side, TOY.side))
        return folder / "data"
    data = Path(os.environ.get("GIFTWRAP_DATA", "")) / "cifar10"
    if needed and not (data / "train").is_dir():
        raise InputError("set GIFTWRAP_DATA to the folder with cifar10/train and cifar10/test")
    return data


def to_do(lab: Lab, results: Results) -> list[Cell]:
    """The cells without a line, the most important ones first, after experts whose weights are needed and are gone."""
    every = cells(lab.scale, results.best(lab.scale))
    left = [cell for cell in every if cell not in results]
    gone = [cell.expert for cell in left if cell.expert is not None and not lab.weights(cell.expert).exists()]
    again = [
        cell
        for cell in every
        if cell.kind == "expert" and cell.seed == 0 and cell in results and {*gone} & {*kept(lab.scale, cell)}
    ]
    return [*again, *left]


def run(lab: Lab, pace: Pace, results: Results, minutes: float) -> None:
    """Train cell after cell until all are finished or the time is used up.

    What is still to come is estimated by the measured pace, corrected by how long finished cells of this call took.
    """
    start, expected, taken = time.monotonic(), 0.0, 0.0
    while left := to_do(lab, results):
        cell, factor = left[0], taken / expected if expected else 1.0
        used, estimate = time.monotonic() - start, pace.seconds(cell)
        if used + factor * estimate > 60 * minutes:
            needed = duration(factor * estimate)
            print(f"{len(left)} cells are left; the next one takes {needed}, more than --minutes leaves")
            return
        values = lab.run(cell)
        expected, taken = expected + estimate, taken + values["seconds"]
        if cell not in results:
            results.add(cell, {**values, "estimate": round(estimate, 1), "machine": machine()})
        after = sum(map(pace.seconds, to_do(lab, results))) * taken / expected
        print(f"{cell.name}: {found(values)} in {values['seconds']:.0f} s; about {duration(after)} left", flush=True)


def found(values: dict[str, object]) -> str:
    """What a cell has found, for people."""
    rows = values.get("epochs")
    last = rows[-1] if isinstance(rows, list) else values
    return f"top-1 {last['top1']:.2f} %"


def print_plan(lab: Lab, pace: Pace, results: Results, minutes: float) -> None:
    """Print every cell, how long it takes, and where the time ends."""
    left, used = to_do(lab, results), 0.0
    print(f"{len(cells(lab.scale, results.best(lab.scale)))} cells, {len(left)} of them to train:")
    fitting = 0
    for cell in left:
        seconds = pace.seconds(cell)
        used += seconds
        fits = used <= 60 * minutes
        fitting += fits
        note = "" if fits else f"  beyond {minutes:g} minutes"
        print(f"  {cell.name:<42} {MEANINGS[cell.kind]:<40} {seconds:6.0f} s {duration(used):>12}{note}")
    print(f"{duration(used)} for all; {fitting} of {len(left)} cells fit into {minutes:g} minutes")


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.thousand_images")))
