"""The projector of HeLlO (arXiv 2408.08201): ``head(encoder(x))``, labels from a frozen encoder and few numbers.

Low-rank matrices adapt the encoder; the head starts from text embeddings, from the mean features of the classes, or
from zero, and has low-rank matrices too. A folder holds these and names the encoder: its weights are not copied, and
others are refused by their digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from labelstore.errors import InputError
from labelstore.operations.projector import PARTS, part_of
from pipeline.networks import lora
from pipeline.networks.families import PROJECTOR
from pipeline.networks.outputs import logits_of
from pipeline.networks.weight_sets import is_counter, listed

HEAD_START, HEAD_A, HEAD_B = "head.start", "head.lora.a", "head.lora.b"  # in the state dict of a `Trained`
HEAD_WEIGHT = "head.weight"  # in files: what they give together
NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)
Start = Literal["text", "means", "zero"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Design:
    """The numbers of a projector beside its encoder.

    Attributes:
        rank: of the matrices in the encoder; 0: it is not adapted.
        alpha: their product is scaled by ``alpha / rank``.
        lora_on: regular expression of the names of adapted layers; None: every linear layer and every convolution that
            is not depthwise.
        head: what the head starts from.
        head_rank: of the head's matrices.
        adapt_norms: whether norm layers of the encoder are trained.
    """

    rank: int
    alpha: float
    lora_on: str | None
    head: Start
    head_rank: int
    adapt_norms: bool


class Head(nn.Module):
    """``linear(features, start + B A, bias)``.

    Args:
        start: float ``[C, d]``.
        bias: float ``[C]``.
        rank: of the matrices.
        kept: whether the start is among the weights that are saved; it is zero where not.
    """

    def __init__(self, start: Tensor, bias: Tensor, rank: int, *, kept: bool) -> None:
        super().__init__()
        self.start: Tensor
        self.register_buffer("start", start, persistent=kept)
        self.bias = nn.Parameter(bias)
        self.lora = lora.Lora(start, rank, 1.0)

    @property
    def weight(self) -> Tensor:
        """``[C, d]``."""
        return cast("Tensor", self.lora(self.start))

    def forward(self, features: Tensor) -> Tensor:
        """Logits ``[n, C]`` of features ``[n, d]``."""
        return linear(features, self.weight, self.bias)


class Trained(nn.Module):
    """All of a projector that is trained and saved: matrices of the encoder's layers, the head, norms where adapted.

    Args:
        matrices: by the name of what they adapt.
        head: of the projector.
        norms: of the encoder, by name, where they are trained.
    """

    def __init__(self, matrices: Mapping[str, lora.Lora], head: Head, norms: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.lora = nn.ModuleDict({key_of(name): each for name, each in matrices.items()})
        self.norms = nn.ModuleDict({key_of(name): each for name, each in norms.items()})
        self.head = head


class Projector(nn.Module):
    """A projector, ready to be trained.

    Args:
        encoder: the frozen network; its layers are adapted in place.
        design: its numbers.
        head: its head.

    Attributes:
        trained: what is trained of it.
    """

    def __init__(self, encoder: nn.Module, design: Design, head: Head) -> None:
        super().__init__()
        self.encoder = encoder
        self.places = lora.choose(encoder, design.lora_on, design.rank) if design.rank else []
        self._matrices = lora.made(encoder, self.places, design.rank, design.alpha / max(design.rank, 1))
        lora.adapt(encoder, self._matrices)
        self._norms = {n: m for n, m in encoder.named_modules() if isinstance(m, NORMS)} if design.adapt_norms else {}
        for norm in self._norms.values():
            norm.requires_grad_(True)
        self.trained = Trained({place.name: each for place, each in self._matrices.items()}, head, self._norms)
        self.train(self.training)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, C]`` of images ``[n, 3, S, S]``."""
        logits: Tensor = self.trained.head(logits_of(self.encoder(images)))
        return logits

    def train(self, mode: bool = True) -> Projector:
        """The encoder stays in eval mode, but for norms that are trained."""
        super().train(mode)
        self.encoder.eval()
        for norm in self._norms.values():
            norm.train(mode)
        return self

    def merged(self) -> nn.Module:
        """Merge into the encoder's layers and a plain head, at the encoder's speed; this network is consumed."""
        lora.merge(self.encoder, self._matrices)
        head = self.trained.head
        plain = nn.Linear(head.start.shape[1], len(head.bias), device=head.bias.device, dtype=head.bias.dtype)
        with torch.no_grad():
            plain.weight.copy_(head.weight)
            plain.bias.copy_(head.bias)
        return Merged(self.encoder, plain).eval().requires_grad_(False)

    @property
    def parameters_by_part(self) -> dict[str, int]:
        """Numbers that are trained, by part."""
        found = dict.fromkeys(PARTS, 0)
        for name, value in self.trained.named_parameters():
            found[part_of(name)] += value.numel()
        return found


