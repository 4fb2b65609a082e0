"""MixUp: every crop of a group is blended with its partner, by one share for the whole group or one a pair."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from labelstore.format.columns import MIXUP_COLUMNS, CropRows
from pipeline.plan import draws

if TYPE_CHECKING:
    from torch import Tensor

columns = MIXUP_COLUMNS
# Blended at a time: bounds the two int32 copies. On a CPU they stay in its cache.
_CROPS, _GPU_BYTES = 32, 256 << 20


def draw(
    alpha: float,
    size: int,  # noqa: ARG001
    seed: int,
    view: int,
    counters: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    """The share of each group or position ``[g]`` of a view, int64 ``[1, g]``: 65536 times the own weight."""
    own = draws.beta(draws.key("mixup", seed, view), alpha, counters)
    return np.minimum(np.rint(own * 65536), 65535).astype(np.int64)[None]


def mix(pixels: Tensor, rows: CropRows, group: int) -> Tensor:
    """Blend crops with their partners.

    Args:
        pixels: uint8 ``[n, S, S, 3]``, whole groups of crops not mixed yet; not modified.
        rows: their n rows.
        group: crops in a group.

    Returns:
        uint8 ``[n, S, S, 3]`` on the same device: ``(share * own + (65536 - share) * other + 32768) >> 16``.
    """
    import torch  # here, so that a plan is drawn without it

    from pipeline.device.moving import numbers_to_device

    partners, shares = numbers_to_device([rows.partners(group), rows.column("share")], pixels.device)
    mixed, count = torch.empty_like(pixels), _CROPS
    if pixels.is_cuda:
        count = max(count, _GPU_BYTES // (2 * 4 * pixels[0].numel()))
    for start in range(0, len(pixels), count):
        part = slice(start, start + count)
        share = shares[part, None, None, None].int()
        own, other = pixels[part].int().mul_(share), pixels[partners[part]].int().mul_(65536 - share)
        mixed[part] = own.add_(other).add_(32768).bitwise_right_shift_(16)
    return mixed
