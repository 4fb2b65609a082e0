"""Networks by name: those of `pipeline.networks.families`, of libraries, and of the user's modules."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from labelstore.errors import InputError, reason
from pipeline.networks.families import family_of, network_names
from pipeline.networks.imported import imported
from pipeline.networks.trained import TIMM, TORCHVISION

UNNAMED = "**"  # a constructor that takes keywords which its signature does not name


def constructor_of(name: str) -> tuple[Callable[..., Any], Collection[str]]:
    """The constructor of a network, and which of ``num_classes`` and ``size`` it takes, or `UNNAMED`.

    Args:
        name: of `network_names`, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:attribute``.

    Raises:
        InputError: when there is no such network.
    """
    if family := family_of(name):
        network: Callable[..., nn.Module] = imported("network", f"{family}:NETWORKS")[name]
        return network, inspect.signature(network).parameters
    library, colon, attribute = name.partition(":")
    if not (library and colon and attribute):
        raise InputError(
            f"network {name!r}: expected one of {', '.join(network_names())}, torchvision:NAME, timm:NAME "
            f"or package.module:attribute{_meant(name)}"
        )
    return LIBRARIES.get(library, _of_module)(name, attribute)


def _of_torchvision(name: str, model: str) -> tuple[Callable[..., Any], Collection[str]]:
    if model not in torchvision.models.list_models():
        near = _nearest(TORCHVISION, model, torchvision.models.list_models())
        raise InputError(f"network {name}: torchvision has none of that name{near}")
    return partial(torchvision.models.get_model, model), ("num_classes",)


def _of_timm(name: str, model: str) -> tuple[Callable[..., Any], Collection[str]]:
    try:
        timm: Any = importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InputError("timm:NAME needs timm: pip install 'giftwrap[timm]'") from error
    if "/" not in model and ":" not in model and not timm.is_model(model):  # others are on a hub, or in a folder
        near = _nearest(TIMM, model, timm.list_models())
        raise InputError(f"network {name}: timm has none of that name{near}")
    return partial(timm.create_model, model), ("num_classes",)


def _of_module(name: str, _attribute: str) -> tuple[Callable[..., Any], Collection[str]]:
    constructor = imported("network", name)
    if isinstance(constructor, nn.Module):
        raise InputError(f"network {name}: is a network already; give its class, or a function that makes one")
    try:
        parameters = inspect.signature(constructor).parameters
        takes = [key for key in parameters if key == "num_classes"]
        if not takes and any(each.kind is each.VAR_KEYWORD for each in parameters.values()):
            takes = [UNNAMED]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"network {name}: expected a class, or a function that makes a network ({reason(error)})"
        ) from error
    return constructor, takes


LIBRARIES: Mapping[str, Callable[[str, str], tuple[Callable[..., Any], Collection[str]]]] = {
    "torchvision": _of_torchvision,
    "timm": _of_timm,
}


def _nearest(prefix: str, model: str, known: Sequence[str]) -> str:
    """The nearest names of a library, for a message."""
    near = get_close_matches(model, known, 2)
    return f"; did you mean {' or '.join(f'{prefix}{each}' for each in near)}?" if near else ""


def _meant(name: str) -> str:
    """The nearest names, for a message."""
    if "." in name:  # a module of the user's, with a point where the colon belongs, or its file
        path = Path(name)
        module, _, attribute = name.rpartition(".")
        return f"; did you mean {f'{path.stem}:NAME' if path.suffix == '.py' else f'{module}:{attribute}'}?"
    known = [*network_names(), *(f"{TORCHVISION}{model}" for model in torchvision.models.list_models())]
    exact = [f"{TORCHVISION}{name}"] if name in torchvision.models.list_models() else []
    near = exact or get_close_matches(name, known, 2) or get_close_matches(f"{TORCHVISION}{name}", known, 2)
    return f"; did you mean {' or '.join(near)}?" if near else ""
