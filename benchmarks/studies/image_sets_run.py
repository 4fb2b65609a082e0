"""What the cells of the study of image sets do: a teacher, sets, stores of labels, students, and their test."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.harness import wait_for
from benchmarks.studies.image_sets_cells import Cell, Data, Scale
from benchmarks.studies.in_process import run_train
from labelstore.command.command_line import read_command
from labelstore.command.console import Console
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.build.build import build
from pipeline.networks import build_network
from pipeline.synthesis.synthesize import synthesize

CLASSES, TEST_BATCH = 10, 128
CPU = torch.device("cpu")
AROUND_S = 2.0  # what a cell takes besides: first checks, images, files
CROPS = 5  # of each image of RDED's pool


class Lab:
    """Does the cells.

    Args:
        scale: of the study.
        folder: for sets, stores and runs.
        data: folder of the data sets.
        device: of all networks.
    """

    def __init__(self, scale: Scale, folder: Path, data: Path, device: str = "cpu") -> None:
        self.scale, self.folder, self.data = scale, folder, data
        self.on = () if device == "cpu" else ("--device", device, "--decoder", "cpu")

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line."""
        start = time.monotonic()
        found = {"teacher": self.train_teacher, "set": self.make_set, "student": self.train_student}[cell.kind](cell)
        return {**found, "seconds": round(time.monotonic() - start, 1)}

    def train_teacher(self, cell: Cell) -> dict[str, Any]:
        """A teacher on hard labels of all real images."""
        data = self.scale.named(cell.data)
        done = run_train(
            "--images", self.data / data.train, "--labels", "none", "--loss", "ce", "--student", data.teacher,
            "--student-args", json.dumps(dict(data.teacher_args)), "--size", data.side, "--scale", 0.25, 1.0,
            "--optimizer", "AdamW", "--lr", 2e-3, "--weight-decay", 0.01, "--batch-size", 50,
            "--epochs", data.teacher_epochs, "--test-images", self.data / data.test,
            "--eval-every", data.teacher_epochs, "--run-folder", self.weights(data).parent, *self.on,
        )  # fmt: skip
        return {"top1": done["last"]["top1"]}

    def weights(self, data: Data) -> Path:
        """The teacher's weights."""
        if data.weights is not None:
            return self.data / data.weights
        return self.folder / "teachers" / data.name / "last.safetensors"

    def teacher(self, data: Data) -> tuple[object, ...]:
        """The flags of the teacher."""
        args = json.dumps(dict(data.teacher_args))
        return ("--teacher", data.teacher, "--teacher-args", args, "--weights", self.weights(data))

    def images(self, cell: Cell) -> Path:
        """The folder of a set."""
        return self.folder / "sets" / cell.set_name

    def make_set(self, cell: Cell) -> dict[str, Any]:
        """The images of a cell."""
        data = self.scale.named(cell.data)
        own: Mapping[str, tuple[object, ...]] = {
            "random": ("--take", "center"),
            "rded": ("--pool", data.pool, "--crops", CROPS, "--factor", data.factor),
            "sre2l": ("--iterations", self.scale.iterations),
        }
        words = (
            "synthesize", cell.method, "--images", self.data / data.train, "--ipc", cell.per_class,
            "--size", data.side, "--seed", cell.seed, *self.teacher(data), *own[cell.method],
            "--out", self.images(cell), *self.on,
        )  # fmt: skip
        config = read_command(PIPELINE["synthesize"], "synthesize", [str(word) for word in words]).config
        teacher: Any = synthesize(config, Console(silent=True))["teacher"]
        return {name: teacher[name] for name in ("agreement", "agreement_on_crops", "cross_entropy")}

    def train_student(self, cell: Cell) -> dict[str, Any]:
        """A student on the images of a cell, tested after the last epoch."""
        data = self.scale.named(cell.data)
        epochs = self.scale.epochs[cell.per_class]
        student = json.dumps(dict(data.students[cell.student]))
        labels: tuple[object, ...] = ("--labels", "none", "--loss", "ce", "--size", data.side)
        if cell.labels != "hard":
            labels = ("--store", self.labelled(cell), "--loss", cell.labels)
        done = run_train(
            "--recipe", "gift", "--images", self.images(cell), *labels, "--student", cell.student,
            "--student-args", student, "--epochs", epochs, "--batch-size", self.scale.batches[cell.per_class],
            "--seed", cell.seed, "--test-images", self.data / data.test, "--eval-every", epochs,
            "--checkpoint-every", epochs, "--run-folder", self.folder / "students" / cell.name, *self.on,
        )  # fmt: skip
        return {"top1": done["last"]["top1"], "steps": done["steps"]}

    def labelled(self, cell: Cell) -> Path:
        """The store of the teacher's labels, a view for each epoch."""
        data, store = self.scale.named(cell.data), self.folder / "stores" / cell.set_name
        words = (
            "build", "--recipe", "gift", "--images", self.images(cell), *self.teacher(data), "--size", data.side,
            "--views", self.scale.epochs[cell.per_class], "--encoding", "float16", "--seed", cell.seed,
            "--store", store, *self.on,
        )  # fmt: skip
        build(read_command(PIPELINE["build"], "build", [str(word) for word in words]).config, Console(silent=True))
        return store


class Pace:
    """How fast this machine trains and labels.

    Args:
        scale: of the study.
        device: of all networks.
    """

    def __init__(self, scale: Scale, device: str = "cpu") -> None:
        self._scale, self._device = scale, torch.device(device)

    @cached_property
    def _rates(self) -> Mapping[tuple[str, str], tuple[float, float]]:
        """Seconds a crop of a step and of a forward, by data set and network."""
        rates = {}
        for data in self._scale.data:
            for name, args in {**data.students, data.teacher: data.teacher_args}.items():
                rates[data.name, name] = timed(name, args, data.side, self._device)
        return rates

    def seconds(self, cell: Cell) -> float:
        """How long a cell takes, about."""
        data = self._scale.named(cell.data)
        step, forward = self._rates[data.name, cell.student or data.teacher]
        if cell.kind == "teacher":
            return data.teacher_epochs * 1_000 * step + data.tests * forward + AROUND_S
        images = cell.per_class * CLASSES
        if cell.kind == "set":
            work = {
                "random": 0.0,
                "rded": data.pool * CLASSES * CROPS * forward,
                "sre2l": images * self._scale.iterations * step,
            }
            return work[cell.method] + AROUND_S
        crops = self._scale.epochs[cell.per_class] * images
        _, label = self._rates[data.name, data.teacher]
        return crops * (step + (label if cell.labels == "kl" else 0.0)) + data.tests * forward + AROUND_S


def timed(name: str, args: Mapping[str, Any], side: int, device: torch.device = CPU) -> tuple[float, float]:
    """Seconds a crop of a training step, and of a forward."""
    network = build_network(name, args, CLASSES, size=side).to(device)
    crops = torch.randn(TEST_BATCH, 3, side, side, device=device)
    targets = torch.arange(TEST_BATCH, device=device) % CLASSES

    def step() -> None:
        torch.autograd.backward(cross_entropy(network(crops), targets))

    def forward() -> None:
        with torch.no_grad():
            network(crops)

    step_seconds, forward_seconds = (seconds_of(work, device) / TEST_BATCH for work in (step, forward))
    return step_seconds, forward_seconds


def seconds_of(work: Callable[[], object], device: torch.device) -> float:
    """Seconds that something takes, after a first time."""
    work()
    wait_for(device)
    start = time.perf_counter()
    for _ in range(3):
        work()
    wait_for(device)
    return (time.perf_counter() - start) / 3
