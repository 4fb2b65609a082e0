"""Noise schedules and samplers: their definition in float64, and diffusers'."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from labelstore.errors import InputError
from pipeline.networks.diffusion import guided, noisy, sample, target
from pipeline.networks.noise import DiffusionSpec

SPECS = [
    DiffusionSpec(noise=noise, prediction=kind) for noise in ("scaled-linear", "linear") for kind in ("epsilon", "v")
]
BETAS = {"scaled-linear": "scaled_linear", "linear": "linear"}
KINDS = {"epsilon": "epsilon", "v": "v_prediction"}


def named(spec: DiffusionSpec) -> str:
    return f"{spec.noise}-{spec.prediction}"


def network(x: torch.Tensor, times: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """A smooth function of everything."""
    shift = (times / 1000 + labels * 0.3).view(-1, 1, 1, 1)
    return 0.7 * x + torch.tanh(x.flip(2) + shift)


@pytest.mark.parametrize("spec", SPECS, ids=named)
def test_training_targets_are_those_of_the_definition(spec: DiffusionSpec) -> None:
    generator = torch.Generator().manual_seed(1)
    clean, noise = torch.randn(2, 4, 3, 2, 2, generator=generator, dtype=torch.float64)
    times = np.array([0, 10, 500, 999])
    betas = (
        np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        if "scaled" in spec.noise
        else np.linspace(0.00085, 0.012, 1000)
    )
    kept = np.array([np.prod(1 - betas[: time + 1]) for time in times])
    alpha, sigma = (torch.from_numpy(level[times]) for level in spec.levels())
    np.testing.assert_allclose(alpha.numpy() ** 2, kept, rtol=1e-12)
    found = noisy(clean, noise, alpha, sigma)
    wanted = target(spec.prediction, clean, noise, alpha, sigma)
    for row, share in enumerate(kept):
        x = share**0.5 * clean[row] + (1 - share) ** 0.5 * noise[row]
        torch.testing.assert_close(found[row], x)
        if spec.prediction == "epsilon":
            assert torch.equal(wanted[row], noise[row])
        else:  # v rotates (clean, noise) to (x, v)
            torch.testing.assert_close(share**0.5 * x - (1 - share) ** 0.5 * wanted[row], clean[row])


@pytest.mark.parametrize("spec", SPECS, ids=named)
@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
@pytest.mark.filterwarnings("ignore:__array__ implementation")
def test_samples_are_those_of_diffusers(spec: DiffusionSpec, sampler: Any) -> None:
    diffusers = pytest.importorskip("diffusers")
    steps = 27  # 999 = 27 * 37: DDIM of diffusers takes steps of equal length alone
    plain = {
        "beta_schedule": BETAS[spec.noise],
        "beta_start": spec.beta_start,
        "beta_end": spec.beta_end,
        "prediction_type": KINDS[spec.prediction],
    }
    if sampler == "dpm":
        theirs = diffusers.DPMSolverMultistepScheduler(**plain)
        theirs.set_timesteps(steps)
    else:
        theirs = diffusers.DDIMScheduler(**plain, clip_sample=False)
        theirs.num_inference_steps = steps
    np.testing.assert_allclose(spec.kept(), theirs.alphas_cumprod.double().numpy(), rtol=2e-4)
    times = spec.times(steps)
    if sampler == "dpm":
        assert times.tolist() == theirs.timesteps.tolist()
    noise, labels = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(2)), torch.tensor([0, 1])
    seen: list[torch.Tensor] = []

    def watched(x: torch.Tensor, at: torch.Tensor, given: torch.Tensor) -> torch.Tensor:
        seen.append(x)
        return network(x, at, given)

    found = sample(watched, spec, noise, labels, steps=steps, sampler=sampler)
    x = noise
    for time, ours in zip(times.tolist(), seen, strict=True):
        torch.testing.assert_close(ours, x, rtol=2e-4, atol=2e-4)
        x = theirs.step(network(x, torch.full((2,), time), labels), time, x).prev_sample
    if sampler == "dpm":  # DDIM of diffusers ends at the noise of time 0
        torch.testing.assert_close(found, x, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize("spec", SPECS, ids=named)
@pytest.mark.parametrize("sampler", ["dpm", "ddim"])
def test_a_perfect_network_gives_the_image_back(spec: DiffusionSpec, sampler: Any) -> None:
    alphas, sigmas = spec.levels()
    image = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)

    def knows(x: torch.Tensor, times: torch.Tensor, _labels: torch.Tensor) -> torch.Tensor:
        alpha, sigma = (torch.from_numpy(level)[times].view(-1, 1, 1, 1) for level in (alphas, sigmas))
        noise = (x - alpha * image) / sigma
        return target(spec.prediction, image, noise, alpha.flatten(), sigma.flatten())

    found = sample(knows, spec, torch.randn_like(image), torch.zeros(2).long(), steps=7, sampler=sampler)
    torch.testing.assert_close(found, image, rtol=0, atol=1e-9)


def test_guidance_of_one_is_the_network_and_others_are_on_the_line_through_both() -> None:
    x, times, labels = torch.randn(2, 3, 4, 4), torch.tensor([5, 700]), torch.tensor([0, 1])
    assert guided(network, 1.0, null=2) is network
    given, none = network(x, times, labels), network(x, times, torch.tensor([2, 2]))
    torch.testing.assert_close(guided(network, 1.4, null=2)(x, times, labels), given + 0.4 * (given - none))
    torch.testing.assert_close(guided(network, 0.0, null=2)(x, times, labels), none)


def test_what_no_schedule_has_is_refused() -> None:
    with pytest.raises(InputError, match=r"--guidance: expected a number >= 0, found -1"):
        guided(network, -1.0, null=2)
    with pytest.raises(InputError, match=r"--steps: expected 1 to 1000, .* found 1001"):
        DiffusionSpec().times(1001)
    with pytest.raises(InputError, match="--beta-start, --beta-end"):
        DiffusionSpec(beta_start=0.02, beta_end=0.01)
    with pytest.raises(InputError, match="--noise: expected one of scaled-linear, linear"):
        DiffusionSpec(noise="cosine")  # type: ignore[arg-type]
    with pytest.raises(InputError, match="--sampler: expected one of dpm, ddim"):
        sample(network, DiffusionSpec(), torch.zeros(1, 1, 2, 2), torch.zeros(1).long(), steps=2, sampler="euler")  # type: ignore[arg-type]
