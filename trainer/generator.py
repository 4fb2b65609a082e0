"""The objective of a generator: a backbone learns to denoise images of known classes."""

from __future__ import annotations

import copy
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor, nn

from labelstore.command.console import Console, quantity
from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof
from labelstore.operations.generator import DESCRIPTION, is_description
from labelstore.spec import Json
from pipeline.images.remarks import report_left_out
from pipeline.networks.autoencoders import latent_side
from pipeline.networks.uvit import UViT
from pipeline.networks.weights import packed, weights_like
from pipeline.render.normalise import normalise
from pipeline.synthesis.generator import Generation, Generator, description
from trainer.batch import TrainBatch
from trainer.code_digests import layout_of
from trainer.crops import CropSource
from trainer.ema import Average
from trainer.generator_config import GeneratorConfig
from trainer.generator_subject import Denoising, Subject
from trainer.objective import Objective, Score
from trainer.optimisers import optimiser_of
from trainer.run_folder import FORMAT, NOT_THE_RUN, VERSIONS, kept_weights

GENERATOR = "generator"
HELD = 64  # images on which every evaluation measures the loss
SHOWN = 100  # classes on a sheet
SHEET = Generation(steps=25)
SHEET_SIDE = 64  # least side of a sample on a sheet, in pixels
MARK = {"Software": "giftwrap train-generator"}
NOT_MADE_OF = (*NOT_THE_RUN, *("steps", "minutes", "vae", "optimizer", "optimizer_args", "fused"))


@dataclass(frozen=True)
class Denoised:
    """The loss on fixed images, times and noise."""

    loss: float

    @property
    def numbers(self) -> Mapping[str, float | None]:
        """The loss."""
        return {"loss": self.loss}


