"""Diffusion: noise schedules, what a network predicts, and two samplers, DDIM and DPM-Solver++(2M).

The samplers are pure functions of the network, the first noise and the classes. They and the schedules are written out
here, in fewer lines than an adapter to diffusers would take, so that sampling needs no further package; diffusers is
the oracle of their tests.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias, get_args

import numpy as np
import torch
from torch import Tensor

from labelstore.errors import InputError
from pipeline.networks.noise import DiffusionSpec, Prediction, Sampler

Denoise: TypeAlias = Callable[[Tensor, Tensor, Tensor], Tensor]
"""A network: noisy ``[n, C, S, S]``, times ``[n]``, labels ``[n]`` to its prediction ``[n, C, S, S]``."""


def noisy(clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """``alpha * clean + sigma * noise``, with factors ``[n]``."""
    return _wide(alpha, clean) * clean + _wide(sigma, clean) * noise


def target(prediction: Prediction, clean: Tensor, noise: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
    """The training target of a network, in the shape of ``clean``."""
    if prediction == "epsilon":
        return noise
    return _wide(alpha, clean) * noise - _wide(sigma, clean) * clean


def _wide(factor: Tensor, like: Tensor) -> Tensor:
    return factor.view(-1, *[1] * (like.ndim - 1))


def guided(denoise: Denoise, guidance: float, null: int) -> Denoise:
    """Classifier-free guidance: ``without + guidance * (with - without)`` label; 1 is the plain conditional network.

    Args:
        denoise: the network.
        guidance: at least 0; 0 ignores the classes.
        null: the label that is no class.

    Raises:
        InputError: when guidance is negative.
    """
    if not guidance >= 0:
        raise InputError(f"--guidance: expected a number >= 0, found {guidance}")
    if guidance == 1:
        return denoise

    def both(x: Tensor, times: Tensor, labels: Tensor) -> Tensor:
        labels = torch.cat([labels, torch.full_like(labels, null)])
        given, none = denoise(torch.cat([x, x]), torch.cat([times, times]), labels).chunk(2)
        return none + guidance * (given - none)

    return both


@torch.no_grad()
def sample(
    denoise: Denoise,
    spec: DiffusionSpec,
    noise: Tensor,
    labels: Tensor,
    *,
    steps: int,
    sampler: Sampler = "dpm",
) -> Tensor:
    """Images or latents made of noise, ``[n, C, S, S]``, in the dtype of the noise; draws nothing.

    Args:
        denoise: the network, guided or not.
        spec: how it was trained.
        noise: of a standard normal distribution, ``[n, C, S, S]``.
        labels: classes, int64 ``[n]``.
        steps: calls of the network.
        sampler: ``dpm``: DPM-Solver++(2M), the last step of first order; ``ddim``: DDIM without added noise.

    Raises:
        InputError: more steps than the model has steps of noise, or an unknown sampler.
    """
    if sampler not in get_args(Sampler):
        raise InputError(f"--sampler: expected one of {', '.join(get_args(Sampler))}, found {sampler!r}")
    alphas, sigmas = spec.levels()
    times = spec.times(steps)
    x, before, rise = noise, noise, 0.0
    for number, time in enumerate(times):
        last = number + 1 == len(times)
        alpha, sigma = float(alphas[time]), float(sigmas[time])
        next_alpha, next_sigma = (1.0, 0.0) if last else (float(a[times[number + 1]]) for a in (alphas, sigmas))
        found = denoise(x, torch.full((len(x),), int(time), device=x.device), labels).to(x.dtype)
        clean = (x - sigma * found) / alpha if spec.prediction == "epsilon" else alpha * x - sigma * found
        if sampler == "ddim":
            epsilon = found if spec.prediction == "epsilon" else sigma * x + alpha * found
            x = next_alpha * clean + next_sigma * epsilon
            continue
        if last:  # without noise left the step is the prediction itself
            return clean
        step = _log_ratio(next_alpha, next_sigma) - _log_ratio(alpha, sigma)
        direction = clean if not number else clean + step / (2 * rise) * (clean - before)
        x = next_sigma / sigma * x - next_alpha * float(np.expm1(-step)) * direction
        before, rise = clean, step
    return x


def _log_ratio(alpha: float, sigma: float) -> float:
    """Logarithm of the ratio of image and noise."""
    return float(np.log(alpha) - np.log(sigma))
