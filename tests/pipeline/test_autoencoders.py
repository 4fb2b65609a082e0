"""Autoencoders: what taef2 gives back of photographs, those of diffusers, and what is refused."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from labelstore.errors import InputError
from pipeline.networks.autoencoders import drawn, latent_side, open_autoencoder, taef2_decoder, taef2_encoder

DATA = Path(os.environ.get("GIFTWRAP_DATA", "/nowhere"))
THERE = (DATA / "models" / "taef2-encoder.safetensors").is_file()


@pytest.mark.skipif(not THERE, reason="GIFTWRAP_DATA has no models/taef2-*.safetensors")
@pytest.mark.parametrize(
    ("folder", "size", "decibels"), [("imagenette/val", 128, 27.1), ("cifar10/test", 64, 30.8)], ids=["128", "64"]
)
def test_taef2_gives_photographs_back_as_its_figures_say(folder: str, size: int, decibels: float) -> None:
    files = [sorted(group.iterdir())[:3] for group in sorted((DATA / folder).iterdir())]
    images = [
        np.asarray(Image.open(path).convert("RGB").resize((size, size), Image.Resampling.BICUBIC))
        for paths in files
        for path in paths
    ]
    pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255
    vae = open_autoencoder("taef2")
    latents = vae.encode(pixels)
    assert latents.shape == (len(pixels), vae.channels, size // vae.factor, size // vae.factor)
    assert 0.6 < float(latents.std()) < 1.1
    errors = (vae.decode(latents) - pixels).square().mean((1, 2, 3)).double()
    assert abs(float((-10 * errors.log10()).mean()) - decibels) < 0.6


def test_taef2_needs_its_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    with pytest.raises(InputError, match="give taef2:FOLDER, or set GIFTWRAP_DATA"):
        open_autoencoder("taef2")
    with pytest.raises(InputError, match="no such file"):
        open_autoencoder(f"taef2:{tmp_path}")


def test_taef2_has_the_parameters_that_its_files_hold() -> None:
    counts = [sum(weight.numel() for weight in half(32).parameters()) for half in (taef2_encoder, taef2_decoder)]
    assert all(abs(count / 1.34e6 - 1) < 0.05 for count in counts)


@pytest.mark.filterwarnings("ignore:.*")
def test_those_of_diffusers_have_their_own_scaling(tmp_path: Path) -> None:
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(0)
    diffusers.AutoencoderKL(
        block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1, latent_channels=2, scaling_factor=0.25,
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2, shift_factor=0.5,
    ).save_pretrained(tmp_path / "kl")  # fmt: skip
    diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1), latent_channels=3,
    ).save_pretrained(tmp_path / "tiny")  # fmt: skip
    kl, tiny = (open_autoencoder(f"diffusers:{tmp_path / name}") for name in ("kl", "tiny"))
    assert (kl.factor, kl.channels, kl.moments, kl.scaling) == (2, 2, True, (0.5, 4.0))
    assert (tiny.factor, tiny.channels, tiny.moments, tiny.scaling) == (2, 3, False, (0.0, 1.0))
    images = torch.rand(3, 3, 16, 16)
    assert kl.encode(images).shape == (3, 4, 8, 8)
    assert tiny.encode(images).shape == (3, 3, 8, 8)
    noise = torch.randn(3, 2, 8, 8)
    posterior = diffusers.models.autoencoders.vae.DiagonalGaussianDistribution(kl.encode(images))
    torch.testing.assert_close(drawn(kl.encode(images), noise), posterior.mean + posterior.std * noise)
    for vae in (kl, tiny):
        found = vae.decode(torch.randn(3, vae.channels, 8, 8))
        assert found.shape == images.shape
        assert 0 <= float(found.min()) <= float(found.max()) <= 1
    assert kl.identity != tiny.identity
    (tmp_path / "kl" / "config.json").write_text('{"_class_name": "UNet2DModel"}')
    with pytest.raises(InputError, match="expected an AutoencoderKL or AutoencoderTiny"):
        open_autoencoder(f"diffusers:{tmp_path / 'kl'}")


def test_the_missing_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(InputError, match=r"needs diffusers: pip install 'giftwrap\[diffusion\]'"):
        open_autoencoder("diffusers:somewhere")


@pytest.mark.parametrize(
    ("name", "message", "asked"),
    [
        ("nope", "no such folder, and no OWNER/NAME", 0),
        ("nowhere/nothing", r"not on this machine, and not to be had from the Hugging Face hub: no network", 1),
    ],
)
def test_a_hub_that_cannot_be_reached_is_asked_once(
    name: str, message: str, asked: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("diffusers")
    hub = Mock(side_effect=OSError("no network"))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", hub)
    monkeypatch.setattr("time.sleep", Mock(side_effect=AssertionError))
    with pytest.raises(InputError, match=f"--vae diffusers:{name}: cannot be loaded .*{message}"):
        open_autoencoder(f"diffusers:{name}")
    assert hub.call_count == asked


def test_none_are_pixels_and_others_are_refused() -> None:
    vae = open_autoencoder("none")
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(vae.decode(vae.encode(images)), images)
    assert drawn(images, None) is images
    with pytest.raises(InputError, match="--vae: expected none, taef2, taef2:FOLDER or diffusers:ID-OR-FOLDER"):
        open_autoencoder("sd")
    vae.factor = 8
    with pytest.raises(InputError, match="--size: expected a multiple of 8"):
        latent_side(vae, 12)
