"""Making a network by its name, with or without trained weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy

from labelstore.errors import InputError, reason
from pipeline.networks.families import PROJECTOR
from pipeline.networks.pretrained import construct, is_distributed, load_distributed
from pipeline.networks.projector_file import load_projector
from pipeline.networks.resnet_modified import RESNETS
from pipeline.networks.table import UNNAMED, constructor_of
from pipeline.networks.weights import Weights, head_classes, load_weights, read_weights, require_file


def build_network(name: str, args: Mapping[str, Any], classes: int | None, *, size: int) -> nn.Module:
    """A network with random weights.

    Args:
        name: as ``pipeline.networks.table.constructor_of`` takes it.
        args: keyword arguments of its constructor; they win over ``classes`` and ``size``.
        classes: passed as ``num_classes`` where the constructor takes it; None leaves it out.
        size: side of the square input in pixels, for the families whose head depends on it.
    """
    constructor, takes = constructor_of(name)
    given: dict[str, Any] = {"size": size}
    if classes is not None:
        given["num_classes"] = classes
    known = {key: given[key] for key in given if key in takes}
    if "num_classes" in given and UNNAMED in takes and "num_classes" not in args:
        network = _construct_open(name, constructor, args, given["num_classes"])
    else:
        network = construct(name, constructor, {**known, **args})
    _give_shapes(name, network, size)
    return network


def load_network(
    name: str, args: Mapping[str, Any], weights: str, *, classes: int, size: int, key: str | None = None
) -> tuple[nn.Module, Weights]:
    """A network with its trained weights.

    Args:
        name: as for ``build_network``.
        args: as for ``build_network``.
        weights: a file, ``torchvision:ENUM`` (such as IMAGENET1K_V1) or ``timm:pretrained``; of a projector its folder.
        classes: the classes of the images; the class count of the weights' own head wins over it.
        size: side of the square input in pixels.
        key: of several sets of weights in the file, the one to take; as for ``read_weights``.

    Raises:
        InputError: when network or weights cannot be had, or do not fit each other.
    """
    if is_distributed(weights):
        if key:
            raise InputError(f"--weights-key {key}: chooses among the sets of weights in a file, found {weights}")
        return load_distributed(name, args, weights)
    require_file(Path(weights))  # before the network takes its time
    if name == PROJECTOR:
        if key:
            raise InputError(f"--weights-key {key}: chooses among the sets of weights in a file, found a projector")
        return load_projector(args, weights, load_network, build_network)
    network = build_network(name, args, classes, size=size)
    found = read_weights(Path(weights), key=key, own=network.state_dict())
    trained_for = head_classes(network, classes, found)
    if trained_for is not None and "num_classes" not in args:
        network = build_network(name, args, trained_for, size=size)
    load_weights(network, found)
    return network, found


def require_known(name: str, weights: str) -> None:
    """Refuse an unknown network and missing weights, before anything is read.

    Raises:
        InputError: names the network or the file.
    """
    constructor_of(name)
    if not is_distributed(weights):
        require_file(Path(weights))


def library_version(name: str) -> dict[str, str]:
    """Name and version of the library besides torch that the network's code comes from, where known."""
    package = "torchvision" if name in RESNETS else name.partition(":")[0].partition(".")[0]
    version = getattr(sys.modules.get(package), "__version__", None)
    return {package: version} if isinstance(version, str) else {}


def _construct_open(name: str, constructor: Callable[..., Any], args: Mapping[str, Any], classes: int) -> nn.Module:
    """A network whose constructor may pass the number of classes on, or may not take it (``*args, **kwargs``)."""
    try:
        return construct(name, constructor, {"num_classes": classes, **args})
    except InputError as error:
        if not isinstance(error.__cause__, TypeError) or "num_classes" not in str(error.__cause__):
            raise
    return construct(name, constructor, args)


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
