"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.networks.state import load_unsaved_buffers, unsaved_buffers


class Average:
    """An exponential moving average of parameters and buffers; it starts from those after the first step.

    Attributes:
        network: holds the averages. Tensors that are not floating-point are copies of the student's.

    Args:
        network: another network of the student's class, which shares no tensors with it.
        decay: of the mean.
        rising: whether the decay starts small: ``min(decay, (1 + n) / (10 + n))`` after n steps.
    """

    def __init__(self, network: nn.Module, decay: float, *, rising: bool = False) -> None:
        self.network = network
        self.network.eval()  # a user's network may not return itself
        for parameter in self.network.parameters():  # a scripted network has no requires_grad_
            parameter.requires_grad_(False)
        self._decay, self._begun = decay, False
        self.rising, self._steps = rising, 0

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Update after a step: ``decay * average + (1 - decay) * student``."""
        ours, theirs = _tensors(self.network), _tensors(student)
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps)) if self.rising else self._decay
        weight = 1 - decay if self._begun else 1.0
        floating = [number for number, value in enumerate(ours) if value.is_floating_point()]
        torch._foreach_lerp_([ours[number] for number in floating], [theirs[number] for number in floating], weight)
        for own, other in zip(ours, theirs, strict=True):
            if not own.is_floating_point():
                own.copy_(other)
        for mean, layer in zip(self.network.modules(), student.modules(), strict=True):
            if type(layer).get_extra_state is not nn.Module.get_extra_state:
                mean.set_extra_state(copy.deepcopy(layer.get_extra_state()))
        self._begun, self._steps = True, self._steps + 1

    def state_dict(self) -> dict[str, Any]:
        """The state for `load_state_dict`."""
        buffers = unsaved_buffers(self.network)
        state = {"network": self.network.state_dict(), "buffers": buffers, "begun": self._begun}
        return {**state, "steps": self._steps} if self.rising else state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.network.load_state_dict(state["network"])
        load_unsaved_buffers(self.network, state.get("buffers", {}))
        self._begun, self._steps = state["begun"], state.get("steps", 0)


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
