"""The training data of a generator, images or latents in batches, and the loss of a backbone on them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from labelstore.command.console import Console
from labelstore.spec import Json
from pipeline.images.manifest import Manifest, scan
from pipeline.networks.autoencoders import NONE, Autoencoder, drawn, latent_side, open_autoencoder
from pipeline.networks.diffusion import noisy, target
from pipeline.ranks import Ranks
from pipeline.render import Renderer, make_renderer
from trainer.batch import TrainBatch
from trainer.crops import CropSource, FreshCrops
from trainer.distributed import autocast
from trainer.file_names import LATENT_CACHE, TRAIN_CACHE
from trainer.generator_config import GeneratorConfig
from trainer.labels import NoLabels
from trainer.latents import LatentCrops, key_of, open_latents
from trainer.loader import Loader


@dataclass(frozen=True, eq=False, kw_only=True)
class Subject:
    """The training data of a generator, and how images become the input of the backbone.

    Attributes:
        manifest: the images.
        vae: the autoencoder, on the device.
        loader: yields the batches of this process.
        mean: subtracted from latents, float32 ``[C]`` on the CPU; zeros if batches are already normalised.
        std: latents are divided by it, likewise; ones if batches are already normalised.
        latents: ``mean`` and ``std`` of latents and their origin, for the description of the model.
        renderer: id of the renderer of images.
        key: digest of the latents; None for pixels.
    """

    manifest: Manifest
    vae: Autoencoder
    loader: Loader
    mean: Tensor
    std: Tensor
    latents: Mapping[str, Json]
    renderer: Mapping[str, Json]
    key: str | None


def open_subject(config: GeneratorConfig, ranks: Ranks, console: Console) -> Subject:
    """Open the images, and compute their latents if there is an autoencoder.

    Raises:
        InputError: when images, size and autoencoder are incompatible.
    """
    vae, spec, device = open_autoencoder(config.vae), config.plan(), torch.device(config.render.device)
    latent_side(vae, config.size)
    vae.to(device)
    with ranks.first_alone():
        manifest = scan(
            config.images,
            class_order=config.class_order,
            options=config.source,
            cache=config.run / TRAIN_CACHE,
            skip_broken=config.skip_broken,
        )
    renderer = make_renderer(manifest, spec, **config.render.arguments)
    if config.vae == NONE:
        return _of_pixels(config, ranks, manifest, vae, renderer)
    with closing(renderer), ranks.first_alone(), console.progress("latents", len(manifest), "images") as progress:
        found = open_latents(config.run / LATENT_CACHE, manifest, spec, vae, renderer, device, progress.advance)
    key = key_of(manifest, spec, vae, renderer.id)
    measured: dict[str, Json] = {"mean": found.mean.tolist(), "std": found.std.tolist()}
    latents: dict[str, Json] = {**measured, "source": f"measured on {len(manifest):,} images"}
    if vae.scaling:
        mean, std = ([value] * vae.channels for value in vae.scaling)
        latents = {"mean": [*mean], "std": [*std], "source": "the autoencoder's own scaling"}
    return Subject(
        manifest=manifest,
        vae=vae,
        loader=_loader(config, ranks, LatentCrops(manifest, spec, found, key)),
        mean=torch.tensor(latents["mean"], dtype=torch.float32),
        std=torch.tensor(latents["std"], dtype=torch.float32),
        latents={**latents, "measured": measured},
        renderer=renderer.id,
        key=key,
    )


def _of_pixels(
    config: GeneratorConfig, ranks: Ranks, manifest: Manifest, vae: Autoencoder, renderer: Renderer
) -> Subject:
    """Images without an autoencoder, rendered as they are played."""
    low, high = vae.scaling or (0.0, 1.0)
    mean, std = (low,) * vae.channels, (high,) * vae.channels
    columns = range(len(manifest.classes))
    crops = FreshCrops(manifest, config.plan(), renderer, mean=mean, std=std, label_columns=columns)
    return Subject(
        manifest=manifest,
        vae=vae,
        loader=_loader(config, ranks, crops),
        mean=torch.zeros(vae.channels),
        std=torch.ones(vae.channels),
        latents={"mean": [*mean], "std": [*std], "source": "pixels from 0 to 1 become numbers from -1 to 1"},
        renderer=renderer.id,
        key=None,
    )


def _loader(config: GeneratorConfig, ranks: Ranks, crops: CropSource) -> Loader:
    """Batches of crops with targets, but without labels."""
    return Loader(
        crops,
        NoLabels(),
        batch_size=config.batch_size,
        seed=config.seed,
        view_order="cycle",
        rank=ranks.rank,
        world=ranks.world,
        device=config.render.device,
    )


class Denoising:
    """The loss of a backbone on noisy images or latents.

    Args:
        config: of the run.
        subject: what is learned.
    """

    def __init__(self, config: GeneratorConfig, subject: Subject) -> None:
        self._config, device = config, torch.device(config.render.device)
        self._alpha, self._sigma = (torch.from_numpy(level).float().to(device) for level in config.diffusion.levels())
        self._mean, self._std = (value.to(device)[:, None, None] for value in (subject.mean, subject.std))
        self._moments, self._null = subject.vae.moments, len(subject.manifest.classes)

    def loss(self, called: nn.Module, batch: TrainBatch) -> Tensor:
        """The mean loss of a batch; latents, times, noise and dropped labels are drawn each time."""
        encoded, labels = batch.images, batch.targets
        latents = self.normalised(encoded, torch.randn_like(encoded[:, ::2]) if self._moments else None)
        times = torch.randint(len(self._alpha), labels.shape, device=labels.device)
        noise = torch.randn_like(latents)
        dropped = torch.rand(labels.shape, device=labels.device) < self._config.drop_labels
        return self.of(called, latents, torch.where(dropped, self._null, labels), times, noise)

    def normalised(self, encoded: Tensor, noise: Tensor | None) -> Tensor:
        """The normalised latents that the backbone learns, from latents or from their moments."""
        return (drawn(encoded, noise) - self._mean) / self._std

    def of(self, called: nn.Module, latents: Tensor, labels: Tensor, times: Tensor, noise: Tensor) -> Tensor:
        """The mean squared error of the backbone's prediction."""
        alpha, sigma = self._alpha[times], self._sigma[times]
        with autocast(self._config):
            found: Tensor = called(noisy(latents, noise, alpha, sigma), times, labels)
        wanted = target(self._config.diffusion.prediction, latents, noise, alpha, sigma)
        return (found.float() - wanted).square().mean()
