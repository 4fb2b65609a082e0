"""What the cells of the study of generated images do: a generator, its judgement, sets and students."""

from __future__ import annotations

import json
import time
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from benchmarks.studies import image_sets_run
from benchmarks.studies.cifar_generator_cells import GENERATED, Cell, Model, Scale
from benchmarks.studies.feature_distance import Seen, feature_distance, look
from benchmarks.studies.image_sets_run import AROUND_S, CLASSES, Lab, seconds_of
from labelstore.command.command_line import read_command
from labelstore.command.console import Console
from labelstore.durable.newfile import write_over
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.networks import build_network, load_network
from pipeline.networks.autoencoders import NONE, taef2_decoder, taef2_encoder
from pipeline.networks.backbones import shape_of
from pipeline.networks.uvit import UViT
from pipeline.synthesis.synthesize import synthesize
from trainer.__main__ import COMMANDS as TRAINER
from trainer.generator import SAMPLES, sheet
from trainer.generator_run import train_generator

SHEET_ROW = 10  # images of a class on the sheet
LATENT_CHANNELS, FACTOR = 32, 8  # of taef2
TIMED = 16  # images


class GeneratorLab:
    """Does the cells.

    Args:
        scale: of the study.
        model: the generator.
        folder: for models, sets, stores and runs.
        data: folder of the data sets.
        device: of all networks.
        sheet: PNG that is written with the judgement.
    """

    def __init__(self, scale: Scale, model: Model, folder: Path, data: Path, device: str, sheet: Path) -> None:
        self.scale, self.model, self.folder, self.data, self.sheet = scale, model, folder, data, sheet
        self.sets, self._device = Lab(scale.sets, folder, data, device), torch.device(device)
        self.run_folder = folder / "generators" / model.name

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line."""
        start = time.monotonic()
        if cell.kind == "generator":
            found = self.train()
        elif cell.kind == "judged":
            found = self.judge()
        elif cell.method == GENERATED and cell.kind == "set":
            found = self.draw(self.images(cell), cell.per_class, cell.seed)
        else:
            found = self.sets.run(cell.of_sets(self.scale.data))
        return {**found, "seconds": round(time.monotonic() - start, 1)}

    def images(self, cell: Cell) -> Path:
        """The folder of a set."""
        return self.sets.images(cell.of_sets(self.scale.data))

    def train(self) -> dict[str, Any]:
        """The generator, on all training images."""
        model, data = self.model, self.scale.data
        words = (
            "--images", self.data / data.train, "--size", model.side, "--vae", model.vae, "--backbone", model.backbone,
            "--backbone-args", model.backbone_args, "--patch", model.patch, "--prediction", model.prediction,
            "--lr", model.lr, "--batch-size", model.batch_size, "--dtype", model.dtype,
            *(self.scale.flags or ("--minutes", model.training)), "--run-folder", self.run_folder, *self.sets.on,
        )  # fmt: skip
        read = read_command(TRAINER["train-generator"], "train-generator", ["train-generator", *map(str, words)])
        done: Any = train_generator(read.config, Console())
        found = {name: done[name] for name in ("steps", "epochs", "parameters", "images")}
        return {**found, "loss": done["last"]["loss"]}

    def draw(self, out: Path, per_class: int, seed: int) -> dict[str, Any]:
        """Generated images."""
        words = (
            "synthesize", "diffusion", "--model", self.run_folder, "--ipc", per_class, "--seed", seed,
            "--steps", self.model.steps, "--model-dtype", self.model.dtype, "--image-batch", self.scale.image_batch,
            "--out", out, *self.sets.on,
        )  # fmt: skip
        config = read_command(PIPELINE["synthesize"], "synthesize", [str(word) for word in words]).config
        made: Any = synthesize(config, Console(silent=True))
        return {"images": made["images"]}

    def judge(self) -> dict[str, Any]:
        """What the judge makes of generated images and of real ones, and how far they are from the training images."""
        out, data, shown = self.folder / "sets" / f"shown-{self.model.name}", self.scale.data, self.scale.shown
        self.draw(out, shown, 0)
        made = self.look(out)
        train, others = (self.look(self.data / split) for split in (data.train, data.test))
        first = [path for folder in sorted(out.iterdir()) if folder.is_dir() for path in sorted(folder.iterdir())]
        pictures = [np.asarray(Image.open(first[at])) for at in _first_of(made, SHEET_ROW)]
        self.sheet.parent.mkdir(parents=True, exist_ok=True)
        write_over(self.sheet, sheet(np.stack(pictures)), SAMPLES)
        return {
            "images": len(made.right),
            "agreement": round(100 * float(made.right.mean()), 2),
            "by_class": [round(100 * float(made.right[made.targets == target].mean()), 1) for target in range(CLASSES)],
            "agreement_on_real": round(100 * float(others.right.mean()), 2),
            "distance": feature_distance(made.features, train.features),
            "floor": feature_distance(others.features, train.features),
            "floor_of_as_many": feature_distance(others.first(shown), train.features),
        }

    def look(self, images: Path) -> Seen:
        """What the judge makes of the images of a folder."""
        return look(self._judge, images, self.scale.data.side, self._device)

    @cached_property
    def _judge(self) -> nn.Module:
        data, scale = self.scale.data, self.scale
        args = {} if scale.weights else data.teacher_args
        weights = self.sets.weights(data) if scale.weights is None else self.data / scale.weights
        network, _ = load_network(scale.judge, args, str(weights), classes=CLASSES, size=data.side)
        return network.eval().to(self._device)


def _first_of(made: Seen, count: int) -> list[int]:
    """The first images of each class, by their place in the folder."""
    return [int(at) for target in range(CLASSES) for at in np.flatnonzero(made.targets == target)[:count]]


class Pace:
    """How fast this machine trains, generates and judges.

    Args:
        lab: does the cells.
        device: of all networks.
    """

    def __init__(self, lab: GeneratorLab, device: str) -> None:
        self._scale, self._model, self._device = lab.scale, lab.model, torch.device(device)
        self._sets, self._real = image_sets_run.Pace(lab.scale.sets, device), not lab.scale.flags

    def seconds(self, cell: Cell) -> float:
        """How long a cell takes, about."""
        scale, shown = self._scale, CLASSES * self._scale.shown
        if cell.kind == "generator":
            return self._training + 2 * scale.images * self._encoding + AROUND_S
        if cell.kind == "judged":
            return shown * self._drawing + (shown + scale.images + scale.data.tests) * self._judging + AROUND_S
        if cell.kind == "set" and cell.method == GENERATED:
            return CLASSES * cell.per_class * self._drawing + AROUND_S
        return self._sets.seconds(cell.of_sets(scale.data))

    @property
    def _training(self) -> float:
        return 0.0 if self._scale.flags else 60 * self._model.training

    @cached_property
    def _encoding(self) -> float:
        """Seconds of an image that becomes latents."""
        return 0.0 if self._model.vae == NONE else self._of(taef2_encoder(LATENT_CHANNELS), 3, self._model.side)

    @cached_property
    def _drawing(self) -> float:
        """Seconds of an image that is generated, with guidance."""
        model, pixels = self._model, self._model.vae == NONE
        channels, side = (3, model.side) if pixels else (LATENT_CHANNELS, model.side // FACTOR)
        shape = shape_of(model.backbone, {**json.loads(model.backbone_args), "patch": model.patch})
        backbone = UViT(shape, channels=channels, size=side, classes=CLASSES)
        labels = torch.zeros(TIMED, dtype=torch.int64, device=self._device)
        decoding = 0.0 if pixels else self._of(taef2_decoder(LATENT_CHANNELS), channels, side)
        return 2 * model.steps * self._of(backbone, channels, side, labels, labels) + decoding

    @cached_property
    def _judging(self) -> float:
        """Seconds of an image that the judge is shown."""
        data = self._scale.data
        args = {} if self._scale.weights else data.teacher_args
        return self._of(build_network(self._scale.judge, args, CLASSES, size=data.side), 3, data.side)

    def _of(self, network: nn.Module, channels: int, side: int, *more: torch.Tensor) -> float:
        """Seconds of an image in a network."""
        images = torch.randn(TIMED, channels, side, side, device=self._device)
        network.eval().to(self._device)
        with torch.no_grad():
            return seconds_of(lambda: network(images, *more), self._device) / TIMED
