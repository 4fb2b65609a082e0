"""All that a network keeps: copied, and beside its state dict saved."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason


def copied(network: nn.Module) -> nn.Module:
    """A network with the same numbers that shares nothing which a step changes.

    Raises:
        InputError: when it cannot be copied.
    """
    with torch.no_grad():  # a scripted one has its parameters copied as any other tensors
        copy = _copy(network)
    for own, theirs in zip(copy.parameters(), network.parameters(), strict=True):
        own.requires_grad_(theirs.requires_grad)
    return copy


def _copy(network: nn.Module) -> nn.Module:
    try:
        return deepcopy(network)
    except Exception:  # what a network holds may raise anything
        memo: dict[int, Any] = {}
    for module in network.modules():
        for name, value in vars(module).items():
            if name in ("_parameters", "_buffers", "_modules"):
                continue
            if isinstance(value, Tensor):  # made of parameters, as weight norm does
                memo[id(value)] = _with_graph(value) if value.grad_fn is not None else value.detach().clone()
            elif not _is_copied(value):  # a module of Python, a lock, an open file
                memo[id(value)] = value
    try:
        return deepcopy(network, memo)
    except Exception as error:
        raise InputError(f"network {type(network).__name__}: cannot be copied: {reason(error)}") from error


def _with_graph(value: Tensor) -> Tensor:
    """A copy that has a graph of its own, which can be walked back once, as that of what it is a copy of."""
    copy = value.detach().clone().requires_grad_()
    with torch.enable_grad():
        return copy * torch.ones_like(copy).requires_grad_()


def _is_copied(value: object) -> bool:
    try:
        deepcopy(value)
    except Exception:
        return False
    return True


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
