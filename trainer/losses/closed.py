"""Closed forms: loss and gradient of each row together, in a few passes over the logits, without autograd.

Twins of `gift`, of `cosine` (GIFT with hard weight 0) and of `kl`, for every device, eager or compiled.
"""

from __future__ import annotations

import torch
from torch import Tensor

from trainer.losses.cosine import TINY, paired

# products of values above REACH may overflow: such a row is scaled to a maximum of SHRUNK
REACH, SHRUNK = 2.0**40, 16.0
MARGIN = 3.0
SHORT = (torch.float16, torch.int8)  # whose squares never overflow


def well_posed(soft: float, hard: float) -> bool:
    """Whether a soft and a hard label with these weights can never nearly cancel.

    If they nearly cancel, ``|u|^2`` loses precision, since the closed form sums it from its terms.
    """
    return soft + hard <= MARGIN * abs(soft - hard)


def gift_rows(
    x: Tensor,
    t: Tensor,
    y: Tensor | None = None,
    y2: Tensor | None = None,
    lam: Tensor | None = None,
    *,
    soft: float,
    hard: float,
    smoothing: float,
) -> tuple[Tensor, Tensor]:
    """``1 - cos(x, u)`` of each row with ``u = soft t/|t| + hard s/|s|``; neither u nor s is stored.

    Args:
        x: student logits ``[B, C]``.
        t: teacher logits ``[B, C]``, or codes that are proportional to them in each row.
        y: hard targets, int64 ``[B]``; None leaves the hard label out.
        y2: for mixed crops, the partners' targets, int64 ``[B]``.
        lam: for mixed crops, the weight of ``y``, ``[B]``.
        soft: weight of the soft label.
        hard: weight of the hard label.
        smoothing: ``a`` of the hard label.

    Returns:
        Losses ``[B]``, float32 at least, and the gradient of their mean, ``[B, C]`` in the dtype of `kept_in`.
    """
    short, dtype = (x.dtype in SHORT, t.dtype in SHORT), kept_in(x)
    x, t = paired(x, t)
    x, x_length, shrunk = measured(x, short[0])
    t, t_length, _ = measured(t, short[1])
    of_t = torch.where(t_length < TINY, 0, soft / t_length)
    u2 = (of_t * t_length).square()
    xu = of_t * (x * t).sum(1)
    if y is not None:
        # s is `rest` everywhere, and higher by `peaks` at its targets
        rest, targets, peaks = hard_label(x, y, y2, lam, smoothing)
        total = peaks.sum(1)
        s2 = x.shape[1] * rest**2 + 2 * rest * total + peaks.square().sum(1)
        if y2 is not None:
            s2 = s2 + torch.where(y == y2, 2 * peaks[:, 0] * peaks[:, 1], 0)
        of_s = hard * s2.rsqrt()
        u2 = u2 + hard**2 + 2 * of_t * of_s * (rest * t.sum(1) + (t.gather(1, targets) * peaks).sum(1))
        xu = xu + of_s * (rest * x.sum(1) + (x.gather(1, targets) * peaks).sum(1))
    u_length = u2.sqrt()
    dead = (x_length < TINY) | (u_length < TINY)
    slope = torch.where(dead, 0, 1 / (x_length * u_length))
    cos = xu * slope
    slope = -slope / len(x)
    along = torch.where(dead, 0, cos / x_length.square()) / len(x)
    gradient = t * (slope * of_t)[:, None]
    if y is not None:
        gradient.add_((slope * of_s * rest)[:, None]).scatter_add_(1, targets, (slope * of_s)[:, None] * peaks)
    gradient.addcmul_(x, along[:, None])
    if shrunk is not None:
        gradient.mul_(shrunk[:, None])
    return 1 - cos, gradient.to(dtype)


def kept_in(x: Tensor) -> torch.dtype:
    """The dtype of the gradient of x until it is scaled: the gradient of a mean may leave the range of float16."""
    return torch.float32 if x.dtype == torch.float16 else x.dtype


def hard_label(
    x: Tensor, y: Tensor, y2: Tensor | None, lam: Tensor | None, smoothing: float
) -> tuple[float, Tensor, Tensor]:
    """The smoothed hard label: its base value, its targets ``[B, k]``, and how much is added at each target."""
    rest = smoothing / (x.shape[1] - 1)
    top = 1 - smoothing - rest
    if y2 is None or lam is None:
        return rest, y[:, None], torch.full_like(x[:, :1], top)
    own = lam.to(x.dtype)
    return rest, torch.stack([y, y2], 1), torch.stack([top * own, top * (1 - own)], 1)


def measured(rows: Tensor, short: bool) -> tuple[Tensor, Tensor, Tensor | None]:
    """Rows, scaled where products could overflow, their lengths ``[B]``, and the factors, or None."""
    length = torch.linalg.vector_norm(rows, dim=1)
    if short or not (torch.compiler.is_compiling() or not (length <= REACH).all()):
        return rows, length, None
    top = rows.abs().amax(1)
    shrunk = torch.where(top > REACH, SHRUNK / top, 1)
    rows = rows * shrunk[:, None]
    return rows, torch.linalg.vector_norm(rows, dim=1), shrunk


def kl_rows(x: Tensor, t: Tensor, *, temperature: float, t_squared: bool) -> tuple[Tensor, Tensor]:
    """``KL(softmax(t / T) || softmax(x / T))`` of each row; arguments and results as in `gift_rows` and `kl_loss`."""
    dtype, factor = kept_in(x), temperature**2 if t_squared else 1.0
    x, t = paired(x, t)
    log_p, log_q = (t / temperature).log_softmax(1), (x / temperature).log_softmax(1)
    p = log_p.exp()
    losses = log_p.sub_(log_q).mul_(p).sum(1) * factor
    gradient = log_q.exp_().sub_(p).mul_(factor / temperature / len(x))
    return losses, gradient.to(dtype)
