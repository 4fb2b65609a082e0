"""Options of losses and optimisers. Command lines are parsed with these, so this module does not import torch."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal

from labelstore.command.flags import Choices, Named, meant
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import json_object
from trainer.loss_table import LOSSES, LossKind, on_largest_columns, users_kind

GiftForm = Literal["released", "convex"]
# all: every parameter. weights: parameters named weight with more than one dimension, so no biases or norm layers.
Decay = Literal["all", "weights"]


def check_numbers(form: str, gamma: float, smoothing: float, weight: float) -> None:
    """Raise InputError unless the loss is defined for these numbers."""
    if form not in ("released", "convex"):
        raise InputError(f"gift form: expected 'released' or 'convex', found {form!r}")
    if not (math.isfinite(gamma) and gamma >= 0):
        raise InputError(f"gift gamma: expected a number >= 0, found {gamma}")
    if not 0 <= smoothing < 1:
        raise InputError(f"gift smoothing: expected a number in [0, 1), found {smoothing}")
    if not 0 <= weight <= 1:
        raise InputError(f"gift weight: expected a number in [0, 1], found {weight}")


@dataclass(frozen=True, kw_only=True, slots=True)
class LossSpec:
    """A loss and every number in it; each loss uses its own and ignores the others."""

    name: Annotated[str, Choices(LOSSES, places=True), Named("loss")] = "gift"
    """Loss on raw logits (docs/GUIDE.md); or module:attribute, called as loss(student's logits, teacher's logits,
    target, mixed-in target, weight of target)."""
    form: Annotated[GiftForm, Named("gift-form")] = "released"
    """gift: target made of teacher's logits t and smoothed hard label s: released, t/|t| + gamma s/|s|, or convex, (1 -
    w) t/|t| + w s/|s|."""
    gamma: float = 0.1
    """gift, released form: weight of the hard label."""
    smoothing: float = 0.1
    """gift: smoothing of the hard label."""
    weight: Annotated[float, Named("w")] = 0.1
    """gift, convex form: weight of the hard label."""
    temperature: float = 20.0
    """kl: temperature of both softmaxes."""
    t_squared: bool = False
    """kl: multiply by the square of the temperature."""
    hard_weight: float = 0.1
    """mse+ce, soft_ce+ce: weight of the hard cross-entropy."""
    hard_smoothing: float = 0.0
    """ce: fraction of the hard label that is spread evenly over all classes (label smoothing)."""
    args: Annotated[str, Named("loss-args")] = "{}"
    """Keyword arguments of a loss that has numbers without a flag of their own, as JSON; for a module:attribute, it is
    called with them."""

    def __post_init__(self) -> None:
        """Refuse numbers for which the loss is not defined."""
        if self.name not in LOSSES and ":" not in self.name:
            raise InputError(
                f"--loss: expected one of {', '.join(LOSSES)}, or module:attribute, found {self.name!r}"
                f"{meant(self.name, LOSSES)}"
            )
        check_numbers(self.form, self.gamma, self.smoothing, self.weight)
        if not (math.isfinite(self.temperature) and self.temperature > 0):
            raise InputError(f"--temperature: expected a number > 0, found {self.temperature}")
        if not (math.isfinite(self.hard_weight) and self.hard_weight >= 0):
            raise InputError(f"--hard-weight: expected a number >= 0, found {self.hard_weight}")
        if not 0 <= self.hard_smoothing < 1:
            raise InputError(f"--hard-smoothing: expected a number in [0, 1), found {self.hard_smoothing}")
        json_object("--loss-args", self.args)

    @property
    def kind(self) -> LossKind:
        """The entry of the loss in the table."""
        return LOSSES[self.name] if self.name in LOSSES else users_kind(self.name)

    @property
    def numbers(self) -> dict[str, Json]:
        """The numbers that this loss uses, by keyword argument: those of flags, then of `args`."""
        unused = []
        if "form" in self.kind.numbers:
            unused.append("weight" if self.form == "released" else "gamma")
        if not self.hard_smoothing:
            unused.append("hard_smoothing")
        flags = {name: getattr(self, name) for name in self.kind.numbers if name in NUMBERS and name not in unused}
        return {**flags, **self.own_numbers}

    @property
    def own_numbers(self) -> Mapping[str, Any]:
        """What `args` has for this loss; a loss of the user's takes all of it."""
        given = json_object("--loss-args", self.args)
        return {name: value for name, value in given.items() if ":" in self.name or name in self.kind.own_numbers}

    @property
    def weights(self) -> tuple[float, float]:
        """gift, cosine: weights of the soft and of the hard label, once both are normalised to length 1."""
        if not self.kind.targets:
            return 1.0, 0.0
        return (1.0, self.gamma) if self.form == "released" else (1 - self.weight, self.weight)

    @property
    def any_scale(self) -> bool:
        """Whether the loss is invariant to the scale of a label, so that unscaled codes will do."""
        return self.kind.any_scale

    @property
    def takes_probabilities(self) -> bool:
        """Whether labels may be probabilities, which operators on labels can produce; a user's loss accepts either."""
        return self.kind.on_probabilities is not None

    @property
    def reads_labels(self) -> bool:
        """Whether the loss uses labels, not hard targets only."""
        return self.kind.labels

    def require_content(self, content: str) -> None:
        """Refuse labels that lack what the loss needs.

        Raises:
            InputError: when only the largest logits are stored, and the loss needs all of them.
        """
        if content == "topk" and self.kind.all_columns:
            raise InputError(
                f"--loss {self.name}: needs the logits of all columns, and this store has only the largest ones "
                f"(content topk); take {on_largest_columns()}, for which the others have probability 0"
            )

    def to_json(self) -> dict[str, Json]:
        """The name and the numbers in effect; ``LossSpec(**spec.to_json())`` is the same loss."""
        own = self.own_numbers
        flags = {name: value for name, value in self.numbers.items() if name not in own}
        return {"name": self.name, **flags, **({"args": json.dumps(own)} if own else {})}


# The numbers that have a flag.
NUMBERS = tuple(field.name for field in fields(LossSpec) if field.name not in ("name", "args"))


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserOptions:
    """The flags of an optimiser; None means the optimiser's default."""

    name: Annotated[str, Named("optimizer")] = "AdamW"
    """Any optimiser of torch.optim by its name, or module:attribute."""
    lr: float | None = None
    """Learning rate before the schedule changes it. Left out, 1e-3 for AdamW, 1e-2 for SGD, and torch's default for
    others."""
    weight_decay: float | None = None
    """Weight decay. Left out, 1e-4 for AdamW, 5e-4 for SGD, and torch's default for others."""
    decay: Decay = "all"
    """Parameters that decay: all, or weights, those of more than one dimension only (no biases, no norms)."""
    args: Annotated[str, Named("optimizer-args")] = "{}"
    """Further keyword arguments of the optimiser, as JSON; for SGD, {"momentum": 0.9} unless given."""
    fused: bool = False
    """Use the fused kernel of Adam, AdamW, SGD or Adagrad."""
