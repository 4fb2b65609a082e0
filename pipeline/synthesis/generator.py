"""A model that generates images of classes: a backbone, an autoencoder and the numbers between them; its folder."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError, MismatchError, reason
from labelstore.operations.generator import DESCRIPTION, FORMAT, GENERATOR_WEIGHTS, read_description
from labelstore.spec import Json
from labelstore.version import __version__
from pipeline.networks.autoencoders import Autoencoder, latent_side, open_autoencoder
from pipeline.networks.backbones import Shape
from pipeline.networks.diffusion import guided, sample
from pipeline.networks.noise import DiffusionSpec, Sampler
from pipeline.networks.uvit import UViT
from pipeline.networks.weights import load_weights, read_weights
from pipeline.plan import draws

DECODED = 16  # images decoded at a time
Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Generation:
    """Options for drawing images from a model.

    Attributes:
        steps: calls of the backbone.
        guidance: as `pipeline.networks.diffusion.guided` takes it.
        sampler: as `pipeline.networks.diffusion.sample` takes it.
        dtype: ``float32``, or ``bfloat16`` for the backbone under autocast.
    """

    steps: int = 50
    guidance: float = 1.4
    sampler: Sampler = "dpm"
    dtype: str = "float32"


@dataclass(frozen=True, eq=False, kw_only=True)
class Generator:
    """A model in use.

    Attributes:
        backbone: takes noise away.
        vae: latents to images.
        spec: the noise that the backbone was trained with.
        mean: what was subtracted from latents, by channel, ``[C]``.
        std: what they were divided by, ``[C]``.
        classes: class names in target order.
        size: side of the images in pixels.
        weights: digest of the backbone's weights; None while they are trained.
    """

    backbone: UViT
    vae: Autoencoder
    spec: DiffusionSpec
    mean: Tensor
    std: Tensor
    classes: tuple[str, ...]
    size: int
    weights: str | None = None

    def noise(self, seed: int, targets: Indexes, numbers: Indexes) -> Tensor:
        """Initial noise of images, a function of (seed, class, number), float32 ``[n, C, s, s]`` on the CPU."""
        side = self.size // self.vae.factor
        count = self.vae.channels * side * side
        blocks, images = -(-count // 4), len(targets)
        counters = (np.tile(np.arange(blocks), images), np.repeat(numbers, blocks), np.repeat(targets, blocks))
        words = draws.uniform(draws.philox(draws.key("generate", seed), *counters)).reshape(4, images, blocks)
        radius, angle = np.sqrt(-2 * np.log(words[:2])), 2 * np.pi * words[2:]
        normal = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)]).transpose(1, 0, 2)
        found = normal.reshape(images, -1)[:, :count].astype(np.float32)
        return torch.from_numpy(found).reshape(-1, self.vae.channels, side, side)

    def latents(self, noise: Tensor, targets: Tensor, how: Generation) -> Tensor:
        """Normalised latents made of noise ``[n, C, s, s]``, on its device; the backbone is in eval mode."""

        def denoise(x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
            with self.precision(noise.device, how.dtype):
                found: Tensor = self.backbone(x, times, labels)
            return found.float()

        return sample(
            guided(denoise, how.guidance, self.backbone.null),
            self.spec,
            noise,
            targets,
            steps=how.steps,
            sampler=how.sampler,
        )

    def images(self, latents: Tensor) -> npt.NDArray[np.uint8]:
        """The images of normalised latents, uint8 ``[n, S, S, 3]``."""
        mean, std = (value.to(latents.device)[:, None, None] for value in (self.mean, self.std))
        parts = [self.vae.decode(part * std + mean) for part in torch.split(latents, DECODED)]
        pixels: npt.NDArray[np.uint8] = (torch.cat(parts) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
        return pixels

    @staticmethod
    def precision(device: torch.device, dtype: str) -> AbstractContextManager[Any]:
        """The autocast context of the backbone."""
        return torch.autocast(device.type, torch.bfloat16) if dtype == "bfloat16" else nullcontext()


def description(
    *,
    classes: Sequence[str],
    size: int,
    backbone: str,
    shape: Shape,
    vae: Autoencoder,
    spec: DiffusionSpec,
    latents: Mapping[str, Json],
) -> dict[str, Json]:
    """The content of generator.json.

    Args:
        classes: class names in target order.
        size: side of the images in pixels.
        backbone: its name.
        shape: its numbers.
        vae: the autoencoder.
        spec: the noise.
        latents: ``mean`` and ``std`` by which they are normalised, and what was measured of them.
    """
    return {
        "format": FORMAT,
        "version": __version__,
        "classes": [*classes],
        "size": size,
        "backbone": {"name": backbone, **asdict(shape)},
        "vae": {"place": vae.place, **vae.identity},
        "diffusion": spec.to_json(),
        "latents": dict(latents),
    }


def load_generator(folder: Path, *, vae: str | None = None, weights: str = GENERATOR_WEIGHTS) -> Generator:
    """The model in a folder that `train-generator` has made, on the CPU, in eval mode.

    Args:
        folder: with generator.json and weights.
        vae: where the autoencoder is, if it is not where it was.
        weights: the file of weights.

    Raises:
        InputError: there is no model, or it cannot be read.
        MismatchError: the autoencoder is another one than the model's.
    """
    path, made = folder / DESCRIPTION, read_description(folder)
    place = vae or str(made["vae"].pop("place"))
    opened = open_autoencoder(place)
    made["vae"].pop("place", None)
    if json.loads(json.dumps(dict(opened.identity))) != made["vae"]:
        raise MismatchError(
            f"--vae {place}: the model in {folder} was trained on latents of another autoencoder, "
            f"{made['vae']['name']} with weights {str(made['vae'].get('weights'))[:12]}; give that one by --vae"
        )
    try:
        shape = Shape(**{name: value for name, value in made["backbone"].items() if name != "name"})
        spec = DiffusionSpec(**made["diffusion"])
        classes, size = tuple(map(str, made["classes"])), int(made["size"])
        mean, std = (torch.tensor(made["latents"][name], dtype=torch.float32) for name in ("mean", "std"))
        if not len(mean) == len(std) == opened.channels:
            raise ValueError(f"expected mean and std of {opened.channels} channels, found {len(mean)} and {len(std)}")
        backbone = UViT(shape, channels=opened.channels, size=latent_side(opened, size), classes=len(classes))
    except (LookupError, TypeError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({reason(error)}); train the model again") from error
    found = read_weights(folder / weights)
    load_weights(backbone, found)
    backbone.eval().requires_grad_(False)
    return Generator(
        backbone=backbone,
        vae=opened,
        spec=spec,
        mean=mean,
        std=std,
        classes=classes,
        size=size,
        weights=found.digest,
    )
