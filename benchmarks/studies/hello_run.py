"""What the cells of the study of HeLlO do: weak teachers, projectors, image sets and students."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from benchmarks.studies.hello_cells import ABLATION, STORED, Cell, Scale
from benchmarks.studies.image_sets_run import AROUND_S, CLASSES, CROPS, timed
from benchmarks.studies.in_process import (
    is_whole,
    machine_flags,
    run_build,
    run_synthesize,
    run_train,
    run_train_projector,
)
from benchmarks.studies.jobs import held
from benchmarks.studies.label_cost_run import encoder_flags
from labelstore.operations.projector import projector_info

HARD_WEIGHT = 0.1  # of students' cross-entropy beside the squared error


class Lab:
    """Does the cells. What a cell needs and is not there is made first, by one process.

    Args:
        scale: of the study.
        folder: for sets, stores and runs.
        data: folder of the data sets.
        device: of all commands.
        jobs: cells at the same time.
    """

    def __init__(self, scale: Scale, folder: Path, data: Path, device: str = "cpu", jobs: int = 1) -> None:
        self.scale, self.folder, self.data, self.device = scale, folder, data, device
        self._machine = machine_flags(device, jobs)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line."""
        start = time.monotonic()
        if cell.kind == "teacher":
            found = self.train_weak()
        elif cell.kind == "projector":
            found = self.train_projector(cell.labels)
        elif cell.kind == "set":
            found = self.make_set(cell.set)
        else:
            found = self.train_student(cell)
        return {**found, "device": self.device, "seconds": round(time.monotonic() - start, 1)}

    def train_weak(self) -> dict[str, Any]:
        """The weak teachers: checkpoints of one run on hard labels of all real images."""
        scale = self.scale
        done = run_train(
            *self._machine, "--images", self.data / scale.train, "--labels", "none", "--loss", "ce",
            "--student", scale.student, "--student-args", json.dumps(dict(scale.student_args)),
            "--size", scale.size, "--scale", 0.25, 1.0,
            "--optimizer", "AdamW", "--lr", 1e-3, "--weight-decay", 0.01, "--batch-size", scale.batch,
            "--epochs", scale.teacher_epochs, "--keep-every", scale.keep_every,
            "--test-images", self.data / scale.test, "--eval-every", scale.teacher_epochs,
            "--run-folder", self.folder / "weak",
        )  # fmt: skip
        return {"top1": done["last"]["top1"]}

    def train_projector(self, name: str) -> dict[str, Any]:
        """A projector, beside its teachers on the test images."""
        scale, step = self.scale, ABLATION[name]
        done: Any = run_train_projector(
            *self._machine, *encoder_flags(scale.encoder, self.data / scale.encoder.weights),
            "--images", self.data / scale.train,
            *self.teacher(step.teacher), "--teacher-size", scale.size, "--rank", step.rank, "--head", step.head,
            "--hard-weight", step.hard_weight, "--scale", 0.25, 1.0, "--batch-size", scale.batch,
            "--epochs", scale.projector_epochs, "--test-images", self.data / scale.test,
            "--eval-every", scale.projector_epochs, "--run-folder", self.projector(name),
        )  # fmt: skip
        info: Any = projector_info(self.projector(name))
        return {
            "top1": done["top1"],
            "teachers": [each["top1"] for each in done["teachers"]],
            "teachers_top1": done["teachers_top1"],
            "fidelity": done["fidelity"],
            "parameters": sum(info["parameters"].values()),
            "bytes": info["total_bytes"],
            "bytes_with_encoder": info["total_bytes_with_encoder"],
        }

    def projector(self, name: str) -> Path:
        """The folder of a projector."""
        return self.folder / "projectors" / name.replace(" ", "-")

    def teacher(self, which: str) -> tuple[object, ...]:
        """The flags of the weak teachers, or of the strong one."""
        scale = self.scale
        if which == "weak":
            kept = range(scale.keep_every, scale.teacher_epochs + 1, scale.keep_every)
            files = [self.folder / "weak" / f"epoch-{epoch:04d}.safetensors" for epoch in kept]
            with held(self.folder / "weak"):
                if not all(file.exists() for file in files):
                    self.train_weak()
            args = json.dumps(dict(scale.student_args))
            return ("--teacher", scale.student, "--teacher-args", args, "--weights", *files)
        strong = scale.strong
        return (
            "--teacher", strong.name, "--teacher-args", json.dumps(dict(strong.args)),
            "--weights", self.data / strong.weights, "--mean", *strong.mean, "--std", *strong.std,
        )  # fmt: skip

    def images(self, name: str) -> Path:
        """The folder of a set."""
        return self.folder / "sets" / name

    def make_set(self, name: str) -> dict[str, Any]:
        """A set of images, and what the strong teacher makes of it; Nones where a killed call has finished the set."""
        scale, encoder = self.scale, self.scale.encoder
        if name == "updated":
            self.require_set("rded")
        real = ("--images", self.data / scale.train, "--ipc", scale.per_class)
        own: Mapping[str, tuple[object, ...]] = {
            "random": ("random", *real, "--take", "center"),
            "rded": ("rded", *real, "--pool", scale.pool, "--crops", CROPS, "--factor", 1),
            "updated": (
                "hello-update", "--images", self.images("rded"), "--encoder", encoder.name,
                "--encoder-args", json.dumps(dict(encoder.args)), "--encoder-weights", self.data / encoder.weights,
                "--encoder-size", encoder.size, "--encoder-mean", *encoder.mean, "--encoder-std", *encoder.std,
                "--update-steps", scale.update_steps,
            ),
        }  # fmt: skip
        made = run_synthesize(
            *own[name], *self._machine, "--size", scale.size, *self.teacher("strong"), "--out", self.images(name)
        )
        looked: Any = made.get("teacher", {})
        return {key: looked.get(key) for key in ("agreement", "agreement_on_crops", "cross_entropy")}

    def require_set(self, name: str) -> None:
        """Make a set where it is absent."""
        with held(self.images(name)):
            if not self.images(name).exists():
                self.make_set(name)

    def train_student(self, cell: Cell) -> dict[str, Any]:
        """A student on the images of a cell, tested after the last epoch."""
        scale = self.scale
        self.require_set(cell.set)
        done = run_train(
            *self._machine, "--recipe", "hello", "--images", self.images(cell.set), *self.labels(cell),
            "--student", scale.student, "--student-args", json.dumps(dict(scale.student_args)),
            "--epochs", scale.epochs, "--batch-size", scale.batch, "--seed", cell.seed,
            "--test-images", self.data / scale.test, "--eval-every", scale.epochs, "--checkpoint-every", scale.epochs,
            "--run-folder", self.folder / "students" / cell.name,
        )  # fmt: skip
        return {"top1": done["last"]["top1"], "steps": done["steps"]}

    def labels(self, cell: Cell) -> tuple[object, ...]:
        """The flags of a student that state its labels and loss."""
        if cell.labels == "hard":
            return ("--labels", "none", "--loss", "ce", "--size", self.scale.size)
        squared = ("--loss", "mse+ce", "--hard-weight", HARD_WEIGHT)
        if cell.labels in STORED:
            return ("--store", self.store(cell.set, cell.labels), *squared)
        folder = self.projector(cell.labels)
        with held(folder):
            if not (folder / "projector.safetensors").exists():
                self.train_projector(cell.labels)
        return (
            "--labels", "online", "--size", self.scale.size, "--teacher", "projector", "--weights", folder,
            "--teacher-size", self.scale.encoder.size, *squared,
        )  # fmt: skip

    def store(self, images: str, teacher: str) -> Path:
        """The store of a teacher's labels, a view for each epoch."""
        store = self.folder / "stores" / f"{images}-{teacher}"
        with held(store):
            if is_whole(store, self.scale.epochs):
                return store
            run_build(
                *self._machine, "--recipe", "hello", "--images", self.images(images), *self.teacher(teacher),
                "--size", self.scale.size, "--views", self.scale.epochs, "--encoding", "float16", "--store", store,
            )  # fmt: skip
        return store


