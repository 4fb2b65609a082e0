"""The table of losses: what each is, in one line, and where its function is; read without importing torch.

A new loss is one file in `trainer/losses/` and one line in `LOSSES`, which names its numbers: those that have a flag,
the fields of `LossSpec`, and those of its own, which ``--loss-args`` gives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True, slots=True)
class LossKind:
    """What a loss is.

    Attributes:
        function: ``module:attribute`` of its definition in plain torch, imported when the loss is made. It is called as
            ``function(x, t, y, y2, lam, **numbers)``, less ``t`` where it reads no labels, or as
            ``function(x, t, **numbers)`` where it reads no targets.
        on_probabilities: likewise, of its definition where labels are probabilities; None where it has none.
        numbers: the fields of `LossSpec` that it takes as keyword arguments.
        own_numbers: further keyword arguments of the definition, which have defaults there; ``--loss-args`` gives them.
        labels: whether it reads labels, besides hard targets.
        targets: whether it reads hard targets.
        hard_term: whether ``hard_weight`` times the hard cross-entropy is added to it.
        any_scale: whether a label may come in any scale, as its codes are without theirs.
        all_columns: whether it needs the logits of all columns: labels of content topk are then refused.
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
    """A loss of the user's, ``module:attribute``: it takes logits or probabilities, as they come."""
    return LossKind(function=name, on_probabilities=name)


def on_probabilities() -> str:
    """The losses that labels may be probabilities for, in words."""
    return in_words([name for name, kind in LOSSES.items() if kind.on_probabilities])


def on_largest_columns() -> str:
    """The losses for which columns that are not known have probability 0, in words."""
    return in_words([name for name, kind in LOSSES.items() if kind.labels and not kind.all_columns])


def in_words(names: list[str]) -> str:
    """``a, b or c``."""
    return f"{', '.join(names[:-1])} or {names[-1]}"
