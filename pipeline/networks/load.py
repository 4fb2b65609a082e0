"""Networks by name, with or without trained weights."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torchvision
from torch import nn
from torch.nn.parameter import is_lazy

from labelstore.errors import InputError, reason
from pipeline.networks.cifar_resnet import CifarResNet
from pipeline.networks.convnet import ConvNet
from pipeline.networks.imported import imported
from pipeline.networks.resnet_modified import RESNETS, resnet_modified
from pipeline.networks.trained import TIMM, TORCHVISION
from pipeline.networks.weights import Weights, head_classes, load_weights, read_weights, require_file

FAMILIES: Mapping[str, Callable[..., nn.Module]] = {
    **{f"convnet-d{depth}": partial(ConvNet, depth) for depth in range(1, 7)},
    **{f"cifar-resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)},
    **{name: partial(resnet_modified, name) for name in RESNETS},
}
TIMM_PRETRAINED = "timm:pretrained"
UNNAMED = "**"  # a constructor that takes keywords which its signature does not name


def build_network(name: str, args: Mapping[str, Any], classes: int | None, *, size: int) -> nn.Module:
    """A network with random weights.

    Args:
        name: a name of ``FAMILIES``, ``torchvision:NAME``, ``timm:NAME`` or ``package.module:attribute``.
        args: keyword arguments of its constructor; they win over ``classes`` and ``size``.
        classes: passed as ``num_classes`` where the constructor takes it; None leaves it out.
        size: side of the square input in pixels, for the families whose head depends on it.
    """
    constructor, takes = _constructor(name)
    given: dict[str, Any] = {"size": size}
    if classes is not None:
        given["num_classes"] = classes
    known = {key: given[key] for key in given if key in takes}
    if "num_classes" in given and UNNAMED in takes and "num_classes" not in args:
        network = _construct_open(name, constructor, args, given["num_classes"])
    else:
        network = _construct(name, constructor, {**known, **args})
    _give_shapes(name, network, size)
    return network


def load_network(
    name: str, args: Mapping[str, Any], weights: str, *, classes: int, size: int, key: str | None = None
) -> tuple[nn.Module, Weights]:
    """A network with its trained weights.

    Args:
        name: as for ``build_network``.
        args: as for ``build_network``.
        weights: a file, ``torchvision:ENUM`` (such as IMAGENET1K_V1) or ``timm:pretrained``.
        classes: the classes of the images; the class count of the weights' own head wins over it.
        size: side of the square input in pixels.
        key: of several sets of weights in the file, the one to take; as for ``read_weights``.

    Raises:
        InputError: when network or weights cannot be had, or do not fit each other.
    """
    if key and (weights.startswith(TORCHVISION) or weights == TIMM_PRETRAINED):
        raise InputError(f"--weights-key {key}: chooses among the sets of weights in a file, found {weights}")
    if weights.startswith(TORCHVISION):
        return _torchvision_pretrained(name, args, weights)
    if weights == TIMM_PRETRAINED:
        return _timm_pretrained(name, args)
    require_file(Path(weights))  # before the network takes its time
    network = build_network(name, args, classes, size=size)
    found = read_weights(Path(weights), key=key, own=network.state_dict())
    trained_for = head_classes(network, classes, found)
    if trained_for is not None and "num_classes" not in args:
        network = build_network(name, args, trained_for, size=size)
    load_weights(network, found)
    return network, found


def require_known(name: str, weights: str) -> None:
    """Refuse, before anything is read, a network that no name stands for, and weights that are not there.

    Raises:
        InputError: names the network or the file.
    """
    _constructor(name)
    if not weights.startswith(TORCHVISION) and weights != TIMM_PRETRAINED:
        require_file(Path(weights))


def library_version(name: str) -> dict[str, str]:
    """Name and version of the library besides torch that the network's code comes from, where known."""
    package = "torchvision" if name in RESNETS else name.partition(":")[0].partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", None)
    return {package: version} if isinstance(version, str) else {}