class Merged(nn.Module):
    """A projector whose matrices are part of its weights."""

    def __init__(self, encoder: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.encoder, self.head = encoder, head

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, C]`` of images ``[n, 3, S, S]``."""
        logits: Tensor = self.head(logits_of(self.encoder(images)))
        return logits


def key_of(name: str) -> str:
    """The name of a module as a key, which has no dots; the network itself is ``.``, as a slash."""
    return name.replace(".", "/") or "/"


def saved(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The part of a `Trained` state dict that is saved: for the head, the smaller of its weight and its matrices."""
    found = {name: value for name, value in state.items() if not is_counter(name)}
    a, b, start = found[HEAD_A], found[HEAD_B], found.pop(HEAD_START, None)
    if start is None and a.numel() + b.numel() < len(b) * a.shape[1]:
        return found
    del found[HEAD_A], found[HEAD_B]
    product = b @ a
    return {**found, HEAD_WEIGHT: product if start is None else start + product}


def default_head_rank(columns: int, width: int) -> int:
    """128, and 64 below 200 columns, as HeLlO has it for 1,000 and 100 classes; at most what the head can have."""
    return min(64 if columns < 200 else 128, columns, width)


def make_head(
    design: Design, columns: int, width: int, start: Tensor | None, bias: Tensor | None = None, *, kept: bool = True
) -> Head:
    """A head of ``columns`` x ``width``.

    Args:
        design: of the projector.
        columns: C.
        width: d.
        start: ``[C, d]``; None is zero.
        bias: ``[C]``; None is zero.
        kept: whether the start is in the state dict; it is zero where not.

    Raises:
        InputError: when the rank does not fit.
    """
    if not 1 <= design.head_rank <= min(columns, width):
        raise InputError(
            f"--head-rank {design.head_rank}: expected 1 to {min(columns, width)}, the width of a head of {columns} x "
            f"{width}; give a lower one"
        )
    zero = torch.zeros(columns, width)
    return Head(
        zero if start is None else start.clone(),
        torch.zeros(columns) if bias is None else bias.clone(),
        design.head_rank,
        kept=kept,
    )


def start_from_text(text: Tensor, columns: int, width: int, place: str, scale: float = 1.0) -> Tensor:
    """The head of a zero-shot classifier: text embeddings of length 1, times a number.

    Args:
        text: ``[C, d]``, in any scale.
        columns: C of the labels.
        width: d of the encoder.
        place: where they come from, for messages.
        scale: of the logits.

    Raises:
        InputError: when they are of other classes or another width, or not finite.
    """
    if list(text.shape) != [columns, width]:
        raise InputError(
            f"{place}: expected text embeddings [{columns}, {width}], a row for each of the labels' columns as wide as "
            f"the encoder's features, found {list(text.shape)}; give those of these classes and this encoder"
        )
    lengths = text.double().norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(lengths).all()) or not bool(lengths.all()):
        raise InputError(f"{place}: expected rows of finite numbers that are not all 0, found others")
    rows: Tensor = (scale * text.double() / lengths).float()
    return rows


def start_from_means(means: Tensor, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """A head whose rows point from the mean feature to those of the classes; the mean feature has logits of 0.

    Args:
        means: mean feature of each class, float ``[C, d]``; a class without images has zeros.
        scale: of the logits.
    """
    there = means.any(1)
    middle = means[there].mean(0)
    rows = torch.where(there[:, None], means - middle, 0.0)
    rows = scale * rows / rows.norm(dim=1, keepdim=True).clamp_min(1e-12)
    return rows, -(rows @ middle)


def refuse(**_args: object) -> nn.Module:
    """A projector is trained and loaded, and not constructed by name."""
    raise InputError(
        f"{PROJECTOR} is made by `giftwrap train-projector`; its folder labels: --teacher {PROJECTOR} --weights FOLDER"
    )


NETWORKS = {PROJECTOR: refuse}


def require_used(projector: Projector, size: int) -> None:
    """Refuse matrices without an effect: those of layers whose weight the encoder does not read in a step.

    Args:
        projector: before its first step; it has no gradients afterwards.
        size: side of its crops in pixels.

    Raises:
        InputError: names the layers, or states that the encoder does not accept such crops.
    """
    images = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    projector.eval()  # running statistics do not change
    projector(images).square().mean().backward()
    unused = [name for name, each in projector.trained.lora.items() if cast("lora.Lora", each).b.grad is None]
    projector.zero_grad(set_to_none=True)
    projector.train()
    if unused:
        raise InputError(
            f"--lora-on: the encoder does not use the weights of {listed(name.replace('/', '.') for name in unused)} "
            f"in a step; leave these layers out"
        )
