"""The running mean of a student's weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.networks.state import load_unsaved_buffers, unsaved_buffers


class Average:
    """An exponential moving average of parameters and buffers; begins with those of the first step.

    Attributes:
        network: has the averages; those that are no floating-point numbers are the student's own.

    Args:
        network: another network of the student's class, which shares nothing with it.
        decay: of the mean.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.network = network
        self.network.eval()  # what it returns is the user's
        for parameter in self.network.parameters():  # a scripted network has no requires_grad_
            parameter.requires_grad_(False)
        self._decay, self._begun = decay, False

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """Take in the student after a step: ``decay * average + (1 - decay) * student``."""
        ours, theirs = _tensors(self.network), _tensors(student)
        weight = 1 - self._decay if self._begun else 1.0
        floating = [number for number, value in enumerate(ours) if value.is_floating_point()]
        torch._foreach_lerp_([ours[number] for number in floating], [theirs[number] for number in floating], weight)
        for own, other in zip(ours, theirs, strict=True):
            if not own.is_floating_point():
                own.copy_(other)
        for mean, layer in zip(self.network.modules(), student.modules(), strict=True):
            if type(layer).get_extra_state is not nn.Module.get_extra_state:
                mean.set_extra_state(copy.deepcopy(layer.get_extra_state()))
        self._begun = True

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` takes."""
        buffers = unsaved_buffers(self.network)
        return {"network": self.network.state_dict(), "buffers": buffers, "begun": self._begun}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state."""
        self.network.load_state_dict(state["network"])
        load_unsaved_buffers(self.network, state.get("buffers", {}))
        self._begun = state["begun"]


def _tensors(network: nn.Module) -> list[Tensor]:
    return [*network.parameters(), *network.buffers()]
