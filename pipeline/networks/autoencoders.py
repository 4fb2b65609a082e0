"""Autoencoders that images are generated in the latents of: none, those of diffusers, and FLUX.2's tiny one."""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason
from labelstore.spec import Json
from pipeline.networks.weights import read_weights, state_digest

NONE, TAEF2, DIFFUSERS = "none", "taef2", "diffusers:"
DATA = "GIFTWRAP_DATA"  # the environment variable of the data bundle's folder
PROBED_SIDE = 64  # of the black image by which the factor of an autoencoder is found
HUB_SECONDS = 10.0  # for the hub's answer whether it has an autoencoder
LOG_VARIANCES = (-30.0, 20.0)  # beyond them diffusers cuts a posterior's logarithm of the variance


class Autoencoder(Protocol):
    """From images to latents and back; in float32 and eval mode.

    Attributes:
        place: as ``--vae`` names it.
        identity: distinguishes it from other autoencoders, independent of the place of its files.
        factor: side of the images over the side of the latents.
        channels: C of the latents.
        moments: whether `encode` gives the means and the logarithms of the variances of latents, ``2 C`` channels.
        scaling: its own mean and deviation of latents, by which its diffusion models normalise them; None: measured.
    """

    place: str
    identity: Mapping[str, Json]
    factor: int
    channels: int
    moments: bool
    scaling: tuple[float, float] | None

    def encode(self, images: Tensor) -> Tensor:
        """Latents or their moments, float32 ``[n, C or 2 C, S / factor, S / factor]``, of images in [0, 1]."""

    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1], float32 ``[n, 3, S, S]``."""

    def to(self, device: torch.device) -> None:
        """Move it to a device."""


class Pixels:
    """No autoencoder: the latents are pixels in [0, 1], which models get from -1 to 1."""

    place = NONE
    identity: Mapping[str, Json] = {"name": NONE}
    factor, channels, moments = 1, 3, False
    scaling: tuple[float, float] | None = (0.5, 0.5)

    def encode(self, images: Tensor) -> Tensor:
        """The images."""
        return images

    def decode(self, latents: Tensor) -> Tensor:
        """The pixels, cut to [0, 1]."""
        return latents.clamp(0, 1)

    def to(self, device: torch.device) -> None:  # noqa: ARG002  of the protocol
        """Nothing is moved."""
        return


class Convolutions(nn.Module):
    """Three 3 x 3 convolutions and a skip; ``pooled`` ones add a branch around a group norm before them."""

    def __init__(self, *, pooled: bool, width: int = 64) -> None:
        super().__init__()
        layers = [layer for _ in range(3) for layer in (nn.Conv2d(width, width, 3, padding=1), nn.ReLU())]
        self.conv = nn.Sequential(*layers[:-1])
        self.pool = (
            nn.Sequential(
                nn.Conv2d(width, 4 * width, 1, bias=False),
                nn.GroupNorm(4, 4 * width),
                nn.ReLU(),
                nn.Conv2d(4 * width, width, 1, bias=False),
            )
            if pooled
            else None
        )

    def forward(self, x: Tensor) -> Tensor:
        """``[n, 64, S, S]`` to the same."""
        if self.pool is not None:
            x = x + self.pool(x)
        found: Tensor = self.conv(x) + x
        return found.relu()


class Bounded(nn.Module):
    """3 tanh(x / 3)."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape to the same."""
        return 3 * torch.tanh(x / 3)


def taef2_encoder(channels: int) -> nn.Sequential:
    """Images to latents of an eighth of the side."""
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, padding=1), Convolutions(pooled=False)]
    for stage in range(3):
        layers.append(nn.Conv2d(64, 64, 3, 2, 1, bias=False))
        layers += [Convolutions(pooled=stage == 2) for _ in range(3)]
    return nn.Sequential(*layers, nn.Conv2d(64, channels, 3, padding=1))


