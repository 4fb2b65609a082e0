"""Definition of `gift`: cosine with the teacher's logits, refined with the smoothed hard label."""

from __future__ import annotations

import torch
from torch import Tensor

from labelstore.errors import InputError
from trainer.choices import GiftForm, check_numbers
from trainer.losses.cosine import cosine_loss, paired, unit


def smoothed_one_hot(y: Tensor, classes: int, smoothing: float, dtype: torch.dtype) -> Tensor:
    """``1 - a`` at ``y`` and ``a / (C - 1)`` elsewhere, ``[B, C]``, for targets ``[B]``."""
    s = torch.full((len(y), classes), smoothing / (classes - 1), dtype=dtype, device=y.device)
    return s.scatter_(1, y[:, None], 1 - smoothing)


def check_targets(logits: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None) -> None:
    """Raise InputError unless the targets fit logits ``[B, C]``, and targets of mixed crops have weights."""
    if (y2 is None) != (lam is None):
        raise InputError("mixed targets: y2 and lam belong together, give both or neither")
    for name, values in (("y", y), ("y2", y2), ("lam", lam)):
        if values is not None and values.shape != logits.shape[:1]:
            raise InputError(f"{name}: expected shape [{len(logits)}], found {list(values.shape)}")
    for name, values in (("y", y), ("y2", y2)):
        if values is not None and values.dtype != torch.int64:
            raise InputError(f"{name}: expected class indexes as int64, found {values.dtype}")


def gift_target(
    t: Tensor,
    y: Tensor,
    y2: Tensor | None = None,
    lam: Tensor | None = None,
    *,
    gamma: float = 0.1,
    smoothing: float = 0.1,
    form: GiftForm = "released",
    weight: float = 0.1,
) -> Tensor:
    """The refined label ``u [B, C]`` that `gift_loss` compares the student with; arguments as there."""
    check_numbers(form, gamma, smoothing, weight)
    check_targets(t, y, y2, lam)
    s = smoothed_one_hot(y, t.shape[1], smoothing, t.dtype)
    if y2 is not None and lam is not None:
        own = lam.to(t.dtype)[:, None]
        s = own * s + (1 - own) * smoothed_one_hot(y2, t.shape[1], smoothing, t.dtype)
    if form == "released":
        return unit(t) + gamma * unit(s)
    return (1 - weight) * unit(t) + weight * unit(s)


def gift_loss(
    x: Tensor,
    t: Tensor,
    y: Tensor,
    y2: Tensor | None = None,
    lam: Tensor | None = None,
    *,
    gamma: float = 0.1,
    smoothing: float = 0.1,
    form: GiftForm = "released",
    weight: float = 0.1,
) -> Tensor:
    """``1 - mean cos(x, u)``, a scalar, with ``u = t/|t| + gamma s/|s|`` (released form).

    The convex form is ``u = (1 - weight) t/|t| + weight s/|s|``; cosine ignores scale, so it equals the released form
    at ``weight = gamma / (1 + gamma)``. Computed in float32 at least, even under autocast.

    Args:
        x: student logits ``[B, C]``.
        t: teacher logits ``[B, C]``; logits, not probabilities.
        y: hard targets, int64 ``[B]``.
        y2: for mixed crops, the partners' targets, int64 ``[B]``.
        lam: for mixed crops, the fraction of pixels that belong to ``y``, ``[B]``; then
            ``s = lam s_y + (1 - lam) s_y2``.
        gamma: weight of the hard label in the released form.
        smoothing: ``a`` of the smoothed hard label ``s`` (``1 - a`` at ``y``, ``a / (C - 1)`` elsewhere).
        form: ``released`` (additive) or ``convex``.
        weight: weight of the hard label in the convex form.
    """
    x, t = paired(x, t)
    u = gift_target(t, y, y2, lam, gamma=gamma, smoothing=smoothing, form=form, weight=weight)
    return cosine_loss(x, u)
