"""Losses on raw logits: each in its definition, plain torch and the oracle of its faster twins; and the choice of one.

A loss is called as ``loss(x, t, y, y2=None, lam=None)`` with student logits ``x [B, C]``, teacher logits
``t [B, C]``, targets ``y [B]`` and, for mixed crops, the partners' targets ``y2 [B]`` and the weight
``lam [B]`` of ``y``. A new one is one new file, and one line in `LOSSES`. Twins are in `closed` and `kernels`, and
`fused` puts them in place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Literal, Protocol

import torch
from torch import Tensor

from labelstore.errors import InputError
from labelstore.spec import Json
from trainer.imported import imported
from trainer.losses.closed import gift_rows, kl_rows, well_posed
from trainer.losses.cosine import cosine_loss
from trainer.losses.cross_entropy import ce_loss
from trainer.losses.fused import Compile, Fused, compiled
from trainer.losses.gift import GiftForm, check_numbers, gift_loss, gift_target
from trainer.losses.kl import kl_loss
from trainer.losses.mse import mse_loss
from trainer.losses.soft_ce import soft_ce_loss

__all__ = [
    "Loss",
    "LossName",
    "LossSpec",
    "ce_loss",
    "cosine_loss",
    "gift_loss",
    "gift_target",
    "kl_loss",
    "make_loss",
    "mse_loss",
    "soft_ce_loss",
]

LossName = Literal["gift", "cosine", "kl", "soft_ce", "mse", "ce", "mse+ce", "soft_ce+ce"]


class Loss(Protocol):
    """What `make_loss` gives."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
        """The mean loss of a batch, a scalar in float32 at least."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSpec:
    """A loss and every number in it; each loss uses its own and ignores the others."""

    name: LossName | str = "gift"
    """What the student is compared with, and how."""
    form: GiftForm = "released"
    """gift: released (additive, gamma) or convex (weight)."""
    gamma: float = 0.1
    """gift, released form: weight of the hard label."""
    smoothing: float = 0.1
    """gift: label smoothing of the hard label."""
    weight: float = 0.1
    """gift, convex form: weight of the hard label."""
    temperature: float = 20.0
    """kl: temperature of both softmaxes."""
    t_squared: bool = False
    """kl: multiply by the square of the temperature."""
    hard_weight: float = 0.1
    """mse+ce, soft_ce+ce: weight of the hard cross-entropy."""

    def __post_init__(self) -> None:
        """Refuse numbers that a loss is not defined for."""
        if self.name not in LOSSES and ":" not in self.name:
            raise InputError(f"loss: expected one of {', '.join(LOSSES)}, or module:attribute, found {self.name!r}")
        check_numbers(self.form, self.gamma, self.smoothing, self.weight)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"loss temperature: expected a number > 0, found {self.temperature}")
        if not (math.isfinite(self.hard_weight) and self.hard_weight >= 0):
            raise InputError(f"loss hard weight: expected a number >= 0, found {self.hard_weight}")

    @property
    def numbers(self) -> dict[str, Json]:
        """The numbers that this loss uses, by the name of its keyword argument."""
        if self.name == "gift" and self.form == "released":
            return {"form": self.form, "gamma": self.gamma, "smoothing": self.smoothing}
        if self.name == "gift":
            return {"form": self.form, "weight": self.weight, "smoothing": self.smoothing}
        if self.name == "kl":
            return {"temperature": self.temperature, "t_squared": self.t_squared}
        return {"hard_weight": self.hard_weight} if "+" in self.name else {}

    @property
    def weights(self) -> tuple[float, float]:
        """gift, cosine: weights of the soft and of the hard label, each of length 1."""
        if self.name == "cosine":
            return 1.0, 0.0
        return (1.0, self.gamma) if self.form == "released" else (1 - self.weight, self.weight)

    @property
    def any_scale(self) -> bool:
        """Whether a label may come in any scale, as its codes are without theirs."""
        return self.name in ("gift", "cosine")

    def require_content(self, content: str) -> None:
        """Refuse labels that do not hold what the loss looks at.

        Raises:
            InputError: when only the largest columns are known, and the loss needs all logits.
        """
        if content == "topk" and self.name in ("gift", "cosine", "mse", "mse+ce"):
            raise InputError(
                f"--loss {self.name}: needs the logits of all columns, and this store has only the largest ones "
                f"(content topk); take kl, soft_ce or soft_ce+ce, for which the others have probability 0"
            )

    def to_json(self) -> dict[str, Json]:
        """Name and the numbers in effect; ``LossSpec(**spec.to_json())`` is the same loss."""
        return {"name": self.name, **self.numbers}


def users_loss(name: str) -> Loss:
    """A loss of the user's, called as every loss is.

    Raises:
        InputError: unless it gives one finite number, with a gradient for the student, of a few drawn logits.
    """
    loss: Loss = imported("--loss", name)
    generator = torch.Generator().manual_seed(0)
    x, t = (torch.randn(2, 4, generator=generator) for _ in range(2))
    x.requires_grad_()
    try:
        found: object = loss(x, t, torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
    except Exception as error:  # of the user's code
        raise InputError(
            f"--loss {name}: fails when called as loss(x, t, y, y2, lam), with logits x and t [n, C] of student and "
            f"teacher, targets y and y2 [n] and the weight lam [n] of y ({type(error).__name__}: {error})"
        ) from error
    scalar = isinstance(found, Tensor) and found.ndim == 0 and found.requires_grad and bool(found.isfinite())
    if not scalar:
        raise InputError(
            f"--loss {name}: expected the mean loss of a batch, one finite number with a gradient for the student, "
            f"found {found!r}"
        )
    return loss


def soft(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """A loss that looks at the teacher's logits alone, called as every loss is."""

    def call(x: Tensor, t: Tensor, y: Tensor, y2: object = None, lam: object = None, **numbers: Json) -> Tensor:
        del y, y2, lam
        return loss(x, t, **numbers)

    return call


