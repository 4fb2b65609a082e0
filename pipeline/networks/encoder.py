"""A frozen network that maps crops to feature vectors: a classifier without its last layer, or a whole network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason
from labelstore.spec import Json
from pipeline.device.faults import is_fault
from pipeline.networks.outputs import logits_of
from pipeline.networks.trained import TIMM
from pipeline.networks.weights import Weights

Features = Literal["penultimate", "output"]
SOME = 1_000  # classes of a classifier that is taken off; those of the weights win over it
CLIP = "_clip"  # in timm's names of image towers: their last layer projects into the space of the text


class Load(Protocol):
    """`pipeline.networks.load.load_network`, which also loads networks that hold an encoder."""

    def __call__(  # noqa: D102
        self, name: str, args: Mapping[str, Any], weights: str, /, *, classes: int, size: int
    ) -> tuple[nn.Module, Weights]: ...


class Build(Protocol):
    """`pipeline.networks.load.build_network`."""

    def __call__(self, name: str, args: Mapping[str, Any], classes: int, /, *, size: int) -> nn.Module: ...  # noqa: D102


@dataclass(frozen=True, kw_only=True, slots=True)
class EncoderSpec:
    """The choice of an encoder.

    Attributes:
        name: network, as ``build_network`` takes it.
        args: keyword arguments of its constructor.
        weights: a file, ``torchvision:ENUM`` or ``timm:pretrained``.
        features: penultimate: what its last linear layer gets, as which it is a classifier; output: what it gives.
    """

    name: str
    weights: str
    args: Mapping[str, Json]
    features: Features

    @property
    def words(self) -> str:
        """For messages."""
        return f"encoder {self.name}"


@dataclass(frozen=True, eq=False, slots=True)
class Encoder:
    """An encoder with its weights.

    Attributes:
        spec: which.
        network: crops ``[n, 3, S, S]`` to features ``[n, d]``; in eval mode, without gradients.
        width: d.
        weights: all weights of the file, including those of a removed classifier.
    """

    spec: EncoderSpec
    network: nn.Module
    width: int
    weights: Weights

    @property
    def bytes(self) -> int:
        """Bytes of its weights."""
        return sum(tensor.nbytes for tensor in self.weights.tensors.values())


def features_of(name: str, wanted: Features | None) -> Features:
    """The kind of an encoder's features: as requested, or the default for such a network."""
    if wanted:
        return wanted
    if name.startswith(TIMM):
        return "output" if CLIP in name else "penultimate"
    own = ":" in name and not name.startswith("torchvision:")
    return "output" if own else "penultimate"


def load_encoder(spec: EncoderSpec, size: int, load: Load) -> Encoder:
    """An encoder for crops of ``size`` px.

    Args:
        spec: which.
        size: side of its crops in pixels.
        load: loads networks.

    Raises:
        InputError: when network or weights cannot be had, or it gives no feature vectors.
    """
    network, weights = load(spec.name, spec.args, spec.weights, classes=SOME, size=size)
    network = as_encoder(network, spec, size)
    return Encoder(spec, network, width_of(network, spec, size), weights)


def build_encoder(spec: EncoderSpec, size: int, width: int, build: Build) -> nn.Module:
    """The same with random weights, of features of ``width`` numbers."""
    classes = width if spec.features == "output" else SOME
    return as_encoder(build(spec.name, spec.args, classes, size=size), spec, size)


def as_encoder(network: nn.Module, spec: EncoderSpec, size: int) -> nn.Module:
    """A network as an encoder: frozen, and without its classifier where features are penultimate."""
    network = network.eval().requires_grad_(False)
    if spec.features == "penultimate":
        network = without_classifier(network, spec, size)
    return network


def without_classifier(network: nn.Module, spec: EncoderSpec, size: int) -> nn.Module:
    """A classifier that gives what its last linear layer gets.

    Raises:
        InputError: when its output is not that of a linear layer.
    """
    reset: Any = getattr(network, "reset_classifier", None)
    if spec.name.startswith(TIMM) and reset:
        reset(0)
        return network
    outputs: dict[str, Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: outputs.update({name: output}))
        for name, layer in network.named_modules()
        if isinstance(layer, nn.Linear)
    ]
    try:
        found = run(network, spec, size)
    finally:
        for hook in hooks:
            hook.remove()
    last = next((name for name, output in outputs.items() if output is found), None)
    if last is None:
        raise InputError(
            f"{spec.words}: expected a classifier that ends with a linear layer, found another one; give --features "
            f"output, and a network that gives feature vectors"
        )
    if not last:
        return nn.Identity()
    parent, _, name = last.rpartition(".")
    setattr(network.get_submodule(parent), name, nn.Identity())
    return network


def run(network: nn.Module, spec: EncoderSpec, size: int, count: int = 2) -> Tensor:
    """The raw output of the network for black crops."""
    try:
        with torch.no_grad():
            return logits_of(network(torch.zeros(count, 3, size, size)))
    except Exception as error:  # a network may raise anything at a size that it does not take
        if is_fault(error):
            raise
        raise InputError(f"{spec.words}: does not take crops of {size} px: {reason(error)}") from error


def width_of(network: nn.Module, spec: EncoderSpec, size: int) -> int:
    """Numbers of a feature vector.

    Raises:
        InputError: when the encoder gives something else.
    """
    found = run(network, spec, size)
    if found.ndim != 2 or len(found) != 2 or not found.is_floating_point():
        raise InputError(
            f"{spec.words}: expected feature vectors [2, d] for 2 crops, found {list(found.shape)}"
            f"{'' if found.is_floating_point() else f' of {found.dtype}'}; give a network that pools its features"
        )
    return int(found.shape[1])