class GeneratorObjective(Objective):
    """A backbone and its loss; evaluations also draw samples with the running mean of the weights.

    Args:
        config: of the run, with the number of epochs.
        subject: what is learned.
        backbone: the network, on the device.
        denoising: its loss.
        processes: number of training processes.
    """

    name = GENERATOR
    numbers = ("loss",)
    evaluates = True

    def __init__(
        self, config: GeneratorConfig, subject: Subject, backbone: UViT, denoising: Denoising, processes: int
    ) -> None:
        self._config, self._subject, self._denoising = config, subject, denoising
        self.network = self.called = backbone
        self.made_of = made_of(config, subject, backbone, processes)
        self._description = description(
            classes=subject.manifest.classes,
            size=config.size,
            backbone=config.backbone,
            shape=config.shape(),
            vae=subject.vae,
            spec=config.diffusion,
            latents=subject.latents,
        )
        self._held = self._hold(subject.loader.crops)
        self._sheet: bytes = b""

    def loss(self, called: nn.Module, batch: TrainBatch) -> Tensor:
        """The loss of the backbone on noisy images."""
        return self._denoising.loss(called, batch)

    def average(self, decay: float) -> Average:
        """The running mean of the weights, with a rising decay."""
        return Average(copy.deepcopy(self.network), decay, rising=True)

    def begin(self, console: Console) -> None:
        """Print the images, the backbone and the length of the run."""
        subject, config = self._subject, self._config
        manifest, backbone = subject.manifest, self.network
        console.line(f"images: {len(manifest):,} in {quantity(len(manifest.classes), 'class')}")
        report_left_out(manifest, console)
        count = sum(weight.numel() for weight in backbone.parameters())
        side = latent_side(subject.vae, config.size)
        console.line(
            f"backbone: {config.backbone}, {count:,} parameters, on {subject.vae.channels} x {side} x {side} "
            f"({subject.vae.place}), {config.diffusion.prediction} prediction"
        )
        console.line(
            f"length: {quantity(config.epochs, 'epoch')} of {quantity(len(subject.loader), 'step')}, "
            f"{quantity(config.epochs * len(subject.loader), 'step')} in all"
        )

    def files(self) -> Mapping[str, Proof]:
        """The weights of this backbone, and its description."""
        weights = weights_like(packed(self.network.state_dict(), None))
        kept = map(kept_weights, self._config.kept_epochs())
        return {**dict.fromkeys(("last.safetensors", "best.safetensors", *kept), weights), DESCRIPTION: DESCRIBED}

    def evaluate(self, network: nn.Module) -> Denoised:
        """The loss on fixed images, and a sheet of samples for `record`."""
        assert isinstance(network, UViT)  # noqa: S101  the objective's own, or its mean
        training = network.training
        network.eval()
        with torch.no_grad():
            loss = float(self._denoising.of(network, *self._held))
            self._sheet = self._drawn(network)
        network.train(training)
        return Denoised(loss)

    def better(self, found: Score, best: Score) -> bool:
        """A smaller loss is better."""
        assert isinstance(found, Denoised)  # noqa: S101  for mypy: scores of this objective  what `evaluate` gives
        assert isinstance(best, Denoised)  # noqa: S101  for mypy: scores of this objective
        return found.loss < best.loss

    def restored(self, fields: Mapping[str, Any]) -> Denoised:
        """The loss."""
        return Denoised(**fields)

    def record(self, folder: Path, score: Score) -> None:  # noqa: ARG002  of the protocol
        """Write the sheet of samples."""
        loader = self._subject.loader
        write_over(folder / f"samples-{loader.epoch * len(loader):06d}.png", self._sheet, SAMPLES)

    def save_weights(self, state: Mapping[str, Tensor], path: Path) -> None:
        """Write the weights, with generator.json beside them."""
        super().save_weights(state, path)
        content = (json.dumps(self._description, indent=1) + "\n").encode()
        place = path.parent / DESCRIPTION
        if not place.exists() or place.read_bytes() != content:
            write_over(place, content, DESCRIBED)

    def report(self) -> Mapping[str, Json]:
        """Images, classes and parameters."""
        manifest = self._subject.manifest
        parameters = sum(weight.numel() for weight in self.network.parameters())
        return {"images": len(manifest), "classes": len(manifest.classes), "parameters": parameters}

    def _hold(self, crops: CropSource) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Normalised latents, labels, times and noise of the first images; the same in every evaluation."""
        device, draw = torch.device(self._config.render.device), torch.Generator().manual_seed(0)
        rows = crops.rows(0, np.arange(min(HELD, crops.images)))
        found = crops.pixels(rows).to(device)
        images = found.float()
        if not found.is_floating_point():
            images = normalise(found, crops.mean, crops.std, torch.float32, channels_last=False)
        shape = (len(images), self._subject.vae.channels, *images.shape[2:])
        first, second = torch.randn(2, *shape, generator=draw).to(device)
        latents = self._denoising.normalised(images, first if self._subject.vae.moments else None)
        labels = torch.from_numpy(crops.targets[rows.image.astype(np.int64)]).to(device)
        times = torch.randint(self._config.diffusion.noise_steps, (len(images),), generator=draw).to(device)
        return latents, labels, times, second

    def _drawn(self, network: UViT) -> bytes:
        """A sheet with a sample of each class, as PNG."""
        subject, config = self._subject, self._config
        mean, std = (torch.tensor(subject.latents[name], dtype=torch.float32) for name in ("mean", "std"))
        model = Generator(
            backbone=network,
            vae=subject.vae,
            spec=config.diffusion,
            mean=mean,
            std=std,
            classes=subject.manifest.classes,
            size=config.size,
        )
        targets = np.arange(min(len(model.classes), SHOWN))
        noise = model.noise(0, targets, np.zeros(len(targets), np.int64)).to(config.render.device)
        labels = torch.from_numpy(targets).to(noise.device)
        how = Generation(steps=min(SHEET.steps, config.diffusion.noise_steps), dtype=config.dtype)
        return sheet(model.images(model.latents(noise, labels, how)))


def sheet(images: np.ndarray[Any, np.dtype[np.uint8]]) -> bytes:
    """A grid of images ``[n, S, S, 3]``, row by row, as PNG; small images are enlarged."""
    count, size = images.shape[:2]
    columns = min(count, max(round(count**0.5), 10))
    rows = -(-count // columns)
    grid = np.full((rows * columns, size + 1, size + 1, 3), 255, np.uint8)
    grid[:count, :size, :size] = images
    grid = grid.reshape(rows, columns, size + 1, size + 1, 3).swapaxes(1, 2).reshape(rows * (size + 1), -1, 3)
    scale = -(-SHEET_SIDE // size)
    drawing = Image.fromarray(grid.repeat(scale, axis=0).repeat(scale, axis=1))
    marks, content = PngInfo(), io.BytesIO()
    for name, text in MARK.items():
        marks.add_text(name, text)
    drawing.save(content, format="PNG", pnginfo=marks)
    return content.getvalue()


def _is_sheet(path: Path) -> bool:
    """Whether a file is a sheet of samples."""
    try:
        with Image.open(path) as found:
            return {name: found.info.get(name) for name in MARK} == MARK
    except OSError:
        return False


SAMPLES = Proof("a sheet of a generator's samples", _is_sheet)
DESCRIBED = Proof("the description of a generator", is_description)


def made_of(config: GeneratorConfig, subject: Subject, backbone: nn.Module, processes: int) -> dict[str, Json]:
    """Everything that determines the result of a run."""
    manifest = subject.manifest
    plain = {name: value for name, value in config.in_effect().items() if name not in NOT_MADE_OF}
    described: dict[str, Json] = {
        "format": FORMAT,
        "objective": GENERATOR,
        "crops": {
            "plan": config.plan().to_json(),
            "images": len(manifest),
            "classes": [*manifest.classes],
            "skipped": [*manifest.skipped],
            "manifest": manifest.digest,
        },
        "latents": {"vae": dict(subject.vae.identity), "key": subject.key, **subject.latents},
        "run": {
            **plain,
            "eval_from": 0.0,
            "device": torch.device(config.render.device).type,
            "threads": torch.get_num_threads(),
            "processes": processes,
        },
        "backbone": {"layout": layout_of(backbone)},
        "optimizer": optimiser_of(config.optimiser).to_json(),
        "schedule": config.schedule.to_json(),
        "replay_renderer": dict(subject.renderer),
        "versions": {name: version(name) for name in VERSIONS},
    }
    as_stored: dict[str, Json] = json.loads(json.dumps(described))
    return as_stored
