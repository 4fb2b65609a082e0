"""`kl`: the divergence of the student's softened distribution from the teacher's."""

from __future__ import annotations

from torch import Tensor

from trainer.losses.cosine import paired


def kl_loss(x: Tensor, t: Tensor, *, temperature: float = 20.0, t_squared: bool = False) -> Tensor:
    """``KL(softmax(t / T) || softmax(x / T))`` summed over classes, mean over the batch, a scalar.

    Args:
        x: student logits ``[B, C]``.
        t: teacher logits ``[B, C]``.
        temperature: T of both softmaxes.
        t_squared: multiply by T^2, which keeps the scale of the gradient independent of T.
    """
    x, t = paired(x, t)
    log_p, log_q = (t / temperature).log_softmax(1), (x / temperature).log_softmax(1)
    loss = (log_p.exp() * (log_p - log_q)).sum(1).mean()
    return loss * temperature**2 if t_squared else loss
