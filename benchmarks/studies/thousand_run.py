"""What the cells of the study of early teachers do: random images, labels of an expert, students, and their test."""

from __future__ import annotations

import json
import time
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from benchmarks.studies.in_process import run_build, run_train
from benchmarks.studies.thousand_cells import Cell, Scale, kept
from benchmarks.studies.thousand_plain import Loop, plain_top1
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.durable.newfile import write_new
from labelstore.errors import InputError
from pipeline.images.manifest import scan
from pipeline.networks import build_network
from pipeline.plan.plan import PlanSpec
from pipeline.render import make_renderer
from trainer.checkpoints import compare_checkpoints
from trainer.evaluate import EvalResult, evaluate
from trainer.evaluate_config import EvaluateConfig

RATE, MOMENTUM = 0.01, 0.9
CLASSES, TEST_BATCH = 10, 128
MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)  # of CIFAR-10's training images
# What a cell takes besides its steps and its test, for images, labels, first checks and files: seconds, and the time of
# some steps of a student.
AROUND_S, AROUND_STEPS = 2.0, 6


class Lab:
    """Trains the cells.

    Args:
        scale: of the study.
        folder: for images, stores and runs.
        data: folder with ``train`` and ``test``, class folders.
    """

    def __init__(self, scale: Scale, folder: Path, data: Path) -> None:
        self.scale, self.folder, self.data = scale, folder, data
        self._student = ("--student", scale.network, "--student-args", json.dumps(scale.args))

    def run(self, cell: Cell) -> dict[str, Any]:
        """Train a cell, or continue it; what is found, for its line."""
        start = time.monotonic()
        found = {"expert": self.expert, "plain": self.plain, "student": self.student}[cell.kind](cell)
        return {**found, "seconds": round(time.monotonic() - start, 1)}

    # --- experts ---

    def expert(self, cell: Cell) -> dict[str, Any]:
        """Train an expert on hard labels; how each of its kept epochs does on the test images."""
        self.train_expert(cell)
        epochs = kept(self.scale, cell)
        files = [self.weights(epoch, cell.seed) for epoch in epochs]
        if len(files) == 1:
            return {"epochs": [{"epoch": cell.epochs, "top1": self.test(files[0]).top1}]}
        rows = compare_checkpoints(
            from_flags(EvaluateConfig, weights=tuple(map(str, files)), images=self.data / "test"), Console(silent=True)
        )
        found = [
            {"epoch": epoch, "top1": row.top1, "loss": row.loss, "entropy": row.entropy, "agreement": row.agreement}
            for epoch, row in zip(epochs, rows, strict=True)
        ]
        return {"epochs": found}

    def train_expert(self, cell: Cell) -> None:
        """SGD at a constant rate, so that a longer expert continues a shorter one."""
        words = (
            "--images", self.data / "train", "--labels", "none", "--loss", "ce", *self._student,
            "--size", self.scale.side, "--crop", "center", "--flip", 0, "--mean", *MEAN, "--std", *STD,
            "--optimizer", "SGD", "--lr", RATE, "--optimizer-args", json.dumps({"momentum": MOMENTUM}),
            "--weight-decay", 0, "--schedule", "constant", "--batch-size", cell.batch, "--epochs", cell.epochs,
            "--keep", ",".join(map(str, kept(self.scale, cell))), "--seed", cell.seed,
            "--run-folder", self.weights(1, cell.seed).parent,
        )  # fmt: skip
        run_train(*words)

    def weights(self, epoch: int, seed: int = 0) -> Path:
        """The weights of an expert after an epoch."""
        return self.folder / "experts" / f"seed-{seed}" / f"epoch-{epoch:04d}.safetensors"

    def plain(self, cell: Cell) -> dict[str, Any]:
        """Train an expert by the plain loop."""
        depth, width = int(self.scale.network.removeprefix("convnet-d")), self.scale.args.get("width", 128)
        loop = Loop(depth, width, cell.batch, RATE, MOMENTUM, MEAN, STD)
        top1 = plain_top1(self.data / "train", self.data / "test", loop, cell.epochs, cell.seed)
        return {"epochs": [{"epoch": cell.epochs, "top1": top1}]}

    # --- students ---

    def student(self, cell: Cell) -> dict[str, Any]:
        """Draw images, label them, train on them, and test the last weights."""
        images = self.images(cell)
        run = self.folder / "students" / cell.name
        labels: tuple[object, ...]
        if cell.expert is None:
            labels = ("--labels", "none", "--loss", "ce", "--size", self.scale.side, "--mean", *MEAN, "--std", *STD)
        else:
            labels = ("--store", self.labelled(cell, images))
            if cell.relabel:
                labels = (*labels, "--relabel", *(self.relabel(word) for word in cell.relabel))
        if cell.optimizer == "AdamW":
            labels = (*labels, "--optimizer", "AdamW", "--lr", 1e-3, "--weight-decay", 0.01, "--schedule", "cosine")
        done = run_train(
            "--recipe", "no-distillation", "--images", images, *labels, *self._student, "--epochs", cell.epochs,
            "--batch-size", cell.batch, "--seed", cell.seed, "--checkpoint-every", cell.epochs, "--run-folder", run,
        )  # fmt: skip
        result = self.test(run / "last.safetensors")
        return {"top1": result.top1, "loss": result.loss, "hits": list(result.class_hits), "steps": done["steps"]}

    def relabel(self, word: str) -> str:
        """An operator with the missing classes, where it takes classes."""
        return f"{word}={','.join(self.missing)}" if word.startswith("drop") else word

    @cached_property
    def classes(self) -> list[str]:
        """The class folders, in order."""
        return sorted(path.name for path in (self.data / "train").iterdir() if path.is_dir())

    @property
    def missing(self) -> list[str]:
        """The classes that are left out."""
        return self.classes[-self.scale.missing :]

    def images(self, cell: Cell) -> Path:
        """The images of a cell as a class folder: the first of each class in an order that its seed draws."""
        shown = [name for name in self.classes if not (cell.missing and name in self.missing)]
        target = self.folder / "images" / f"ipc{cell.per_class}-seed{cell.seed}{'-missing' * cell.missing}"
        for number, name in enumerate(self.classes):
            if name in shown:
                copy_some(self.data / "train" / name, target / name, cell.per_class, (cell.seed, number))
        return target

    def labelled(self, cell: Cell, images: Path) -> Path:
        """The store of one label an image, by an expert; all columns where classes have no images."""
        assert cell.expert is not None  # noqa: S101  hard labels need no store
        store = self.folder / "labels" / f"{images.name}-expert{cell.expert}"
        shown = [name for name in self.classes if (images / name).is_dir()]
        columns = ("--class-columns", ",".join(shown)) if len(shown) < len(self.classes) else ()
        run_build(
            "--recipe", "no-distillation", "--images", images, "--teacher", self.scale.network,
            "--weights", self.weights(cell.expert), "--size", self.scale.side, "--views", 1, "--encoding", "float16",
            *columns, "--store", store,
        )  # fmt: skip
        return store

    # --- test ---

    def test(self, weights: Path) -> EvalResult:
        """Weights on all test images, which are scanned and decoded once."""
        images, spec, renderer = self._tested
        network = build_network(self.scale.network, self.scale.args, CLASSES, size=self.scale.side)
        network.load_state_dict(load_file(weights))
        return evaluate(network, images, spec, renderer, mean=MEAN, std=STD, batch=TEST_BATCH)

    @cached_property
    def _tested(self) -> tuple[Any, PlanSpec, Any]:
        """The test images, how they are cut, and their renderer."""
        images = scan(self.data / "test", digests=False)
        if list(images.classes) != self.classes:
            raise InputError(f"{self.data}: expected the same classes in train and test, found others")
        spec = PlanSpec(size=self.scale.side, crop="center", flip=0)
        return images, spec, make_renderer(images, spec)