def taef2_decoder(channels: int) -> nn.Sequential:
    """Latents to images of eight times the side."""
    layers: list[nn.Module] = [Bounded(), nn.Conv2d(channels, 64, 3, padding=1), nn.ReLU()]
    for stage in range(3):
        layers += [Convolutions(pooled=not stage) for _ in range(3)]
        layers += [nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
    return nn.Sequential(*layers, Convolutions(pooled=False), nn.Conv2d(64, 3, 3, padding=1))


class Taef2:
    """The tiny autoencoder of FLUX.2 (madebyollin/taesd): 32 channels at an eighth of the side.

    Args:
        place: ``taef2``, with the weights in ``models/`` of the data bundle, or ``taef2:FOLDER``.

    Raises:
        InputError: the weights are not there, or not its own.
    """

    factor, channels, moments = 8, 32, False
    scaling: tuple[float, float] | None = None

    def __init__(self, place: str) -> None:
        self.place = place
        folder = _taef2_folder(place)
        self._encoder, self._decoder = taef2_encoder(self.channels), taef2_decoder(self.channels)
        tensors: dict[str, Tensor] = {}
        for part, network in (("encoder", self._encoder), ("decoder", self._decoder)):
            path = folder / f"taef2-{part}.safetensors"
            found = read_weights(path).tensors
            try:
                network.load_state_dict({name: value.float() for name, value in found.items()})
            except RuntimeError as error:
                raise InputError(f"--vae {place}: {path} are not the weights of taef2 ({reason(error)})") from error
            network.eval().requires_grad_(False)
            tensors |= {f"{part}.{name}": value for name, value in found.items()}
        self.identity: Mapping[str, Json] = {"name": TAEF2, "weights": state_digest(tensors)}

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents, ``[n, 32, S / 8, S / 8]``."""
        found: Tensor = self._encoder(images)
        return found

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1]."""
        found: Tensor = self._decoder(latents)
        return found.clamp(0, 1)

    def to(self, device: torch.device) -> None:
        """Move both halves."""
        self._encoder.to(device)
        self._decoder.to(device)


def _taef2_folder(place: str) -> Path:
    """The place of the weights."""
    _, colon, folder = place.partition(":")
    if colon:
        return Path(folder)
    if data := os.environ.get(DATA):
        return Path(data) / "models"
    raise InputError(
        f"--vae {TAEF2}: needs its weights, taef2-encoder.safetensors and taef2-decoder.safetensors; give "
        f"{TAEF2}:FOLDER, or set {DATA} to the folder of the data bundle"
    )


class OfDiffusers:
    """An AutoencoderKL or AutoencoderTiny of diffusers, with its own scaling of latents.

    Args:
        place: ``diffusers:`` and an identifier of the Hugging Face hub, or a folder.

    Raises:
        InputError: diffusers is not installed, or there is no such autoencoder.
    """

    def __init__(self, place: str) -> None:
        self.place, name = place, place.removeprefix(DIFFUSERS)
        network: Any = _load_diffusers(name)
        network.eval().requires_grad_(False)
        self._network, config = network, network.config
        self.moments = type(network).__name__ == "AutoencoderKL"
        self.channels = int(config.latent_channels)
        scale, shift = float(config.scaling_factor), float(getattr(config, "shift_factor", None) or 0)
        self.scaling: tuple[float, float] | None = (shift, 1 / scale)
        self.factor = PROBED_SIDE // self.encode(torch.zeros(1, 3, PROBED_SIDE, PROBED_SIDE)).shape[-1]
        self.identity: Mapping[str, Json] = {
            "name": type(network).__name__,
            "weights": state_digest(network.state_dict()),
            "scaling": [*self.scaling],
        }

    @torch.no_grad()
    def encode(self, images: Tensor) -> Tensor:
        """Latents, or their moments."""
        found = self._network.encode(images * 2 - 1)
        latents: Tensor = found.latent_dist.parameters if self.moments else found.latents
        return latents

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Images in [0, 1]."""
        found: Tensor = self._network.decode(latents).sample
        return (found / 2 + 0.5).clamp(0, 1)

    def to(self, device: torch.device) -> None:
        """Move it."""
        self._network.to(device)


def _load_diffusers(name: str) -> Any:
    """The autoencoder, from a folder, or from the hub's cache or the hub."""
    try:
        import diffusers
    except ImportError as error:
        raise InputError(
            f"--vae {DIFFUSERS}{name}: needs diffusers: pip install 'giftwrap[diffusion]' ({reason(error)})"
        ) from error
    kinds: tuple[Any, ...] = (diffusers.AutoencoderKL, diffusers.AutoencoderTiny)
    try:
        with warnings.catch_warnings(action="ignore"):  # of arguments that diffusers gives the hub's library
            try:
                found = _of_its_kind(kinds, name, here=True)
            except OSError:
                if Path(name).is_dir():
                    raise
                _ask_hub(name)
                found = _of_its_kind(kinds, name, here=False)
    except Exception as error:  # no such folder, no network, other files
        raise InputError(f"--vae {DIFFUSERS}{name}: cannot be loaded ({reason(error)})") from error
    if found is None:
        raise InputError(f"--vae {DIFFUSERS}{name}: expected an AutoencoderKL or AutoencoderTiny, found another class")
    return found


def _of_its_kind(kinds: tuple[Any, ...], name: str, *, here: bool) -> Any:
    """The autoencoder, by the class that its config.json names; None if that is another one."""
    config = kinds[0].load_config(name, local_files_only=here)
    kind = next((kind for kind in kinds if kind.__name__ == config.get("_class_name")), None)
    return None if kind is None else kind.from_pretrained(name, local_files_only=here)


def _ask_hub(name: str) -> None:
    """Ask the hub once whether it has an autoencoder: what loads one tries again for half a minute.

    Raises:
        OSError: it has none, or cannot be reached.
    """
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        raise FileNotFoundError("no such folder, and no OWNER/NAME of the Hugging Face hub")
    from huggingface_hub import HfApi

    try:
        HfApi().model_info(name, timeout=HUB_SECONDS)
    except Exception as error:  # of whatever library connects
        raise OSError(f"not on this machine, and not to be had from the Hugging Face hub: {reason(error)}") from error


def open_autoencoder(place: str) -> Autoencoder:
    """The autoencoder of ``--vae``, on the CPU.

    Raises:
        InputError: there is none, or it cannot be loaded.
    """
    if place == NONE:
        return Pixels()
    if place.partition(":")[0] == TAEF2:
        return Taef2(place)
    if place.startswith(DIFFUSERS) and place != DIFFUSERS:
        return OfDiffusers(place)
    raise InputError(f"--vae: expected {NONE}, {TAEF2}, {TAEF2}:FOLDER or {DIFFUSERS}ID-OR-FOLDER, found {place!r}")


def latent_side(vae: Autoencoder, size: int) -> int:
    """Side of the latents of images of ``size`` px.

    Raises:
        InputError: when the autoencoder does not divide it.
    """
    if size % vae.factor:
        raise InputError(
            f"--size: expected a multiple of {vae.factor}, by which {vae.place} makes the side smaller, found {size}"
        )
    return size // vae.factor


def drawn(encoded: Tensor, noise: Tensor | None) -> Tensor:
    """Latents ``[n, C, S, S]``: as they are, or drawn from moments ``[n, 2 C, S, S]`` with noise ``[n, C, S, S]``."""
    if noise is None:
        return encoded
    mean, log_variance = encoded.chunk(2, dim=1)
    found: Tensor = mean + torch.exp(0.5 * log_variance.clamp(*LOG_VARIANCES)) * noise
    return found
