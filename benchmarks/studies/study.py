"""Two studies of students, three seeds each: `make study`.

cifar: hard labels, KL and GIFT on small sets of real CIFAR-10 images. 10 and 50 random images a class of the training
split, labels of ResNet-56 for 200 views of resized crops and flips, ConvNet-D3 students of 200 epochs, each view once.

fidelity: what the fidelity of labels is worth. 1,000 photographs of ten ImageNet classes at 64 px, all 1,000 columns of
a MobileNetV2 for 60 views, the same labels in encodings from float16 down, narrow ConvNet-D4 students of 60 epochs of
GIFT, measured among the ten classes' columns.

Both need the images and weights that GIFTWRAP_DATA names, and continue where they were stopped.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import tyro

from benchmarks.commands import command
from labelstore.command.console import run_command
from labelstore.durable.newfile import write_new, write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError

ROOT = Path("runs/study")
SEEDS = (0, 1, 2)
# The published recipe of GIFT: AdamW at 1e-3, rate x 0.2 at two thirds and five sixths, batches of 50.
RECIPE = (
    "--lr",
    "1e-3",
    "--weight-decay",
    "1e-4",
    "--schedule",
    "step",
    "--schedule-per",
    "epoch",
    "--batch-size",
    50,
)

PER_CLASS = (10, 50)
LOSSES = {"hard": "ce", "kl": "kl", "gift": "gift"}
VIEWS = 200

# The flags of the encodings of the second study; the first is what the teacher's labels are built in.
ENCODINGS: dict[str, tuple[object, ...]] = {
    "float16": ("--encoding", "float16"),
    "int8": ("--encoding", "int8"),
    "transform 0.98": ("--encoding", "transform", "--fidelity", 0.98),
    "transform 0.95": ("--encoding", "transform", "--fidelity", 0.95),
    "transform 0.92": ("--encoding", "transform", "--fidelity", 0.92),
}
EXACT = "float16"
FIDELITY_VIEWS = 60
# Where the ten classes stand among ImageNet's thousand, in byte order of their folders.
IMAGENETTE_COLUMNS = "0,217,482,491,497,566,569,571,574,701"
TEACHER = (
    "--teacher", "timm:mobilenetv2_100", "--teacher-args", '{"pad_type": "same"}',
    "--mean", 0.5, 0.5, 0.5, "--std", 0.5, 0.5, 0.5,
)  # fmt: skip
STUDENT = ("--student", "convnet-d4", "--student-args", '{"width": 32, "norm": "batch"}')


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Run whatever of the studies is missing, then print their tables."""

    only: Literal["cifar", "fidelity"] | None = None
    """One of the studies; both when left out."""


@dataclass(frozen=True)
class Row:
    """Top-1 of the seeds of one loss on one set, in percent: after the last epoch, and at the best."""

    per_class: int
    loss: str
    last: list[float]
    best: list[float]


@dataclass(frozen=True)
class Coded:
    """One encoding: bytes a label, fidelity to the teacher's labels, and top-1 of the seeds at the last epoch in %."""

    encoding: str
    labels: float
    side: float
    fidelity: float
    top1: list[float]


def main() -> int:
    """Run the requested studies."""
    config = tyro.cli(StudyConfig, prog="python -m benchmarks.studies.study")
    data = os.environ.get("GIFTWRAP_DATA")
    if not data:
        raise InputError("set GIFTWRAP_DATA to the folder with cifar10/, imagenette/ and models/")
    studies: dict[str, Callable[[Path], None]] = {"cifar": cifar, "fidelity": fidelity}
    for name in [config.only] if config.only else studies:
        start = time.monotonic()
        studies[name](Path(data))
        print(f"\n  in {time.monotonic() - start:.0f} s")
    return 0


def cifar(data: Path) -> None:
    """What losses are worth."""
    rows = [
        Row(per_class=per_class, loss=name, last=top1(runs, "last"), best=top1(runs, "best"))
        for per_class in PER_CLASS
        for name, runs in cifar_runs(data, per_class).items()
    ]
    print(f"\nCIFAR-10 test accuracy of ConvNet-D3, mean and standard deviation of {len(SEEDS)} seeds\n")
    print("  images a class  loss          last            best")
    for row in rows:
        print(f"  {row.per_class:>14}  {row.loss:<5} {spread(row.last):>15} {spread(row.best):>15}")
    keep(ROOT / "summary.json", rows)


