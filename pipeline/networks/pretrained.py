"""Networks with the trained weights that torchvision and timm distribute."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torchvision
from torch import nn

from labelstore.errors import InputError, reason
from pipeline.networks.table import constructor_of
from pipeline.networks.trained import TIMM, TORCHVISION
from pipeline.networks.weights import Weights

TIMM_PRETRAINED = "timm:pretrained"


def is_distributed(weights: str) -> bool:
    """Whether these weights are a library's, and not a file."""
    return weights.startswith(TORCHVISION) or weights == TIMM_PRETRAINED


def load_distributed(name: str, args: Mapping[str, Any], weights: str) -> tuple[nn.Module, Weights]:
    """The network with these weights of its library.

    Raises:
        InputError: when they are another network's, or cannot be downloaded.
    """
    return (_timm_pretrained if weights == TIMM_PRETRAINED else _torchvision_pretrained)(name, args, weights)


def construct(name: str, constructor: Callable[..., Any], args: Mapping[str, Any]) -> nn.Module:
    """Call a constructor.

    Raises:
        InputError: when it fails, whatever it raises, or makes something else.
    """
    try:
        network = constructor(**args)
    except (Exception, SystemExit) as error:  # a constructor may raise anything at bad arguments
        why = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"network {name} cannot be made with {dict(args)}: {why}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {name}: expected a torch.nn.Module, found {type(network).__name__}")
    # of DataParallel and torch.compile, whose own names would be saved
    inner = network.module if isinstance(network, nn.DataParallel) else getattr(network, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else network


def _torchvision_pretrained(name: str, args: Mapping[str, Any], weights: str) -> tuple[nn.Module, Weights]:
    """The network and download of torchvision; its builder sets what the weights need besides tensors."""
    if not name.startswith(TORCHVISION):
        raise InputError(f"weights {weights} belong to torchvision:NAME, the network is {name}")
    model, choice = name.removeprefix(TORCHVISION), weights.removeprefix(TORCHVISION)
    try:
        enum = torchvision.models.get_model_weights(model)
    except ValueError as error:
        raise InputError(f"network {name}: {reason(error)}") from error
    if choice not in enum.__members__:
        raise InputError(f"weights {weights}: {name} has {', '.join(enum.__members__) or 'none'}")
    selected = enum[choice]
    progress = sys.stderr.isatty()
    try:
        # Reading the file as tensors alone first refuses anything else before the builder, which does
        # not ask for that, reads the same file from torch's cache.
        tensors = selected.get_state_dict(progress=progress, check_hash=True, weights_only=True, map_location="cpu")
    except Exception as error:  # network, disk, hash and pickle errors alike
        raise InputError(f"weights {weights} of {name} cannot be had: {reason(error)}") from error
    network = construct(name, partial(torchvision.models.get_model, model, weights=selected, progress=progress), args)
    return network, Weights(weights, tensors, tuple(selected.meta.get("categories", ())) or None)


def _timm_pretrained(name: str, args: Mapping[str, Any], weights: str) -> tuple[nn.Module, Weights]:
    """The download of timm, which adapts names; the digest is of what it loaded."""
    if not name.startswith(TIMM):
        raise InputError(f"weights {weights} belong to timm:NAME, the network is {name}")
    constructor, _ = constructor_of(name)
    network: Any = construct(name, partial(constructor, pretrained=True), args)
    trained_for = network.pretrained_cfg.get("num_classes", network.num_classes)
    if network.num_classes != trained_for:  # timm then leaves the head random
        raise InputError(
            f"network {name}: num_classes {network.num_classes} requested, but {weights} "
            f"has {trained_for}; leave num_classes out and select classes instead"
        )
    return network, Weights(weights, network.state_dict())
