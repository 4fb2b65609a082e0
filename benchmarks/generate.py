"""Images of a diffusion model at 0.9 or more of the rate of its backbone's calls."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from functools import partial
from itertools import count
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.harness import Report, Timing, interleave, machine
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.durable.newfile import write_new
from labelstore.operations.generator import DESCRIPTION, GENERATOR_WEIGHTS
from labelstore.spec import Json
from pipeline.networks.autoencoders import Pixels
from pipeline.networks.backbones import BACKBONES, Shape
from pipeline.networks.noise import DiffusionSpec
from pipeline.networks.uvit import UViT
from pipeline.networks.weights import save_weights
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.generator import Generation, Generator, description, load_generator
from pipeline.synthesis.synthesize import synthesize

Images: TypeAlias = npt.NDArray[np.uint8]
PROMISED = 0.9
CLASSES = 16
MORE = 3  # batches of a larger set


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Time batches of 32 px with guidance 1.4: U-ViT-S in bfloat16 on a GPU, U-ViT-xs on a CPU, both untrained.

    They are drawn in memory, and as sets of one batch and of three by `synthesize`, whose difference is the time of
    two batches with all their files.
    """
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    shape = Shape(32, 2, 2) if quick else BACKBONES["uvit-s" if on_gpu else "uvit-xs"]
    batch, steps, rounds = (16, 3, 2) if quick else (256, 50, 5) if on_gpu else (16, 5, 4)
    how = Generation(steps=steps, dtype="bfloat16" if on_gpu else "float32")
    with tempfile.TemporaryDirectory(prefix="generate-") as place:
        folder, sets = Path(place) / "model", (Path(place) / str(number) for number in count())
        write_model(folder, shape)
        model = load_generator(folder)
        model.backbone.to(device)
        if not on_gpu and not drawn_again(model, how, device, batch):
            raise RuntimeError("the same images drawn again are others")
        draw = partial(to_files, folder, how, device, batch)
        more: dict[str, Callable[[], object]] = {
            "1 batch to files": lambda: draw(1, next(sets)),
            f"{MORE} batches to files": lambda: draw(MORE, next(sets)),
        }
        timing = interleave({**ways(model, how, device, batch), **more}, rounds)
    found = share_of_backbone(report, timing, batch)
    one, several = (timing.wall[name] for name in more)
    alone = timing.wall["backbone alone"]
    files = median((MORE - 1) * each / (b - a) for each, a, b in zip(alone, one, several, strict=True))
    return {
        "unit": "images/s",
        **found,
        "share_with_files": files,
        "steps": steps,
        "promised": PROMISED,
        "kept": min(found["share_of_backbone"], files) >= PROMISED,
        "machine": machine(),
    }


def write_model(folder: Path, shape: Shape) -> None:
    """The folder of an untrained model."""
    torch.manual_seed(0)
    backbone = UViT(shape, channels=3, size=32, classes=CLASSES)
    folder.mkdir()
    save_weights(backbone.state_dict(), folder / GENERATOR_WEIGHTS)
    latents: dict[str, Json] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    made = description(
        classes=[f"{target:02d}" for target in range(CLASSES)],
        size=32,
        backbone="uvit",
        shape=shape,
        vae=Pixels(),
        spec=DiffusionSpec(),
        latents=latents,
    )
    write_new(folder / DESCRIPTION, json.dumps(made).encode())


def ways(model: Generator, how: Generation, device: torch.device, batch: int) -> dict[str, Callable[[], object]]:
    """A batch of images in memory, and only the calls of its backbone."""
    return {
        "generated": partial(generated, model, how, device, batch),
        "backbone alone": partial(backbone_alone, model, how, device, batch),
    }


def share_of_backbone(report: Report, timing: Timing, batch: int) -> dict[str, Any]:
    """Images a second, and its fraction of the rate of the backbone's calls, timed interleaved."""
    for name in ("generated", "backbone alone"):
        report.add(name, "rate", [batch / second for second in timing.wall[name]], "images/s")
    rate = timing.rate("generated", batch)["wall"]
    share = timing.speedup("generated", "backbone alone")
    return {"images_per_s": rate, "seconds_for_1000_images": 1000 / rate, "share_of_backbone": share}


def to_files(folder: Path, how: Generation, device: torch.device, batch: int, batches: int, out: Path) -> None:
    """A set of whole batches, by the command."""
    config = from_flags(
        SynthesizeConfig, method="diffusion", model=str(folder), ipc=batches * batch // CLASSES, steps=how.steps,
        image_batch=batch, model_dtype=how.dtype, out=out, device=str(device),
    )  # fmt: skip
    synthesize(config, Console(silent=True))


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
