"""Generated digits: whether a teacher recognises them, and what students learn from ten of each class.

    python -m benchmarks.studies.digits_generator

A U-ViT of 0.6 million parameters learns scikit-learn's digits in pixels, 8 x 8, from two thirds of them. Its images are
shown to the demo's teacher, and students are trained on ten generated images a class, and on ten real ones, by hard
labels and by GIFT, three seeds each, as in `make demo`; they are tested on the other third, real ones all.

Some fifteen minutes on two quiet cores, 8 of them for the generator. A finished cell is a line of
benchmarks/results/digits-generator.jsonl, and is not run again; a stopped one continues.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any, Literal

import numpy as np
import tyro
from PIL import Image

from benchmarks import demo
from benchmarks.commands import command
from benchmarks.harness import machine
from benchmarks.studies.ledger import Ledger
from labelstore.command.console import run_command
from labelstore.errors import InputError

RESULTS = Path("benchmarks/results/digits-generator.jsonl")
FOLDER = Path("runs/digits-generator")
SIDE = 8  # original side of the digits
SHOWN, LEARNT = 50, 10  # images a class that the teacher is shown, and that students learn from
BACKBONE = ("--backbone", "uvit-xs", "--backbone-args", '{"dim": 96, "depth": 4, "heads": 4}')


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Run the cells that have no line yet, and print all."""

    minutes: float = 8.0
    """Time of the generator's training; a new value needs a --folder and --results of its own."""
    steps: int | None = None
    """Instead of --minutes: steps."""
    prediction: Literal["epsilon", "v"] = "v"
    """What the generator predicts."""
    views: int = demo.VIEWS
    """Views of each set, and epochs of each student."""
    folder: Path = FOLDER
    """Folder for images, stores and runs."""
    results: Path = RESULTS
    """File with a line for each finished cell."""


@dataclass(frozen=True)
class Step:
    """A cell of the study, by its name."""

    name: str

    def to_json(self) -> dict[str, Any]:
        """As a line of results has it."""
        return {"name": self.name}


def add(lines: Ledger[Step], name: str, start: float, values: Mapping[str, Any]) -> None:
    """Keep what a cell has found, and print it."""
    lines.add(Step(name), {**values, "seconds": round(time.monotonic() - start, 1), "machine": machine()})
    print(f"\n{name}: {json.dumps(values)}", flush=True)


def write_digits(root: Path) -> None:
    """Write real/ and small/ class folders of the digits that the demo trains on, 8 x 8, unchanged."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    counts = [0] * 10
    for index, (image, target) in enumerate(zip(pixels, digits.target.tolist(), strict=True)):
        if index % demo.TEST_SHARE == 0:
            continue
        picture = Image.fromarray(image).convert("RGB")
        demo.save_once(picture, root / "real" / str(target) / f"{index:04d}.png")
        if counts[target] < LEARNT:
            demo.save_once(picture, root / "small" / str(target) / f"{index:04d}.png")
        counts[target] += 1


def main() -> int:
    """Run what is left of the study."""
    config = tyro.cli(StudyConfig, prog="python -m benchmarks.studies.digits_generator")
    root, lines = config.folder, Ledger[Step](config.results)
    try:
        demo.write_digits(demo.ROOT)
        write_digits(root)
    except ImportError as error:
        raise InputError("the study needs scikit-learn: pip install 'giftwrap[demo]'") from error
    weights = demo.train_teacher(demo.ROOT)
    teacher = (
        "--teacher", "convnet-d3", "--teacher-args", demo.NORM, "--weights", weights, "--mean", *demo.MEAN,
        "--std", *demo.STD, "--size", demo.SIDE,
    )  # fmt: skip
    start = time.monotonic()
    if Step("generator") not in lines:
        length = ("--minutes", config.minutes) if config.steps is None else ("--steps", config.steps)
        made = command(
            "giftwrap", "train-generator", "--images", root / "real", "--size", SIDE, *BACKBONE, "--flip", 0,
            "--prediction", config.prediction, "--lr", 2e-3, *length, "--run-folder", root / "generator",
        )  # fmt: skip
        kept = ("steps", "epochs", "parameters", "last", "best")
        add(lines, "generator", start, {name: made[name] for name in kept})
    start = time.monotonic()
    if Step("recognised") not in lines:
        made = command(
            "giftwrap", "synthesize", "diffusion", "--model", root / "generator", "--ipc", SHOWN,
            *teacher, "--out", root / "shown", "--sheet", root / "shown.png",
        )  # fmt: skip
        add(lines, "recognised", start, {"images": made["images"], **made["teacher"]})
    command(
        "giftwrap", "synthesize", "diffusion", "--model", root / "generator", "--ipc", LEARNT, "--out", root / "ten"
    )
    for name, images in (("generated", root / "ten"), ("real", root / "small")):
        for loss, label in (("ce", "hard"), ("gift", "gift")):
            if Step(f"{name} {label}") not in lines:
                start = time.monotonic()
                add(lines, f"{name} {label}", start, student(config, images, name, loss, teacher))
    report({line["cell"]["name"]: line for line in lines.lines})
    return 0


def student(config: StudyConfig, images: Path, name: str, loss: str, teacher: tuple[Any, ...]) -> dict[str, Any]:
    """Top-1 on real test digits of three students, in percent."""
    store = config.folder / f"labels-{name}"
    command(
        "giftwrap", "build", "--images", images, *teacher, "--views", config.views, "--scale", 0.4, 1, "--flip", 0,
        "--store", store,
    )  # fmt: skip
    summary = command(
        "giftwrap", "train", "--store", store, "--images", images, "--student", "convnet-d3", "--student-args",
        demo.NORM, "--loss", loss, "--epochs", config.views, "--batch-size", 50, "--lr", 2e-3, "--seeds", 0, 1, 2,
        "--test-images", demo.ROOT / "test", "--run-folder", config.folder / "students" / f"{name}-{loss}",
    )  # fmt: skip
    return {"top1": [run["last"]["top1"] for run in summary["runs"]]}


def report(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print what was found, beside the goals."""
    generator, shown = found["generator"], found["recognised"]
    print(
        f"\ngenerator: {generator['steps']:,} steps in {generator['seconds']:.0f} s, "
        f"loss {generator['last']['loss']:.4f}"
        f"\nrecognised by the teacher: {shown['agreement']:.1f} % of {shown['images']} generated digits (goal: 95 %)"
    )
    for name, line in found.items():
        if "top1" in line:
            goal = " (goal: 88 %)" if name == "generated hard" else ""
            print(f"{name:<15} {fmean(line['top1']):6.2f} %  of {', '.join(f'{v:.2f}' for v in line['top1'])}{goal}")


if __name__ == "__main__":
    sys.exit(run_command(main, restart=(sys.executable, "-m", "benchmarks.studies.digits_generator")))
