"""Any optimiser of ``torch.optim``, by name."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

import torch
from torch.nn import Parameter

from labelstore.errors import InputError
from labelstore.spec import Json

# all: every parameter; weights: those named weight with more than one dimension, so no bias and no norm layer.
Decay = Literal["all", "weights"]

# LBFGS calls the loss again and again, SparseAdam takes sparse gradients: neither fits a student's loop.
OPTIMISERS: dict[str, type[torch.optim.Optimizer]] = {
    name: value
    for name, value in sorted(vars(torch.optim).items())
    if inspect.isclass(value)
    and issubclass(value, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
}


@dataclass(frozen=True, kw_only=True, slots=True)
class OptimiserSpec:
    """An optimiser and its numbers."""

    name: str = "AdamW"
    """Class in torch.optim."""
    lr: float = 1e-3
    """First learning rate; the schedule multiplies it."""
    weight_decay: float = 1e-4
    """Applied as this optimiser defines it."""
    decay: Decay = "all"
    """Which parameters decay."""
    args: Mapping[str, Json] = field(default_factory=dict)
    """Further keyword arguments of the class."""

    def __post_init__(self) -> None:
        """Refuse what the class would not take, before any work starts."""
        if self.name not in OPTIMISERS:
            raise InputError(f"optimiser: expected one of {', '.join(OPTIMISERS)}, found {self.name!r}")
        known = self._defaults()
        unknown = [name for name in self.args if name not in known]
        if unknown:
            raise InputError(
                f"optimiser {self.name}: unknown arguments {', '.join(unknown)}; "
                f"it takes {', '.join(known)}, and lr and weight_decay by flags of their own"
            )
        for name in ("lr", "weight_decay"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value >= 0):
                raise InputError(f"optimiser {name}: expected a number >= 0, found {value}")
        if self.decay not in get_args(Decay):
            raise InputError(f"optimiser decay: expected one of {', '.join(get_args(Decay))}, found {self.decay!r}")
        self.make([("weight", Parameter(torch.zeros(1, 1)))])

    def make(self, parameters: Iterable[tuple[str, Parameter]]) -> torch.optim.Optimizer:
        """The optimiser of a network's named parameters."""
        values: dict[str, Any] = {n: tuple(v) if isinstance(v, list) else v for n, v in self._given().items()}
        try:
            return OPTIMISERS[self.name](self._groups(parameters), **values)
        except (TypeError, ValueError, RuntimeError) as error:
            raise InputError(f"optimiser {self.name}: {error}") from error

    def to_json(self) -> dict[str, Json]:
        """Name and every argument with its value; those that are None are left to torch."""
        values = {**self._defaults(), **self._given()}
        plain = {key: list(v) if isinstance(v, tuple) else v for key, v in values.items() if v is not None}
        return {"name": self.name, **plain, **({} if self.decay == "all" else {"decay": self.decay})}

    def _groups(self, parameters: Iterable[tuple[str, Parameter]]) -> list[dict[str, Any]]:
        """Parameters that decay, and those that do not, as SRe2L and RDED part them."""
        decaying: list[Parameter] = []
        others: list[Parameter] = []
        for name, parameter in parameters:
            decays = self.decay == "all" or ("weight" in name and parameter.ndim > 1)
            (decaying if decays else others).append(parameter)
        return [{"params": decaying}, *([{"params": others, "weight_decay": 0.0}] if others else [])]

    def _given(self) -> dict[str, Json]:
        """The keyword arguments of the class that are not left to their defaults."""
        decay: dict[str, Json] = {"weight_decay": self.weight_decay}
        if "weight_decay" not in inspect.signature(OPTIMISERS[self.name]).parameters:
            if self.weight_decay:
                raise InputError(f"optimiser {self.name}: has no weight decay; give a weight decay of 0")
            decay = {}
        return {**self.args, "lr": self.lr, **decay}

    def _defaults(self) -> dict[str, Json]:
        """The arguments of the class, without those that have a field of their own, and their defaults."""
        arguments = inspect.signature(OPTIMISERS[self.name]).parameters
        own = ("params", "lr", "weight_decay")
        return {name: argument.default for name, argument in arguments.items() if name not in own}
