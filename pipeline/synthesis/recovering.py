"""Images moved by Adam, step by step: what is kept of them so that a stopped command ends with the same bits."""

from __future__ import annotations

import math
import time
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.durable.newfile import new_version
from labelstore.errors import InputError, reason
from pipeline.synthesis.method import StopRequestedError, Working

EPSILON = 1e-8  # of Adam
SAVE_SECONDS = 30.0  # lost at most by a command that is killed
KEPT = ("step", "images", "exp_avg", "exp_avg_sq")
MOST_CLIPPED = 0.99  # of an image's values: steps of 400 times the published rate clip a sixth of them


@dataclass(frozen=True, kw_only=True, slots=True)
class Steps:
    """The steps of an optimisation.

    Attributes:
        count: number of steps.
        lr: learning rate of the first; it falls to 0 along half a cosine.
        betas: of Adam.
        low: least value of each channel, ``[3, 1, 1]``: images are clipped after each step.
        high: largest value of each channel, ``[3, 1, 1]``.
        advice: for the error when pixels are no longer numbers.
    """

    count: int
    lr: float
    betas: tuple[float, float]
    low: Tensor
    high: Tensor
    advice: str = "give a smaller --lr, or --dtype float32"


def recover(images: Tensor, loss: Callable[[Tensor, int], Tensor], steps: Steps, working: Working) -> Tensor:
    """Move images so that the loss falls; those of the last step are returned.

    Args:
        images: where they begin, float32 ``[n, 3, S, S]``, normalised; a stopped call's are taken in their place.
        loss: of images at a step, a scalar with a gradient.
        steps: how.
        working: where they are kept meanwhile.

    Raises:
        InputError: when a pixel is no longer a number, all of them are black or white, or the working file is not one
            of these images.
        StopRequestedError: after a signal; what there is is saved.
    """
    begun = images.detach()
    images = begun.clone().requires_grad_()
    adam = torch.optim.Adam([images], lr=steps.lr, betas=steps.betas, eps=EPSILON)
    begin = _restore(images, adam, working, steps.count)
    saved = time.monotonic()
    for step in range(begin, steps.count):
        if working.stopping():
            _save(step, images, adam, working)
            raise StopRequestedError
        adam.param_groups[0]["lr"] = steps.lr * (1 + math.cos(math.pi * step / steps.count)) / 2
        images.grad = None
        loss(images, step).backward()  # type: ignore[no-untyped-call]
        adam.step()
        with torch.no_grad():
            images.clamp_(steps.low, steps.high)
        working.progress(step + 1, steps.count)
        if time.monotonic() - saved > SAVE_SECONDS:
            _save(step + 1, images, adam, working)
            saved = time.monotonic()
    images = images.detach()
    _require_sound(images, begun, steps, working.file.name)
    return images


def _require_sound(images: Tensor, begun: Tensor, steps: Steps, name: str) -> None:
    """Refuse images that steps have made noise, which a teacher may yet recognise by chance.

    Raises:
        InputError: states their values.
    """
    job = name.partition(".")[0]
    expected = f"images of job {job}: expected numbers between black and white after {steps.count} steps"
    if not images.isfinite().all():
        raise InputError(f"{expected}, found NaN; {steps.advice}")
    clipped = _clipped(images, steps)
    if clipped > MOST_CLIPPED > _clipped(begun, steps):
        raise InputError(f"{expected}, found {100 * clipped:.0f} % of them at these limits; {steps.advice}")


def _clipped(images: Tensor, steps: Steps) -> float:
    """The share of values that are the least or the largest there are."""
    return float(((images <= steps.low) | (images >= steps.high)).double().mean())


def not_fallen(job: str, before: float, after: float, advice: str) -> str | None:
    """A warning, where the loss of a job's images after the last step is not below that before the first."""
    if after < before or before == 0:
        return None
    return f"{job}: the loss has not fallen: {before:.4g} before the first step, {after:.4g} after the last; {advice}"


def _save(step: int, images: Tensor, adam: torch.optim.Adam, working: Working) -> None:
    """Keep images, and the moments of their gradients, before a step."""
    moments = adam.state[images]
    if not moments:  # before the first step
        return
    tensors = (images.detach(), moments["exp_avg"], moments["exp_avg_sq"])
    arrays: list[Any] = [np.int64(step), *(each.cpu().numpy() for each in tensors)]
    with new_version(working.file, working.proof) as file:
        np.savez(file, **dict(zip(KEPT, arrays, strict=True)))


def _restore(images: Tensor, adam: torch.optim.Adam, working: Working, count: int) -> int:
    """Take what a stopped call has kept, if anything; the step that is next."""
    if not working.file.exists():
        return 0
    try:
        with np.load(working.file, allow_pickle=False) as kept:
            step, *arrays = (kept[name] for name in KEPT)
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{working.file}: cannot be read ({reason(error)}); remove it, its images begin again"
        ) from error
    shapes = [array.shape for array in arrays]
    if shapes != [tuple(images.shape)] * 3 or not 0 < int(step) <= count:
        raise InputError(
            f"{working.file}: expected images {list(images.shape)} at one of {count} steps, found "
            f"{list(shapes[0])} at step {int(step)}; remove it, its images begin again"
        )
    values, mean, square = (torch.from_numpy(array).to(images.device) for array in arrays)
    with torch.no_grad():
        images.copy_(values)
    adam.state[images] = {"step": torch.tensor(float(step)), "exp_avg": mean, "exp_avg_sq": square}
    return int(step)