def copy_some(source: Path, target: Path, count: int, key: tuple[int, int]) -> None:
    """Copy the first ``count`` files of a class in a random order, which ``key``, a seed and a class, draws.

    The order does not depend on the count: fewer images are among more.
    """
    files = sorted(source.iterdir())
    order = np.random.Generator(np.random.Philox(key=key)).permutation(len(files))
    target.mkdir(parents=True, exist_ok=True)
    for index in order[:count].tolist():
        copy = target / files[index].name
        if not copy.exists():
            write_new(copy, files[index].read_bytes())


# --- how long it takes ---


class Pace:
    """How fast this machine trains the study's network.

    Args:
        scale: of the study.
    """

    def __init__(self, scale: Scale) -> None:
        self._scale = scale
        network = build_network(scale.network, scale.args, CLASSES, size=scale.side)
        optimiser = torch.optim.SGD(network.parameters(), lr=0.0)
        self._network, self._optimiser = network, optimiser
        self._steps = {count: self._step_s(count) for count in (10, 100)}  # crops
        with torch.no_grad():
            self._test_s = self._seconds(lambda: network(self._crops(TEST_BATCH)), 3) / TEST_BATCH

    def _crops(self, count: int) -> torch.Tensor:
        return torch.randn(count, 3, self._scale.side, self._scale.side)

    def _step_s(self, count: int) -> float:
        """Seconds of a step of ``count`` crops."""
        crops, targets = self._crops(count), torch.arange(count) % CLASSES

        def step() -> None:
            self._optimiser.zero_grad()
            torch.autograd.backward(cross_entropy(self._network(crops), targets))
            self._optimiser.step()

        return self._seconds(step, 5)

    @staticmethod
    def _seconds(work: Any, times: int) -> float:
        """Seconds of a call: the median of some, after one that does not count."""
        work()
        marks = [time.perf_counter()]
        for _ in range(times):
            work()
            marks.append(time.perf_counter())
        return median(end - start for start, end in pairwise(marks))

    @property
    def crops_per_second(self) -> float:
        """In steps of 100 crops."""
        return 100 / self._steps[100]

    def train_s(self, steps: float, batch: float) -> float:
        """Seconds of some steps: a constant part, and one that grows with the batch."""
        per_crop = max((self._steps[100] - self._steps[10]) / 90, 0.0)
        return steps * (max(self._steps[10] - 10 * per_crop, 0.0) + batch * per_crop)

    def seconds(self, cell: Cell) -> float:
        """How long a cell takes, about."""
        scale = self._scale
        test = scale.tests * self._test_s
        if cell.kind == "student":
            steps = cell.epochs * cell.per_class * CLASSES / cell.batch
            return self.train_s(steps + AROUND_STEPS, cell.batch) + test + AROUND_S
        tests = len(kept(scale, cell)) if cell.kind == "expert" else 1
        epochs = cell.epochs - (scale.experts[-1] if cell.epochs == scale.later else 0)
        return self.train_s(epochs * scale.images / cell.batch, cell.batch) + tests * test + AROUND_S
