"""From the pixels of crops to the input of a network, in one place for teacher and student."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TypeAlias

import torch
from torch import Tensor

from labelstore.format.columns import CropRows
from pipeline.device.kernels import kernels_agree
from pipeline.plan.augment import inputs_of

Normalisation: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Channel means and standard deviations of pixels in [0, 1]."""


def normalise(
    pixels: Tensor, mean: Sequence[float], std: Sequence[float], dtype: torch.dtype, channels_last: bool
) -> Tensor:
    """``(x / 255 - mean) / std`` as one multiplication and one addition in float32, then cast; one pass on a GPU.

    Args:
        pixels: uint8 ``[n, S, S, 3]``.
        mean: channel means of the pixels in [0, 1].
        std: channel standard deviations of the pixels in [0, 1].
        dtype: dtype of the result.
        channels_last: memory format of the result.

    Returns:
        ``[n, 3, S, S]`` on the device of ``pixels``.
    """
    scale, shift = _factors(tuple(mean), tuple(std), pixels.device)
    if pixels.is_cuda:
        if channels_last and _kernel_works(pixels.device):
            from pipeline.render.kernels import normalise_bytes  # Triton is there

            return normalise_bytes(pixels, *_numbers(tuple(mean), tuple(std)), dtype)
        return at_once(pixels, scale, shift, dtype, channels_last)
    images = pixels.float().mul_(scale).add_(shift).to(dtype).permute(0, 3, 1, 2)
    return images if channels_last else images.contiguous()


def network_input(
    pixels: Tensor,
    rows: CropRows,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype,
    channels_last: bool,
    size: int | None = None,
    plan: Normalisation | None = None,
) -> Tensor:
    """`normalise`, then the augmentations of normalised images that the rows contain, in float32.

    Args:
        pixels: uint8 ``[n, S, S, 3]``.
        rows: of the first crops; the crops after them are only normalised.
        mean: channel means of the pixels in [0, 1].
        std: channel standard deviations of the pixels in [0, 1].
        dtype: dtype of the result.
        channels_last: memory format of the result.
        size: side of the crops that the rows were drawn for; S when None.
        plan: normalisation that those augmentations work on, where that of the network is another one: `mean` and
            `std` when None.

    Returns:
        ``[n, 3, S, S]`` on the device of ``pixels``.
    """
    inputs = inputs_of(rows.names)
    if not inputs:
        return normalise(pixels, mean, std, dtype, channels_last)
    first = plan or (mean, std)
    images = normalise(pixels, *first, torch.float32, channels_last=False)
    changed = images[: len(rows)]
    for each in inputs:
        changed = each.apply(changed.contiguous(), rows, size or images.shape[-1])
    images = torch.cat([changed, images[len(rows) :]])
    if plan is not None and plan != (tuple(mean), tuple(std)):
        images = renormalise(images, plan, (tuple(mean), tuple(std)))
    return images.to(dtype, memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def renormalise(images: Tensor, old: Normalisation, new: Normalisation) -> Tensor:
    """Images ``[n, 3, S, S]`` that are normalised by ``old``, normalised by ``new``."""
    scale, shift = _changes(old, new, images.device)
    return images * scale + shift


def at_once(pixels: Tensor, scale: Tensor, shift: Tensor, dtype: torch.dtype, channels_last: bool) -> Tensor:
    """Bytes read, and the network's input written in its dtype and layout, by one kernel that works in float32."""
    n, height, width, channels = pixels.shape
    layout = torch.channels_last if channels_last else torch.contiguous_format
    images = torch.empty((n, channels, height, width), dtype=dtype, device=pixels.device, memory_format=layout)
    torch.addcmul(shift, pixels, scale, out=images.permute(0, 2, 3, 1))
    return images


@cache
def _factors(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift, made once: a GPU would be waited for at every batch."""
    with torch.inference_mode(False):
        scale, shift = (torch.tensor(values, device=device) for values in _numbers(mean, std))
    return scale, shift


def _numbers(mean: tuple[float, ...], std: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Scale and shift of bytes, by channel."""
    return tuple(1 / (255 * s) for s in std), tuple(-m / s for m, s in zip(mean, std, strict=True))


@cache
def _kernel_works(device: torch.device) -> bool:
    """Whether Triton's kernel runs on a GPU and gives the bits of one operation after the other; warns if not."""
    return kernels_agree(lambda: _compare_kernel(device), "the input of networks is the same and takes longer")


def _compare_kernel(
    device: torch.device, dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16, torch.float16)
) -> None:
    from pipeline.render.kernels import normalise_bytes

    pixels = torch.arange(256, dtype=torch.uint8).repeat(9).view(1, 16, 48, 3).to(device)
    scale, shift = (0.0171, 0.0175, 0.0174), (-2.118, -2.036, -1.804)
    for dtype in dtypes:
        expected = pixels.float().mul_(pixels.new_tensor(scale, dtype=torch.float32))
        expected = expected.add_(expected.new_tensor(shift)).to(dtype).permute(0, 3, 1, 2)
        if not torch.equal(normalise_bytes(pixels, scale, shift, dtype), expected):
            raise RuntimeError(f"another input in {dtype} than plain torch's")


@cache
def _changes(old: Normalisation, new: Normalisation, device: torch.device) -> tuple[Tensor, Tensor]:
    """Scale and shift from one normalisation to another, ``[3, 1, 1]``, made once likewise."""
    factors = zip(*old, *new, strict=True)
    scales_and_shifts = [(s / new_s, (m - new_m) / new_s) for m, s, new_m, new_s in factors]
    with torch.inference_mode(False):
        scale, shift = torch.tensor(scales_and_shifts, device=device).T[..., None, None]
    return scale, shift
