"""Small real-looking sets, a real convnet as teacher, and commands run as users run them."""

from __future__ import annotations

import json
import multiprocessing
import os
import runpy
import sys
import tempfile
from dataclasses import dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from labelstore import AuditRows, LabelStore
from labelstore.operations.convert import converted_block
from pipeline.networks import build_network
from pipeline.networks.weights import save_weights

CLASSES = ("ant", "bee", "cat")
SIDE = 16
VIEWS = 40  # of a store where nothing else is stated: two blocks


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def summary(self) -> dict[str, Any]:
        """The one JSON object on standard output."""
        values: dict[str, Any] = json.loads(self.out)
        return values


# Commands run in processes forked from one that has imported everything: seconds less each, and still processes.
# conftest.py names what it imports.
SERVER = multiprocessing.get_context("forkserver")


@dataclass(frozen=True)
class Running:
    """A command that runs, with its output in files."""

    process: BaseProcess
    out: Path
    err: Path

    def end(self) -> Ended:
        """Wait for its end."""
        self.process.join()
        assert self.process.exitcode is not None
        return Ended(self.process.exitcode, self.out.read_text(), self.err.read_text())


def start(folder: Path, *words: object, cwd: Path | None = None) -> Running:
    """Start `python -m WORDS`, with its output in ``folder``."""
    out, err = folder / "out", folder / "err"
    process = SERVER.Process(target=run_as_command, args=([str(word) for word in words], out, err, cwd), daemon=True)
    process.start()
    return Running(process, out, err)


def giftwrap(*words: object, cwd: Path | None = None) -> Ended:
    """Run `python -m WORDS` in a folder and wait for it."""
    with tempfile.TemporaryDirectory() as folder:
        return start(Path(folder), *words, cwd=cwd).end()


def run_as_command(words: list[str], out: Path, err: Path, cwd: Path | None) -> None:
    """What `python -m WORDS` does, with its output in files."""
    for number, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), number)
    sys.stdout, sys.stderr = os.fdopen(1, "w", encoding="utf-8"), os.fdopen(2, "w", encoding="utf-8")  # by that name
    sys.argv = words
    if cwd:
        os.chdir(cwd)
    sys.modules.pop(f"{words[0]}.__main__", None)  # the server of another module may have imported it
    try:
        runpy.run_module(words[0], run_name="__main__", alter_sys=True)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()


def draw_images(root: Path, *, per_class: int = 8, classes: tuple[str, ...] = CLASSES) -> Path:
    """A class folder of smooth pictures of several sizes and kinds; the class sets the colour."""
    generator = np.random.default_rng(0)
    for target, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for index in range(per_class):
            height, width = generator.integers(20, 60, 2)
            coarse = generator.integers(0, 120, (4, 5, 3)).astype(np.uint8)
            coarse[..., target % 3] += 120
            picture = Image.fromarray(coarse).resize((int(width), int(height)), Image.Resampling.BICUBIC)
            kind = ("jpg", "png", "webp")[index % 3]
            picture.save(root / name / f"{index:02d}.{kind}")
    return root


def random_teacher(path: Path, *, columns: int = len(CLASSES)) -> Path:
    """Weights of a ConvNet-D2 with batch norm: random, but fixed."""
    torch.manual_seed(0)
    network = build_network("convnet-d2", {"width": 16, "norm": "batch"}, classes=columns, size=SIDE)
    save_weights(network.state_dict(), path)
    return path


def with_audit(source: LabelStore, path: Path, audit: AuditRows) -> Path:
    """A sealed store with all that ``source`` has, but these audit rows: made by another engine than it says.

    What is changed in a store's files is damage, and found before anything is compared.
    """
    store = LabelStore.create(
        path,
        source.identity,
        image_digests=source.image_digests,
        targets=source.targets,
        views=source.state.views_sealed,
        versions=source.state.versions,
    )
    blocks = store.missing()
    labels = source.stream((view, slice(*store.positions(b))) for b in blocks for view in range(*store.block_views(b)))
    with store.lease() as writer:
        with writer.queue() as write:
            for block in blocks:
                data = converted_block(source, store, block, labels)
                write(block, replace(data, audit=data.audit and audit))
        writer.seal()
    return path


TEACHER = ("--teacher", "convnet-d2", "--teacher-args", '{"width": 16, "norm": "batch"}')


@dataclass(frozen=True)
class World:
    """Images, a teacher, and a finished store of them."""

    folder: Path
    images: Path
    weights: Path
    store: Path

    def build_words(self, store: Path, *more: object) -> list[object]:
        """The words of a build of these images into ``store``."""
        return [
            "pipeline", "build", "--images", self.images, *TEACHER, "--weights", self.weights,
            "--size", SIDE, "--views", VIEWS, "--batch", 32, "--threads", 1, "--store", store, *more,
        ]  # fmt: skip
