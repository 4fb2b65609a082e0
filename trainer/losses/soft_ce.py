"""`soft_ce`: cross-entropy with the teacher's distribution at temperature 1, or with given probabilities."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.cosine import paired


def soft_ce_loss(x: Tensor, t: Tensor) -> Tensor:
    """``-sum softmax(t) log_softmax(x)`` over classes, mean over the batch, a scalar.

    Args:
        x: student logits ``[B, C]``.
        t: teacher logits ``[B, C]``.
    """
    x, t = paired(x, t)
    return -(t.softmax(1) * x.log_softmax(1)).sum(1).mean()


def probability_ce_loss(x: Tensor, p: Tensor) -> Tensor:
    """``-sum p log_softmax(x)`` over classes, mean over the batch, a scalar: torch.nn.CrossEntropyLoss.

    Args:
        x: student logits ``[B, C]``.
        p: probabilities ``[B, C]``; rows need not sum to 1.
    """
    x, p = paired(x, p)
    return -(p * x.log_softmax(1)).sum(1).mean()