def cifar_runs(data: Path, per_class: int) -> dict[str, list[Mapping[str, Any]]]:
    """Build one store, train three students a loss from it."""
    folder = ROOT / f"{per_class}-a-class"
    images, store = choose_images(data / "cifar10" / "train", folder / "images", per_class), folder / "store"
    command(
        "pipeline", "build", "--images", images, "--teacher", "cifar-resnet56",
        "--weights", data / "models" / "cifar10-resnet56.safetensors", "--size", 32, "--views", VIEWS,
        "--store", store,
    )  # fmt: skip
    test = ("--test-images", data / "cifar10" / "test", "--eval-every", VIEWS // 2)
    return {
        name: students(
            folder / name, store, images, "--student", "convnet-d3", "--loss", loss, "--epochs", VIEWS, *test
        )
        for name, loss in LOSSES.items()
    }


def fidelity(data: Path) -> None:
    """What fidelity is worth: one build by the teacher, conversions of it, three students from each."""
    folder, images = ROOT / "fidelity", data / "imagenette" / "train"
    exact = store_of(folder, EXACT)
    command(
        "pipeline", "build", "--images", images, *TEACHER,
        "--weights", data / "models" / "imagenet-mobilenetv2_100.fp16.safetensors",
        "--class-columns", IMAGENETTE_COLUMNS, "--size", 64, "--views", FIDELITY_VIEWS, *ENCODINGS[EXACT],
        "--store", exact,
    )  # fmt: skip
    test = ("--test-images", data / "imagenette" / "val", "--eval-every", FIDELITY_VIEWS)
    rows = []
    for name, flags in ENCODINGS.items():
        store = store_of(folder, name)
        if name != EXACT:
            command("labelstore", "convert", exact, store, *flags)
        about = command("labelstore", "info", store)
        runs = students(folder / f"{store.name}-student", store, images, *STUDENT, "--epochs", FIDELITY_VIEWS, *test)
        size, kept = about["bytes_per_label"], about["fidelity"]["unmixed"]["mean"]
        rows.append(Coded(name, size["labels"], size["side"], kept, top1(runs, "last")))
    print(f"\nTen ImageNet classes at 64 px, narrow ConvNet-D4: mean and standard deviation of {len(SEEDS)} seeds\n")
    print("  encoding        bytes a label   side  fidelity           top-1")
    for row in rows:
        print(f"  {row.encoding:<15} {row.labels:>13.1f} {row.side:>6.1f}  {row.fidelity:.5f} {spread(row.top1):>15}")
    print(
        f"\n  {cheapest(rows).encoding} is the cheapest whose mean lies no more than one standard deviation below "
        f"that of {EXACT}"
    )
    keep(folder / "summary.json", rows)


def store_of(folder: Path, encoding: str) -> Path:
    """The store of an encoding."""
    return folder / encoding.replace(" ", "-")


def cheapest(rows: Sequence[Coded]) -> Coded:
    """The fewest bytes a label at a mean that is no more than one standard deviation below the exact labels'."""
    (exact,) = (row for row in rows if row.encoding == EXACT)
    least = np.mean(exact.top1) - np.std(exact.top1)
    return min((row for row in rows if np.mean(row.top1) >= least), key=lambda row: row.labels)


def students(run: Path, store: Path, images: Path, *words: object) -> list[Mapping[str, Any]]:
    """Train a student with each seed, in folders that begin with ``run``; their summaries."""
    return [
        command(
            "trainer", "train", "--store", store, "--images", images, *RECIPE, *words, "--seed", seed,
            "--run", run.with_name(f"{run.name}-seed{seed}"),
        )
        for seed in SEEDS
    ]  # fmt: skip


def top1(runs: Sequence[Mapping[str, Any]], when: str) -> list[float]:
    """Top-1 of runs, in percent, at the ``last`` or ``best`` epoch."""
    return [run[when]["top1"] for run in runs]


def spread(values: Sequence[float]) -> str:
    """Mean and standard deviation."""
    return f"{np.mean(values):6.2f} ± {np.std(values):4.2f}"


def keep(path: Path, rows: Sequence[Row | Coded]) -> None:
    """Write the figures of a table."""
    table = [asdict(row) for row in rows]

    def is_table(found: Path) -> bool:
        try:
            return [row.keys() for row in json.loads(found.read_bytes())] == [row.keys() for row in table]
        except (ValueError, AttributeError, TypeError):
            return False

    write_over(path, (json.dumps(table, indent=1) + "\n").encode(), Proof("the table of this study", is_table))
    print(f"\n  table {path}")


def choose_images(source: Path, target: Path, per_class: int) -> Path:
    """Copy ``per_class`` random images of each class, always the same ones."""
    generator = np.random.Generator(np.random.Philox(0))
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        files = sorted(folder.iterdir())
        chosen = sorted(generator.permutation(len(files))[:per_class].tolist())
        (target / folder.name).mkdir(parents=True, exist_ok=True)
        for index in chosen:
            copy = target / folder.name / files[index].name
            if not copy.exists():
                write_new(copy, files[index].read_bytes())
    return target


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.study")))
