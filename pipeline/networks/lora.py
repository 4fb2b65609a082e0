"""Low-rank adaptation (LoRA, arXiv 2106.09685) of convolutions and linear layers: a frozen weight plus ``alpha/r B A``.

The weight itself is parametrised, so that modules whose forward hands ``weight`` to a function are adapted too: fused
attention, `nn.MultiheadAttention`, the attention pooling of CLIP. Of a convolution, A is a convolution like it to r
channels, and B is 1 x 1: together they are one weight of its shape. Grouped convolutions are the exception: there A
sees all channels and only B is grouped (as in peft), which is no grouped weight, and they cannot be merged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn.functional import pad
from torch.nn.utils import parametrize

from labelstore.errors import InputError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
WEIGHT, FUSED = "weight", "in_proj_weight"  # the second: query, key and value of nn.MultiheadAttention
BESIDE = "lora"  # the matrices of a grouped convolution, as a module of it
NAMED = 8  # modules of a message


@dataclass(frozen=True, slots=True)
class Place:
    """A weight that can be adapted.

    Attributes:
        module: name of its module.
        weight: name of the parameter in it.
        shape: of the weight.
        groups: of a convolution; 1 of all others.
        depthwise: whether it is a depthwise convolution.
    """

    module: str
    weight: str
    shape: tuple[int, ...]
    groups: int = 1
    depthwise: bool = False

    @property
    def name(self) -> str:
        """Name of the adaptation, unique in a network."""
        return self.module if self.weight == WEIGHT else f"{self.module}.{self.weight}".lstrip(".")

    @property
    def width(self) -> int:
        """The largest rank that the weight can have."""
        return min(self.shape[0], self.groups * math.prod(self.shape[1:]))

    def parameters(self, rank: int) -> int:
        """Numbers that an adaptation has."""
        return rank * (self.groups * math.prod(self.shape[1:]) + self.shape[0] // self.groups)


class Lora(nn.Module):
    """The matrices of one weight; B begins as zero, and so without an effect.

    Args:
        weight: that is adapted, ``[out, in / groups, ...]``.
        rank: r.
        scale: of ``B A``.
        groups: of the convolution.
    """

    def __init__(self, weight: Tensor, rank: int, scale: float, groups: int = 1) -> None:
        super().__init__()
        out, within, *kernel = weight.shape
        self.a = nn.Parameter(weight.new_empty(rank, within * groups, *kernel))
        self.b = nn.Parameter(weight.new_zeros(out, rank // groups))
        self.scale, self._groups = scale, groups
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))

    @property
    def product(self) -> Tensor:
        """``scale B A``, in the shape of a weight without groups."""
        return (self.b @ self.a.flatten(1)).reshape(len(self.b), *self.a.shape[1:]) * self.scale

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight."""
        return weight + self.product

    def beside(self, convolution: nn.Module, images: Tensor) -> Tensor:
        """The low-rank term of a grouped convolution."""
        layer: Any = convolution
        if layer.padding_mode != "zeros":
            images, padding = pad(images, layer._reversed_padding_repeated_twice, mode=layer.padding_mode), 0
        else:
            padding = layer.padding
        convolve = {3: nn.functional.conv1d, 4: nn.functional.conv2d, 5: nn.functional.conv3d}[self.a.ndim]
        found = convolve(images, self.a, None, layer.stride, padding, layer.dilation)
        b = self.b.reshape(*self.b.shape, *[1] * (self.a.ndim - 2))
        return convolve(found, b, groups=self._groups) * self.scale


def places(network: nn.Module) -> Iterator[Place]:
    """The weights of a network that can be adapted, in its order."""
    for name, module in network.named_modules():
        if isinstance(module, CONVOLUTIONS):
            depthwise = module.groups > 1 and module.groups == module.in_channels
            yield Place(name, WEIGHT, tuple(module.weight.shape), module.groups, depthwise)
        elif isinstance(module, nn.Linear):
            yield Place(name, WEIGHT, tuple(module.weight.shape))
        elif isinstance(module, nn.MultiheadAttention) and module.in_proj_weight is not None:
            yield Place(name, FUSED, tuple(module.in_proj_weight.shape))