def _constructor(name: str) -> tuple[Callable[..., Any], Collection[str]]:
    """What makes the network, and which of ``num_classes`` and ``size`` it takes."""
    if name in FAMILIES:
        return FAMILIES[name], inspect.signature(FAMILIES[name]).parameters
    library, colon, attribute = name.partition(":")
    if not (library and colon and attribute):
        raise InputError(
            f"network {name!r}: expected one of {', '.join(FAMILIES)}, torchvision:NAME, timm:NAME "
            f"or package.module:attribute{_meant(name)}"
        )
    if library == "torchvision":
        if attribute not in torchvision.models.list_models():
            raise InputError(f"network {name}: torchvision has none of that name{_meant(attribute)}")
        return partial(torchvision.models.get_model, attribute), ("num_classes",)
    if library == "timm":
        return partial(_timm().create_model, attribute), ("num_classes",)
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


def _meant(name: str) -> str:
    """The nearest names, for a message."""
    if "." in name:  # a module of the user's, with a point where the colon belongs, or its file
        path = Path(name)
        module, _, attribute = name.rpartition(".")
        return f"; did you mean {f'{path.stem}:NAME' if path.suffix == '.py' else f'{module}:{attribute}'}?"
    known = [*FAMILIES, *(f"{TORCHVISION}{model}" for model in torchvision.models.list_models())]
    exact = [f"{TORCHVISION}{name}"] if name in torchvision.models.list_models() else []
    near = exact or get_close_matches(name, known, 2) or get_close_matches(f"{TORCHVISION}{name}", known, 2)
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _construct(name: str, constructor: Callable[..., Any], args: Mapping[str, Any]) -> nn.Module:
    try:
        network = constructor(**args)
    except (Exception, SystemExit) as error:  # a constructor may raise anything at bad arguments
        said = f"{type(error).__name__}: {reason(error)}"
        raise InputError(f"network {name} cannot be made with {dict(args)}: {said}") from error
    if not isinstance(network, nn.Module):
        raise InputError(f"network {name}: expected a torch.nn.Module, found {type(network).__name__}")
    # of DataParallel and torch.compile, whose own names would be saved
    inner = network.module if isinstance(network, nn.DataParallel) else getattr(network, "_orig_mod", None)
    return inner if isinstance(inner, nn.Module) else network


def _construct_open(name: str, constructor: Callable[..., Any], args: Mapping[str, Any], classes: int) -> nn.Module:
    """A network whose constructor may pass the number of classes on, or may not take it (``*args, **kwargs``)."""
    try:
        return _construct(name, constructor, {"num_classes": classes, **args})
    except InputError as error:
        if not isinstance(error.__cause__, TypeError) or "num_classes" not in str(error.__cause__):
            raise
    return _construct(name, constructor, args)


def _give_shapes(name: str, network: nn.Module, size: int) -> None:
    """Run lazy layers once, on black crops, so that their parameters have shapes and their first values."""
    if not any(map(is_lazy, [*network.parameters(), *network.buffers()])):
        return
    training = network.training
    try:
        with torch.no_grad():
            network.eval()  # what it returns is the user's
            network(torch.zeros(2, 3, size, size))
    except (Exception, SystemExit) as error:  # a network may raise anything at a size that it does not take
        raise InputError(f"network {name}: does not take crops of {size} px: {reason(error)}") from error
    network.train(training)
    if left := [parameter for parameter, value in network.named_parameters() if is_lazy(value)]:
        raise InputError(f"network {name}: expected a forward that calls its lazy layers, found none of {left[0]}")


def _timm() -> Any:
    try:
        return importlib.import_module("timm")
    except ModuleNotFoundError as error:
        raise InputError("timm:NAME needs timm: pip install 'giftwrap[timm]'") from error


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
    network = _construct(name, partial(torchvision.models.get_model, model, weights=selected, progress=progress), args)
    return network, Weights(weights, tensors, tuple(selected.meta.get("categories", ())) or None)


def _timm_pretrained(name: str, args: Mapping[str, Any]) -> tuple[nn.Module, Weights]:
    """The download of timm, which adapts names; the digest is of what it loaded."""
    if not name.startswith(TIMM):
        raise InputError(f"weights {TIMM_PRETRAINED} belong to timm:NAME, the network is {name}")
    constructor, _ = _constructor(name)
    network: Any = _construct(name, partial(constructor, pretrained=True), args)
    trained_for = network.pretrained_cfg.get("num_classes", network.num_classes)
    if network.num_classes != trained_for:  # timm then leaves the head random
        raise InputError(
            f"network {name}: num_classes {network.num_classes} asked for, but {TIMM_PRETRAINED} "
            f"has {trained_for}; leave num_classes out and select classes instead"
        )
    return network, Weights(TIMM_PRETRAINED, network.state_dict())
