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
_CROPS = 32  # blended at a time: bounds the int32 copies


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
        pixels: uint8 ``[n, S, S, 3]``, whole groups of crops not mixed yet; left as they are.
        rows: their n rows.
        group: crops in a group.

    Returns:
        uint8 ``[n, S, S, 3]`` on the same device: ``(share * own + (65536 - share) * other + 32768) >> 16``.
    """
    import torch  # here, so that a plan is drawn without it

    partners = torch.from_numpy(rows.partners(group)).to(pixels.device)
    shares = torch.from_numpy(rows.column("share").astype(np.int32)).to(pixels.device)
    mixed = torch.empty_like(pixels)
    for start in range(0, len(pixels), _CROPS):
        part = slice(start, start + _CROPS)
        own, other = pixels[part].int(), pixels[partners[part]].int()
        share = shares[part, None, None, None]
        mixed[part] = (share * own + (65536 - share) * other + 32768) >> 16
    return mixed
