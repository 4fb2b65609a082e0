"""Any optimiser of `OPTIMISERS` by name, or a user's; with defaults for each."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast, get_args

import torch
from torch.nn import Parameter

from labelstore.command.flags import meant
from labelstore.errors import InputError, reason
from labelstore.spec import Json
from labelstore.tables import Table
from pipeline.config import json_object
from pipeline.networks.imported import imported
from trainer.choices import Decay, OptimiserOptions

# LBFGS evaluates the loss several times a step, and SparseAdam needs sparse gradients: neither fits the training loop.
OPTIMISERS: Table[Callable[..., Any]] = Table(
    {
        name: f"torch.optim:{name}"
        for name, value in sorted(vars(torch.optim).items())
        if inspect.isclass(value)
        and issubclass(value, torch.optim.Optimizer)
        and name not in ("Optimizer", "LBFGS", "SparseAdam")
    }
)
"""By name: the classes of torch.optim. One of ours is a line below these: ``OPTIMISERS["Lion"] = "trainer.lion:Lion"``.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """The defaults of an optimiser in `train`.

    Attributes:
        lr: initial learning rate; None if it must be given.
        weight_decay: 0 if the optimiser has none.
        args: further keyword arguments.
    """

    lr: float | None
    weight_decay: float
    args: Mapping[str, Json] = field(default_factory=dict)


# AdamW as in GIFT; SGD as in data-efficient training (the ECCV 2024 challenge, no-distillation).
DEFAULTS = {
    "AdamW": Defaults(lr=1e-3, weight_decay=1e-4),
    "SGD": Defaults(lr=1e-2, weight_decay=5e-4, args={"momentum": 0.9}),
}


def optimiser_class(name: str) -> Callable[..., Any]:
    """The class of an optimiser.

    Raises:
        InputError: when there is no optimiser of that name.
    """
    if ":" in name:
        return cast("Callable[..., Any]", imported("--optimizer", name))
    if name not in OPTIMISERS:
        by_case = [known for known in OPTIMISERS if known.lower() == name.lower()]
        near = f"; did you mean {by_case[0]}?" if by_case else meant(name, OPTIMISERS)
        raise InputError(
            f"--optimizer: expected one of {', '.join(OPTIMISERS)}, or module:attribute, found {name!r}{near}"
        )
    return OPTIMISERS[name]


@lru_cache
def defaults_of(name: str) -> Defaults:
    """The defaults of an optimiser in `train`: those in `DEFAULTS`, or else those of its class."""
    if name in DEFAULTS:
        return DEFAULTS[name]
    arguments = _arguments(name)
    found = {key: arguments[key].default for key in ("lr", "weight_decay") if key in arguments}
    lr, decay = (
        float(found[key]) if isinstance(found.get(key), int | float) else None for key in ("lr", "weight_decay")
    )
    return Defaults(lr=lr, weight_decay=decay or 0.0)