class Pace:
    """How fast this machine trains and labels.

    Args:
        scale: of the study.
        device: of all commands.
    """

    def __init__(self, scale: Scale, device: str = "cpu") -> None:
        self._scale, self._device = scale, torch.device(device)

    @cached_property
    def _rates(self) -> tuple[tuple[float, float], tuple[float, float], tuple[float, float]]:
        """Seconds a crop of a step and of a forward: of the student, the strong teacher and the encoder."""
        scale = self._scale
        return (
            timed(scale.student, scale.student_args, scale.size, self._device),
            timed(scale.strong.name, scale.strong.args, scale.strong.size, self._device),
            timed(scale.encoder.name, scale.encoder.args, scale.encoder.size, self._device),
        )

    def seconds(self, cell: Cell) -> float:
        """How long a cell takes, about."""
        scale, ((step, forward), (_, strong), (adapt, encode)) = self._scale, self._rates
        made = scale.per_class * CLASSES
        weak = scale.weak * forward
        if cell.kind == "teacher":
            return scale.teacher_epochs * scale.images * step + scale.tests * forward + AROUND_S
        if cell.kind == "set":
            work = {
                "random": 0.0,
                "rded": scale.pool * CLASSES * CROPS * strong,
                "updated": made * scale.update_steps * adapt,
            }
            return work[cell.set] + AROUND_S
        if cell.kind == "projector":
            own = ABLATION[cell.labels]
            taught = weak if own.teacher == "weak" else strong
            crop = (adapt if own.rank else encode) + taught
            return scale.projector_epochs * scale.images * crop + scale.tests * (2 * encode + taught) + AROUND_S
        first = cell.seed == scale.seeds[0]  # which finds no store
        label = {"hard": 0.0, "weak": weak * first, "strong": strong * first}.get(cell.labels, encode)
        return scale.epochs * made * (step + label) + scale.tests * forward + AROUND_S
