"""All that a network keeps: its state dict, buffers beside it, and which parameters are trained."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason


def take_state(network: nn.Module, other: nn.Module) -> None:
    """Give a network the numbers of another one of the same class: all of them, and what of it is trained."""
    network.load_state_dict(other.state_dict())
    load_unsaved_buffers(network, unsaved_buffers(other))
    trained = {name: parameter.requires_grad for name, parameter in other.named_parameters()}
    set_trained(network, [name for name, trains in trained.items() if trains])


def trained_parameters(network: nn.Module) -> list[str]:
    """The names of the parameters that take gradients."""
    return [name for name, parameter in network.named_parameters() if parameter.requires_grad]


def set_trained(network: nn.Module, names: Collection[str]) -> None:
    """Let these parameters take gradients, and no others."""
    for name, parameter in network.named_parameters():
        if parameter.requires_grad != (name in names):
            parameter.requires_grad_(name in names)


def unsaved_buffers(network: nn.Module) -> dict[str, Tensor]:
    """The buffers that are not in the state dict, though steps may change them."""
    saved = network.state_dict(keep_vars=True)
    return {name: buffer for name, buffer in network.named_buffers() if name not in saved}


def load_unsaved_buffers(network: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Put back what `unsaved_buffers` gave."""
    with torch.no_grad():
        for name, buffer in unsaved_buffers(network).items():
            if name in values:
                buffer.copy_(values[name])


def require_savable(network: nn.Module) -> None:
    """Refuse a state dict that a .safetensors file cannot hold.

    Raises:
        InputError: names the first entry.
    """
    from pipeline.networks.weights import packed

    for name, value in network.state_dict().items():
        if not isinstance(value, Tensor):
            raise InputError(
                f"expected a state dict of tensors, which a .safetensors file can hold, found {name} of type "
                f"{type(value).__name__}; keep it in a buffer (register_buffer)"
            )
        try:
            packed({name: value[:0] if value.ndim else value}, None)
        except Exception as error:
            raise InputError(
                f"expected tensors that a .safetensors file can hold, found {name} of {value.dtype} "
                f"({value.layout}): {reason(error)}"
            ) from error
