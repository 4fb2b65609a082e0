"""Images of a diffusion model at 0.9 or more of the rate that its backbone's calls alone allow."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import Report, interleave, machine
from labelstore.spec import Json
from pipeline.networks.autoencoders import Pixels
from pipeline.networks.backbones import BACKBONES, Shape
from pipeline.networks.noise import DiffusionSpec
from pipeline.networks.uvit import UViT
from pipeline.synthesis.generator import Generation, Generator

Images: TypeAlias = npt.NDArray[np.uint8]
PROMISED = 0.9
CLASSES = 100


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time batches of 32 px with guidance 1.4: U-ViT-S in bfloat16 on a GPU, U-ViT-xs on a CPU, both untrained."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    shape = Shape(32, 2, 2) if quick else BACKBONES["uvit-s" if on_gpu else "uvit-xs"]
    batch, steps, rounds = (4, 3, 2) if quick else (256, 50, 5) if on_gpu else (16, 5, 7)
    how = Generation(steps=steps, dtype="bfloat16" if on_gpu else "float32")
    torch.manual_seed(0)
    model = Generator(
        backbone=UViT(shape, channels=3, size=32, classes=CLASSES).to(device).eval().requires_grad_(False),
        vae=Pixels(),
        spec=DiffusionSpec(),
        mean=torch.full((3,), 0.5),
        std=torch.full((3,), 0.5),
        classes=tuple(map(str, range(CLASSES))),
        size=32,
    )
    if not on_gpu and not drawn_again(model, how, device, batch):
        raise RuntimeError("the same images drawn again are others")
    found = share_of_backbone(report, model, how, device, batch, rounds)
    return {
        "unit": "images/s",
        **found,
        "steps": steps,
        "promised": PROMISED,
        "kept": found["share_of_backbone"] >= PROMISED,
        "machine": machine(),
    }


def share_of_backbone(
    report: Report, model: Generator, how: Generation, device: torch.device, batch: int, rounds: int
) -> dict[str, Any]:
    """Images a second, and what share that is of the rate of the backbone's calls alone, timed in turns."""
    ways: dict[str, Callable[[], object]] = {
        "generated": partial(generated, model, how, device, batch),
        "backbone alone": partial(backbone_alone, model, how, device, batch),
    }
    timing = interleave(ways, rounds)
    for name, seconds in timing.wall.items():
        report.add(name, "rate", [batch / second for second in seconds], "images/s")
    rate = timing.rate("generated", batch)["wall"]
    share = median(
        alone / whole for alone, whole in zip(timing.wall["backbone alone"], timing.wall["generated"], strict=True)
    )
    return {"images_per_s": rate, "seconds_for_1000_images": 1000 / rate, "share_of_backbone": share}


def drawn_again(model: Generator, how: Generation, device: torch.device, batch: int) -> bool:
    """Whether a batch that is drawn twice has the same pixels."""
    return np.array_equal(generated(model, how, device, batch), generated(model, how, device, batch))


def generated(model: Generator, how: Generation, device: torch.device, batch: int) -> Images:
    """A batch of images, from the counters of their noise to their pixels in memory."""
    numbers, classes = np.arange(batch), len(model.classes)
    noise = model.noise(0, numbers % classes, numbers // classes).to(device)
    return model.images(model.latents(noise, torch.from_numpy(numbers % classes).to(device), how))


@torch.no_grad()
def backbone_alone(model: Generator, how: Generation, device: torch.device, batch: int) -> None:
    """The calls that the images take, with guidance two for each step."""
    side = model.size // model.vae.factor
    x = torch.zeros(2 * batch, model.vae.channels, side, side, device=device)
    labels = torch.zeros(2 * batch, dtype=torch.int64, device=device)
    with model.precision(device, how.dtype):
        for _ in range(how.steps):
            model.backbone(x, labels, labels)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
