"""`ce`: cross-entropy with the hard targets, optionally smoothed; unsmoothed in `mse+ce` and `soft_ce+ce`."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.cosine import paired
from trainer.losses.gift import check_targets


def ce_loss(
    x: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None, *, hard_smoothing: float = 0.0
) -> Tensor:
    """``-log_softmax(x)`` at the target, mean over the batch, a scalar.

    Args:
        x: student logits ``[B, C]``.
        y: hard targets, int64 ``[B]``.
        y2: for mixed crops, the partners' targets, int64 ``[B]``.
        lam: for mixed crops, the weight of ``y``, ``[B]``: ``lam ce(y) + (1 - lam) ce(y2)`` crop by crop.
        hard_smoothing: a of the label ``(1 - a) onehot + a / C``, as torch's ``label_smoothing``.
    """
    x, _ = paired(x, x)
    check_targets(x, y, y2, lam)
    cost = -x.log_softmax(1)
    loss = cost.gather(1, y[:, None])[:, 0]
    if y2 is not None and lam is not None:
        own = lam.to(x.dtype)
        loss = own * loss + (1 - own) * cost.gather(1, y2[:, None])[:, 0]
    if hard_smoothing:
        loss = (1 - hard_smoothing) * loss + hard_smoothing * cost.mean(1)
    return loss.mean()
