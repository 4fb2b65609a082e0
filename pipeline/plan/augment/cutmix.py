"""CutMix: a box, one for the whole group or one a pair, filled in every crop from its partner."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from labelstore.format.columns import CUTMIX_COLUMNS, CropRows
from pipeline.plan import draws

if TYPE_CHECKING:
    from torch import Tensor

columns = CUTMIX_COLUMNS


def draw(alpha: float, size: int, seed: int, view: int, counters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The box of each group or position ``[g]`` of a view, int64 ``[4, g]``, in pixels of the finished crop.

    The box of the paper's code and of torchvision: sides ``size * sqrt(1 - lambda)``, centre anywhere in the
    crop, clipped to the crop. It can be empty.
    """
    own = draws.beta(draws.key("cutmix", seed, view), alpha, counters)
    words = draws.philox(draws.key("cutmix centre", seed, view), counters)
    half = np.floor(size * np.sqrt(1 - own)).astype(np.int64) // 2
    y, x = (draws.integers(word, size).astype(np.int64) for word in words[:2])
    top, left = np.maximum(y - half, 0), np.maximum(x - half, 0)
    bottom, right = np.minimum(y + half, size), np.minimum(x + half, size)
    return np.stack([top, left, bottom - top, right - left])


def mix(pixels: Tensor, rows: CropRows, group: int) -> Tensor:
    """Fill each crop's box from its partner.

    Args:
        pixels: uint8 ``[n, S, S, 3]``, whole groups of crops not mixed yet; not modified.
        rows: their n rows.
        group: crops in a group.

    Returns:
        uint8 ``[n, S, S, 3]`` on the same device.
    """
    import torch  # here, so that a plan is drawn without it

    from pipeline.device.moving import numbers_to_device

    partners, *box = numbers_to_device([rows.partners(group), *rows.mix_boxes().T], pixels.device)
    top, left, height, width = (edge[:, None] for edge in box)
    at = torch.arange(pixels.shape[1], device=pixels.device)
    vertical = (at >= top) & (at < top + height)
    horizontal = (at >= left) & (at < left + width)
    inside = vertical[:, :, None, None] & horizontal[:, None, :, None]
    return torch.where(inside, pixels[partners], pixels)
