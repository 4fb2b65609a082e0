"""Top-1 and top-5, counted."""

from __future__ import annotations

import torch
from torch import Tensor


def ranks(logits: Tensor, targets: Tensor) -> Tensor:
    """The rank of the target in each row, int64 ``[B]``: 0 is a top-1 hit, below 5 a top-5 hit.

    Ties are broken in favour of the lower class, so that a constant output scores chance and not 100 %. A row with NaN
    is never a hit.

    Args:
        logits: ``[B, C]``.
        targets: int64 ``[B]``.
    """
    own = logits.gather(1, targets[:, None])
    lower = torch.arange(logits.shape[1], device=logits.device) < targets[:, None]
    before = ((logits > own) | ((logits == own) & lower)).sum(1)
    return before.masked_fill(logits.isnan().any(1), logits.shape[1] + 5)