def hard(x: Tensor, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
    """`ce_loss`, called as every loss is."""
    del t
    return ce_loss(x, y, y2, lam)


def with_hard_term(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[..., Tensor]:
    """``loss(x, t) + hard_weight * ce(x, y)``."""

    def call(
        x: Tensor,
        t: Tensor,
        y: Tensor,
        y2: Tensor | None = None,
        lam: Tensor | None = None,
        *,
        hard_weight: float = 0.1,
    ) -> Tensor:
        return loss(x, t) + hard_weight * ce_loss(x, y, y2, lam)

    return call


LOSSES: dict[str, Callable[..., Tensor]] = {
    "gift": gift_loss,
    "cosine": soft(cosine_loss),
    "kl": soft(kl_loss),
    "soft_ce": soft(soft_ce_loss),
    "mse": soft(mse_loss),
    "ce": hard,
    "mse+ce": with_hard_term(mse_loss),
    "soft_ce+ce": with_hard_term(soft_ce_loss),
}


def make_loss(spec: LossSpec, *, compile: Compile = "auto") -> Loss:  # noqa: A002  torch's word for it
    """The loss that ``spec`` describes, by the fastest twin that its definition has for the tensors it gets.

    On a GPU that is a Triton kernel. On a CPU it is the closed form, compiled where that pays; where there is no
    compiler, or no Triton, a warning says so and the closed form runs as it is.

    Args:
        spec: the loss and its numbers.
        compile: on a CPU: ``auto`` compiles for batches of 2^18 logits and more.
    """
    if ":" in spec.name:
        return users_loss(spec.name)
    definition = partial(LOSSES[spec.name], **spec.numbers)
    if spec.any_scale and well_posed(*spec.weights):
        soft_weight, hard_weight = spec.weights
        numbers = {"soft": soft_weight, "hard": hard_weight, "smoothing": spec.smoothing}
        return Fused(definition, gift_rows, compiled(gift_rows), "gift", numbers, hard_weight > 0, compile)
    if spec.name == "kl":
        return Fused(definition, kl_rows, compiled(kl_rows), "kl", spec.numbers, False, compile)
    return definition
