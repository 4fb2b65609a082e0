"""The table of losses: a declaration of each, with the place of its function. Does not import torch.

A new loss is one file in `trainer/losses/` and one line in `LOSSES`, which names its numbers: those that have a flag,
the fields of `LossSpec`, and its `own_numbers`, which are set by ``--loss-args``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class LossKind:
    """Declaration of a loss.

    Attributes:
        function: ``module:attribute`` of its definition in plain torch, imported when the loss is constructed. It is
        called as
            ``function(x, t, y, y2, lam, **numbers)``, without ``t`` if it reads no labels, or as ``function(x, t,
            **numbers)`` if it reads no targets.
        on_probabilities: the same for labels that are probabilities; None if the loss has no such definition.
        numbers: the fields of `LossSpec` that it takes as keyword arguments.
        own_numbers: further keyword arguments of the definition, which have defaults there; ``--loss-args`` gives them.
        labels: whether it reads labels, not hard targets only.
        targets: whether it reads hard targets.
        hard_term: whether ``hard_weight`` times the hard cross-entropy is added to it.
        any_scale: whether it is invariant to the scale of a label.
        all_columns: whether it needs the logits of all columns, so that stores with content topk are refused.
        twin: the faster twin of `trainer.losses.fused` that computes it, if any.
    """

    function: str
    on_probabilities: str | None = None
    numbers: tuple[str, ...] = ()
    own_numbers: tuple[str, ...] = ()
    labels: bool = True
    targets: bool = True
    hard_term: bool = False
    any_scale: bool = False
    all_columns: bool = False
    twin: Literal["gift", "kl"] | None = None


SOFT_CE = "trainer.losses.soft_ce:soft_ce_loss"
PROBABILITY_CE = "trainer.losses.soft_ce:probability_ce_loss"
MSE = "trainer.losses.mse:mse_loss"

LOSSES: dict[str, LossKind] = {
    "gift": LossKind(
        function="trainer.losses.gift:gift_loss",
        numbers=("form", "gamma", "weight", "smoothing"),
        any_scale=True,
        all_columns=True,
        twin="gift",
    ),
    "cosine": LossKind(
        function="trainer.losses.cosine:cosine_loss", targets=False, any_scale=True, all_columns=True, twin="gift"
    ),
    "kl": LossKind(
        function="trainer.losses.kl:kl_loss", numbers=("temperature", "t_squared"), targets=False, twin="kl"
    ),
    "soft_ce": LossKind(function=SOFT_CE, on_probabilities=PROBABILITY_CE, targets=False),
    "mse": LossKind(function=MSE, targets=False, all_columns=True),
    "ce": LossKind(function="trainer.losses.cross_entropy:ce_loss", numbers=("hard_smoothing",), labels=False),
    "mse+ce": LossKind(function=MSE, numbers=("hard_weight",), targets=False, hard_term=True, all_columns=True),
    "soft_ce+ce": LossKind(
        function=SOFT_CE, on_probabilities=PROBABILITY_CE, numbers=("hard_weight",), targets=False, hard_term=True
    ),
}


def users_kind(name: str) -> LossKind:
    """The declaration of a user's loss, ``module:attribute``; it is called with logits or probabilities alike."""
    return LossKind(function=name, on_probabilities=name)


def on_probabilities() -> str:
    """The losses that accept probabilities as labels, as text."""
    return in_words([name for name, kind in LOSSES.items() if kind.on_probabilities])


def on_largest_columns() -> str:
    """The losses that treat unknown columns as probability 0, as text."""
    return in_words([name for name, kind in LOSSES.items() if kind.labels and not kind.all_columns])


def in_words(names: list[str]) -> str:
    """``a, b or c``."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