def _arguments(name: str) -> Mapping[str, inspect.Parameter]:
    """The arguments of an optimiser's class, without the first one (the parameters)."""
    made = optimiser_class(name)
    try:
        found = inspect.signature(made).parameters
    except (TypeError, ValueError) as error:
        raise InputError(f"--optimizer {name}: expected a class of optimisers ({reason(error)})") from error
    return dict(list(found.items())[1:])


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserSpec:
    """An optimiser and its numbers."""

    name: str = "AdamW"
    """Class in torch.optim, or module:attribute."""
    lr: float = 1e-3
    """Learning rate before the schedule changes it."""
    weight_decay: float = 1e-4
    """Weight decay, as the optimiser defines it."""
    decay: Decay = "all"
    """Which parameters have weight decay."""
    args: Mapping[str, Json] = field(default_factory=dict)
    """Further keyword arguments of the class."""

    def __post_init__(self) -> None:
        """Refuse arguments that the class would not accept, before any work starts."""
        known = self._defaults()
        unknown = [name for name in self.args if name not in known]
        if unknown and not self._takes_any:
            raise InputError(
                f"optimiser {self.name}: unknown arguments {', '.join(unknown)}; "
                f"it takes {', '.join(known)}, and lr and weight_decay by --lr and --weight-decay"
            )
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"optimiser {name}: expected a number >= 0, found {value}")
        if self.decay not in get_args(Decay):
            raise InputError(f"optimiser decay: expected one of {', '.join(get_args(Decay))}, found {self.decay!r}")
        self.make([("weight", Parameter(torch.zeros(1, 1)))])

    def make(self, parameters: Iterable[tuple[str, Parameter]]) -> torch.optim.Optimizer:
        """Construct the optimiser for a network's named parameters."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in self._given().items()}
        try:
            made = optimiser_class(self.name)(self._groups(parameters), **values)
        except Exception as error:
            if ":" not in self.name and not isinstance(error, TypeError | ValueError | RuntimeError):
                raise
            raise InputError(f"optimiser {self.name}: {reason(error)}") from error
        if not isinstance(made, torch.optim.Optimizer):
            raise InputError(f"optimiser {self.name}: expected a torch.optim.Optimizer, found {type(made).__name__}")
        return made

    def to_json(self) -> dict[str, Json]:
        """The name and every argument with its value; None leaves an argument to torch."""
        values = {**self._defaults(), **self._given()}
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if v is not None}
        return {"name": self.name, **plain, **({} if self.decay == "all" else {"decay": self.decay})}

    def _groups(self, parameters: Iterable[tuple[str, Parameter]]) -> list[dict[str, Any]]:
        """Parameter groups with and without weight decay, split as in SRe2L and RDED."""
        decaying: list[Parameter] = []
        others: list[Parameter] = []
        for name, parameter in parameters:
            decays = self.decay == "all" or ("weight" in name and parameter.ndim > 1)
            (decaying if decays else others).append(parameter)
        return [{"params": decaying}, *([{"params": others, "weight_decay": 0.0}] if others else [])]

    def _given(self) -> dict[str, Json]:
        """The keyword arguments that are passed to the class."""
        decay: dict[str, Json] = {"weight_decay": self.weight_decay}
        if "weight_decay" not in _arguments(self.name) and not self._takes_any:
            if self.weight_decay:
                raise InputError(f"optimiser {self.name}: has no weight decay; give a weight decay of 0")
            decay = {}
        return {**self.args, "lr": self.lr, **decay}

    @property
    def _takes_any(self) -> bool:
        """Whether the class accepts arbitrary keyword arguments."""
        return any(each.kind is each.VAR_KEYWORD for each in _arguments(self.name).values())

    def _defaults(self) -> dict[str, Json]:
        """The defaults of the class's arguments, except those that are fields here."""
        named = {n: a for n, a in _arguments(self.name).items() if a.kind not in (a.VAR_KEYWORD, a.VAR_POSITIONAL)}
        return {
            name: None if argument.default is argument.empty else argument.default
            for name, argument in named.items()
            if name not in ("lr", "weight_decay")
        }


def optimiser_of(options: OptimiserOptions) -> OptimiserSpec:
    """The optimiser of its flags, with every number.

    Raises:
        InputError: when it has no default learning rate and none is given, or rejects an argument.
    """
    own = defaults_of(options.name)
    given = json_object("--optimizer-args", options.args)
    return OptimiserSpec(
        name=options.name,
        lr=first_rate(options),
        weight_decay=own.weight_decay if options.weight_decay is None else options.weight_decay,
        decay=options.decay,
        args={**own.args, **given, **({"fused": True} if options.fused else {})},
    )


def first_rate(options: OptimiserOptions) -> float:
    """The learning rate before the schedule changes it.

    Raises:
        InputError: when the optimiser has no default and none is given.
    """
    rate = defaults_of(options.name).lr if options.lr is None else options.lr
    if rate is None:
        raise InputError(f"--optimizer {options.name}: has no default learning rate; give --lr")
    return rate
