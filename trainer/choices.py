"""What flags choose from, and the numbers of a loss; read by commands before torch is needed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal

from labelstore.command.flags import Named, Shown, meant
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import json_object
from trainer.loss_table import LOSSES, LossKind, on_largest_columns, users_kind

if TYPE_CHECKING:
    from trainer.optimisers import OptimiserSpec

GiftForm = Literal["released", "convex"]
# all: every parameter; weights: those named weight with more than one dimension, so no bias and no norm layer.
Decay = Literal["all", "weights"]


def check_numbers(form: str, gamma: float, smoothing: float, weight: float) -> None:
    """Raise InputError unless these are numbers that the loss is defined for."""
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

    name: Annotated[str, Named("loss"), Shown(f"{{{','.join(LOSSES)}}}|MODULE:ATTRIBUTE")] = "gift"
    """Loss on raw logits (docs/GUIDE.md); or module:attribute, called as loss(student's logits, teacher's logits,
    target, mixed-in target, weight of the first)."""
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
    """ce: share of the hard label that is spread evenly over all classes."""

    def __post_init__(self) -> None:
        """Refuse numbers that a loss is not defined for."""
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

    @property
    def kind(self) -> LossKind:
        """What the table declares of it."""
        return LOSSES[self.name] if self.name in LOSSES else users_kind(self.name)

    @property
    def numbers(self) -> dict[str, Json]:
        """The numbers that this loss uses, by the name of its keyword argument."""
        unused = []
        if "form" in self.kind.numbers:
            unused.append("weight" if self.form == "released" else "gamma")
        if not self.hard_smoothing:
            unused.append("hard_smoothing")
        return {name: getattr(self, name) for name in self.kind.numbers if name not in unused}

    @property
    def weights(self) -> tuple[float, float]:
        """gift, cosine: weights of the soft and of the hard label, each of length 1."""
        if not self.kind.targets:
            return 1.0, 0.0
        return (1.0, self.gamma) if self.form == "released" else (1 - self.weight, self.weight)

    @property
    def any_scale(self) -> bool:
        """Whether a label may come in any scale, as its codes are without theirs."""
        return self.kind.any_scale

    @property
    def takes_probabilities(self) -> bool:
        """Whether labels may be probabilities, as operators on labels make them; a loss of the user's gets either."""
        return self.kind.on_probabilities is not None

    @property
    def reads_labels(self) -> bool:
        """Whether labels matter, besides hard targets."""
        return self.kind.labels

    def require_content(self, content: str) -> None:
        """Refuse labels that do not hold what the loss looks at.

        Raises:
            InputError: when only the largest columns are known, and the loss needs all logits.
        """
        if content == "topk" and self.kind.all_columns:
            raise InputError(
                f"--loss {self.name}: needs the logits of all columns, and this store has only the largest ones "
                f"(content topk); take {on_largest_columns()}, for which the others have probability 0"
            )

    def to_json(self) -> dict[str, Json]:
        """Name and the numbers in effect; ``LossSpec(**spec.to_json())`` is the same loss."""
        return {"name": self.name, **self.numbers}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserOptions:
    """An optimiser by its flags; None takes the optimiser's own."""

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

    def spec(self) -> OptimiserSpec:
        """The optimiser with every number.

        Raises:
            InputError: when it has no learning rate of its own, and none is given, or does not take what is given.
        """
        from trainer.optimisers import OptimiserSpec, defaults_of  # takes seconds to import

        own = defaults_of(self.name)
        given = json_object("--optimizer-args", self.args)
        return OptimiserSpec(
            name=self.name,
            lr=self.rate,
            weight_decay=own.weight_decay if self.weight_decay is None else self.weight_decay,
            decay=self.decay,
            args={**own.args, **given, **({"fused": True} if self.fused else {})},
        )

    @property
    def rate(self) -> float:
        """The first learning rate.

        Raises:
            InputError: when the optimiser has none of its own, and none is given.
        """
        from trainer.optimisers import defaults_of  # takes seconds to import

        rate = defaults_of(self.name).lr if self.lr is None else self.lr
        if rate is None:
            raise InputError(f"--optimizer {self.name}: has no default learning rate; give --lr")
        return rate
