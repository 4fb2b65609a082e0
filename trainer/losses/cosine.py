"""`cosine`: one minus the mean cosine between student and teacher logits, and helpers that other losses use."""

from __future__ import annotations

import torch
from torch import Tensor

from labelstore.errors import InputError

TINY = 1e-12


def paired(x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
    """Student and teacher logits ``[B, C]`` in one dtype, at least float32; other shapes are an error.

    Half precision (autocast) is too coarse for a norm or a sum over a thousand classes; float64 stays float64.
    """
    check_logits(x, t)
    dtype = torch.promote_types(torch.promote_types(x.dtype, t.dtype), torch.float32)
    return x.to(dtype), t.to(dtype)


def check_logits(x: Tensor, t: Tensor) -> None:
    """Raise InputError unless student and teacher logits have one shape [B, C]."""
    if x.ndim != 2 or x.shape != t.shape or x.shape[1] < 2:
        raise InputError(
            "loss: expected student and teacher logits of one shape [B, C] with C >= 2, "
            f"found {list(x.shape)} and {list(t.shape)}"
        )


def unit(rows: Tensor) -> Tensor:
    """Each row of ``[B, C]`` over its length; a row shorter than 1e-12 becomes 0, with zero gradient."""
    length = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    zero = length < TINY
    return torch.where(zero, 0, rows) / torch.where(zero, 1, length)


def cosine_loss(x: Tensor, t: Tensor) -> Tensor:
    """``1 - mean cos(x, t)``, a scalar; cos with a zero row is 0.

    Args:
        x: student logits ``[B, C]``.
        t: teacher logits ``[B, C]``.
    """
    x, t = paired(x, t)
    return 1 - (unit(x) * unit(t)).sum(1).mean()