def choose(network: nn.Module, pattern: str | None, rank: int) -> list[Place]:
    """The weights that are adapted.

    Args:
        network: the frozen one.
        pattern: regular expression that is searched for in the names of modules; None takes every linear layer and
            every convolution that is not depthwise.
        rank: of the matrices.

    Raises:
        InputError: names a pattern that matches nothing, or a layer that the rank does not fit.
    """
    known = list(places(network))
    if pattern is None:
        found = [place for place in known if not place.depthwise]
    else:
        try:
            search = re.compile(pattern).search
        except re.error as error:
            raise InputError(f"--lora-on {pattern!r}: expected a regular expression ({error})") from error
        found = [place for place in known if search(place.module)]
    if not found:
        among = ", ".join(place.name for place in known[:NAMED]) or "none"
        raise InputError(
            f"--lora-on{'' if pattern is None else f' {pattern!r}'}: expected convolutions or linear layers of the "
            f"encoder, found none that match; it has {among}{', ...' if len(known) > NAMED else ''}"
        )
    for place in found:
        require_rank(place, rank)
        if not isinstance(getattr(network.get_submodule(place.module), place.weight), nn.Parameter):
            raise InputError(
                f"--lora-on: the weight of {place.name} is made of other parameters, and cannot be adapted; leave that "
                f"layer out"
            )
    return found


def require_rank(place: Place, rank: int) -> None:
    """Refuse a rank that a weight cannot have."""
    if not 1 <= rank <= place.width:
        raise InputError(
            f"--rank {rank}: expected 1 to {place.width}, the width of {place.name} {list(place.shape)}; give a lower "
            f"--rank, or --lora-on without that layer"
        )
    if rank % place.groups:
        raise InputError(
            f"--rank {rank}: expected a multiple of {place.groups}, the groups of {place.name}; give another --rank, "
            f"or --lora-on without that layer"
        )


def adapt(network: nn.Module, chosen: Mapping[Place, Lora]) -> None:
    """Put matrices beside the frozen weights that they belong to; the network's own parameters are not trained."""
    network.requires_grad_(False)
    for place, lora in chosen.items():
        module = network.get_submodule(place.module)
        if place.groups == 1:
            parametrize.register_parametrization(module, place.weight, lora)
        else:
            module.add_module(BESIDE, lora)
            module.register_forward_hook(add_beside)


def add_beside(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    """The output of a grouped convolution with its matrices."""
    lora: Any = getattr(layer, BESIDE)
    added: Tensor = lora.beside(layer, inputs[0])
    return output + added


def merge(network: nn.Module, chosen: Mapping[Place, Lora]) -> None:
    """Add the matrices to the weights, which are plain again; those of grouped convolutions stay beside them."""
    for place in chosen:
        if place.groups == 1:
            module = network.get_submodule(place.module)
            parametrize.remove_parametrizations(module, place.weight, leave_parametrized=True)
    network.requires_grad_(False)


def made(network: nn.Module, chosen: list[Place], rank: int, scale: float) -> dict[Place, Lora]:
    """New matrices for weights, in the order of the network."""
    found = {}
    for place in chosen:
        weight = getattr(network.get_submodule(place.module), place.weight)
        found[place] = Lora(weight.detach(), rank, scale, place.groups)
    return found


def listed(chosen: list[Place], rank: int) -> list[str]:
    """The adapted layers and their numbers of parameters, a line for each kind of layer."""
    lines: dict[str, list[Place]] = {}
    for place in chosen:
        lines.setdefault(re.sub(r"\d+", "*", place.name), []).append(place)
    total = sum(place.parameters(rank) for place in chosen)
    width = max(map(len, lines), default=0)
    return [
        f"low-rank matrices: rank {rank} on {len(chosen):,} weights, {total:,} parameters",
        *(
            f"  {name:<{width}}  {len(of):>4} x, {sum(place.parameters(rank) for place in of):>10,} parameters"
            for name, of in lines.items()
        ),
    ]
