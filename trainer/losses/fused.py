"""Fused twins of the losses: the gradient is computed together with the loss, and backward returns it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from labelstore.errors import InputError
from pipeline.device.kernels import kernels_agree, warn_slower
from pipeline.teacher.engine.compiling import compilers
from trainer.losses.closed import gift_rows
from trainer.losses.cosine import check_logits
from trainer.losses.gift import check_targets

Rows = Callable[..., tuple[Tensor, Tensor]]

# Least number of logits in a batch for compiling on a CPU: it takes seconds, and for fewer saves under 0.5 ms a step.
WORTH_COMPILING = 1 << 18
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton reads it; its kernels then run on a CPU


class KnownGradient(torch.autograd.Function):
    """The mean of losses ``[B]``, with a precomputed gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, losses: Tensor, gradient: Tensor) -> Tensor:
        """The mean."""
        ctx.save_for_backward(gradient)
        ctx.dtype = x.dtype
        return mean_of(losses)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None]:
        """The precomputed gradient times the incoming one."""
        if torch.is_grad_enabled():
            raise InputError(
                "fused loss: expected to be differentiated once, found create_graph=True; its definition "
                "(trainer.losses.gift_loss, cosine_loss or kl_loss) can be differentiated again"
            )
        (gradient,) = ctx.saved_tensors
        return scaled(gradient, incoming[0]).to(ctx.dtype), None, None


def backward(loss: Tensor) -> None:
    """``loss.backward()`` with a cached 1 as first gradient, which `scaled` recognises without reading the GPU."""
    loss.backward(gradient=_one(loss.device, loss.dtype))  # type: ignore[no-untyped-call]


@cache
def _one(device: torch.device, dtype: torch.dtype) -> Tensor:
    with torch.inference_mode(False):
        return torch.ones((), device=device, dtype=dtype)


def mean_of(losses: Tensor) -> Tensor:
    """The mean of losses ``[B]``."""
    if torch.compiler.is_compiling() or losses.dtype != torch.float32 or not runs_kernels(losses):
        return losses.mean()
    from trainer.losses.kernels import mean

    return mean(losses)


def scaled(gradient: Tensor, factor: Tensor) -> Tensor:
    """The gradient times a scalar; no work is done if the scalar is 1."""
    if not torch.compiler.is_compiling() and factor is _one(factor.device, factor.dtype):
        return gradient
    if torch.compiler.is_compiling():
        return gradient * factor
    if runs_kernels(gradient):
        # In place by a kernel, since only the GPU has the value; not if the graph is kept for another backward.
        if torch._C._autograd._get_current_graph_task_keep_graph():
            return gradient * factor
        from trainer.losses.kernels import scale

        return scale(gradient, factor)
    return gradient if factor.item() == 1 else gradient * factor


@dataclass(frozen=True)
class Fused:
    """A loss that uses the fastest twin of its definition for the tensors of each call.

    Attributes:
        definition: used where no twin applies: labels that need a gradient, and empty batches.
        closed: the closed form, uncompiled.
        compiled: the compiled closed form, for large batches on a CPU.
        kernel: name of the kernel in `trainer.losses.kernels`.
        numbers: keyword arguments of both.
        hard: whether the loss uses the targets.
    """

    definition: Callable[..., Tensor]
    closed: Rows
    compiled: Rows
    kernel: str
    numbers: dict[str, Any]
    hard: bool

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, y2: Tensor | None = None, lam: Tensor | None = None) -> Tensor:
        """The mean loss of a batch."""
        if t.requires_grad or (lam is not None and lam.requires_grad) or not len(x):
            return self.definition(x, t, y, y2, lam)
        check_logits(x, t)
        if self.hard:
            check_targets(x, y, y2, lam)
        targets = (y, y2, lam) if self.hard else ()
        with torch.no_grad(), placed(x.device):
            losses, gradient = self.rows(x, t)(x.detach(), t, *targets, **self.numbers)
        result: Tensor = KnownGradient.apply(x, losses, gradient)
        return result

    def rows(self, x: Tensor, t: Tensor) -> Rows:
        """Choose the twin for these tensors."""
        if torch.float64 not in (x.dtype, t.dtype) and runs_kernels(x):
            from trainer.losses import kernels

            twin: Rows = getattr(kernels, self.kernel)
            return twin
        worth_compiling = x.device.type == "cpu" and x.numel() >= WORTH_COMPILING
        return self.compiled if worth_compiling and not torch.compiler.is_compiling() else self.closed


def compile_rows(rows: Rows) -> Rows:
    """Compile a closed form at its first call; if that fails it runs uncompiled, with a warning."""
    chosen: list[Rows] = []

    def run(x: Tensor, *rest: Tensor | None, **numbers: Any) -> tuple[Tensor, Tensor]:
        if not chosen:
            try:
                compilers(x.device)
                fast: Rows = torch.compile(rows)
                made = fast(*anew(x, *rest), **numbers)
                chosen.append(fast)
                return made
            except Exception as error:  # compilers raise exceptions of any type
                warn_slower("the loss is not compiled, and takes longer", error)
                chosen.append(rows)
        return chosen[0](*anew(x, *rest), **numbers)

    return run


def anew(*tensors: Tensor | None) -> list[Tensor | None]:
    """Mark the number of rows as dynamic, so that the compiled code does not depend on the batches of earlier steps."""
    views = [None if tensor is None else tensor.detach() for tensor in tensors]
    for view in views:
        if view is not None:
            torch._dynamo.maybe_mark_dynamic(view, 0)
    return views


def placed(device: torch.device) -> AbstractContextManager[Any]:
    """Make a GPU the current device, as kernels need; compiled code does this itself."""
    plain = device.type != "cuda" or torch.compiler.is_compiling()
    return nullcontext() if plain else torch.cuda.device(device)


def runs_kernels(x: Tensor) -> bool:
    """Whether Triton kernels can be used for a tensor."""
    return (x.is_cuda or INTERPRETED) and kernels_work(x.device)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def kernels_work(device: torch.device) -> bool:
    """Whether the Triton kernels run on a device and match the closed forms; warns if not."""
    return _kernels_work(device)


@cache
def _kernels_work(device: torch.device) -> bool:
    return kernels_agree(lambda: _compare_kernels(device), "the loss is the same by its closed form, and takes longer")


def _compare_kernels(device: torch.device) -> None:
    from trainer.losses.kernels import gift

    numbers: dict[str, Any] = {"soft": 1.0, "hard": 0.1, "smoothing": 0.1}
    noise = torch.Generator().manual_seed(0)
    x, t = torch.randn(2, 3, 37, generator=noise).to(device)
    y, y2, lam = (torch.tensor(values, device=device) for values in ([0, 36, 5], [4, 36, 0], [0.3, 0.6, 1.0]))
    for targets in ((y, None, None), (y, y2, lam)):
        with placed(device), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "TRITON_DEFAULT_FP_FUSION")  # either will do
            found, expected = gift(x, t, *targets, **numbers), gift_rows(x, t, *targets, **numbers)
        for ours, theirs in zip(found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
