"""Losses on raw logits. Each has a definition in plain torch, which is the oracle of its faster twins.

A loss is called as ``loss(x, t, y, y2=None, lam=None)`` with student logits ``x [B, C]``, teacher logits ``t [B, C]``,
targets ``y [B]`` and, for mixed crops, the partners' targets ``y2 [B]`` and the weight ``lam [B]`` of ``y``. A new one
is one new file, and one line in `LOSSES` (`trainer/loss_table.py`). Twins are in `closed` and `kernels`; `fused`
chooses among them. If labels are probabilities (`trainer.relabel`), ``t`` holds them, and the definition is
``on_probabilities`` of the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from labelstore.errors import InputError, reason
from labelstore.spec import Json
from pipeline.networks.imported import imported
from trainer.choices import LossSpec
from trainer.loss_table import LossKind
from trainer.losses.closed import gift_rows, kl_rows, well_posed
from trainer.losses.cosine import cosine_loss
from trainer.losses.cross_entropy import ce_loss
from trainer.losses.fused import Fused, compile_rows
from trainer.losses.gift import gift_loss, gift_target
from trainer.losses.kl import kl_loss
from trainer.losses.mse import mse_loss
from trainer.losses.soft_ce import probability_ce_loss, soft_ce_loss
from trainer.relabel import LabelColumns, gives_probabilities, make_relabel, require_loss

__all__ = [
    "Loss",
    "LossSpec",
    "ce_loss",
    "cosine_loss",
    "gift_loss",
    "gift_target",
    "kl_loss",
    "make_loss",
    "make_relabelled_loss",
    "mse_loss",
    "probability_ce_loss",
    "soft_ce_loss",
]


class Loss(Protocol):
    """A loss as `make_loss` returns it."""

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
        """The mean loss of a batch, a scalar in float32 at least."""


def tried(name: str, loss: Callable[..., Tensor], numbers: Mapping[str, Json]) -> Loss:
    """A user's loss, or one with the user's numbers, with the signature of `Loss`.

    Args:
        name: of the loss.
        loss: without its numbers.
        numbers: its further keyword arguments.

    Raises:
        InputError: unless it returns one finite number with a gradient for the student, tried on random logits.
    """
    whole = partial(loss, **numbers) if numbers else loss
    given = f", and with {dict(numbers)}" if numbers else ""
    generator = torch.Generator().manual_seed(0)
    x, t = (torch.randn(2, 4, generator=generator) for _ in range(2))
    x.requires_grad_()
    try:
        found: object = whole(x, t, torch.tensor([0, 1]), torch.tensor([1, 0]), torch.tensor([1.0, 0.5]))
    except Exception as error:  # raised by the user's code
        raise InputError(
            f"--loss {name}: fails when called as loss(x, t, y, y2, lam), with logits x and t [n, C] of student and "
            f"teacher, targets y and y2 [n] and the weight lam [n] of y{given} "
            f"({type(error).__name__}: {reason(error)})"
        ) from error
    scalar = isinstance(found, Tensor) and found.ndim == 0 and found.requires_grad and bool(found.isfinite())
    if not scalar:
        raise InputError(
            f"--loss {name}: expected the mean loss of a batch, one finite number with a gradient for the student, "
            f"found {found!r}"
        )
    return whole


def soft(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a loss without targets the signature of `Loss`."""

    def call(x: Tensor, t: Tensor, y: Tensor, y2: object = None, lam: object = None, **numbers: Json) -> Tensor:
        del y, y2, lam
        return loss(x, t, **numbers)

    return call


def hard(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Give a loss without labels the signature of `Loss`."""

    def call(
        x: Tensor, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None, **numbers: Json
    ) -> Tensor:
        del t
        return loss(x, y, y2, lam, **numbers)

    return call


def with_hard_term(loss: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Add ``hard_weight`` times `ce_loss` to a loss with the signature of `Loss`."""

    def call(
        x: Tensor,
        t: Tensor,
        y: Tensor,
        y2: Tensor | None = None,
        lam: Tensor | None = None,
        *,
        hard_weight: float = 0.1,
        **numbers: Json,
    ) -> Tensor:
        return loss(x, t, y, y2, lam, **numbers) + hard_weight * ce_loss(x, y, y2, lam)

    return call


def definition_of(kind: LossKind, function: str) -> Callable[..., Tensor]:
    """The definition of a loss in plain torch, with the signature of `Loss` and its numbers as keywords.

    Args:
        kind: entry of the table.
        function: place of the definition, on logits or on probabilities.
    """
    loss: Callable[..., Tensor] = imported("loss", function)
    if not kind.labels:
        loss = hard(loss)
    elif not kind.targets:
        loss = soft(loss)
    return with_hard_term(loss) if kind.hard_term else loss


def make_loss(spec: LossSpec) -> Loss:
    """Construct the loss on logits that ``spec`` describes; it uses the fastest twin for the tensors of each call.

    On a GPU that is a Triton kernel. On a CPU it is the closed form, compiled for batches of 2^18 logits or more.
    Without a compiler or Triton, the closed form runs uncompiled, with a warning.
    """
    if ":" in spec.name:
        return tried(spec.name, imported("--loss", spec.name), spec.numbers)
    bare = definition_of(spec.kind, spec.kind.function)
    definition = tried(spec.name, bare, spec.numbers) if spec.own_numbers else partial(bare, **spec.numbers)
    if spec.kind.twin == "gift" and well_posed(*spec.weights):
        soft_weight, hard_weight = spec.weights
        numbers = {"soft": soft_weight, "hard": hard_weight, "smoothing": spec.smoothing}
        return Fused(definition, gift_rows, compile_rows(gift_rows), "gift", numbers, hard_weight > 0)
    if spec.kind.twin == "kl":
        return Fused(definition, kl_rows, compile_rows(kl_rows), "kl", spec.numbers, False)
    return definition


def make_relabelled_loss(spec: LossSpec, words: Sequence[str], columns: LabelColumns) -> Loss:
    """Construct the loss that ``spec`` describes on labels after the operators ``words``.

    Raises:
        InputError: an operator is unknown, does not fit the columns, or makes the loss meaningless.
    """
    if not words:
        return make_loss(spec)
    require_loss(words, spec)
    relabel = make_relabel(words, columns)
    loss = make_loss(spec)
    if ":" not in spec.name and spec.kind.on_probabilities and gives_probabilities(words):
        loss = partial(definition_of(spec.kind, spec.kind.on_probabilities), **spec.numbers)

    def call(x: Tensor, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
        return loss(x, relabel(t, y, y2, lam), y, y2, lam)

    return call
