"""The statistics of what a network's batch norms are given, and their distance from others: what images are fitted to.

Mean and variance of a batch take one pass over the activations, and so does their gradient: in plain torch operations
they take longer than the network itself on a CPU. A batch norm that is frozen is a multiplication and an addition; its
gradient and that of the statistics are made together.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from labelstore.errors import InputError

Statistics: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""Mean and variance of each channel, float32 ``[c]`` each, for each batch norm in the order of the forward pass."""

TINY = 1e-12  # added to variances within the kernels, and taken away again: they give 1 / sqrt(variance)
PROBE_IMAGES = 2


class Measured(nn.Module):
    """A network that returns, beside its logits, the statistics of the inputs of its batch norms.

    Args:
        name: of the network, for messages.
        network: in eval mode and frozen; maps images ``[n, 3, S, S]`` to logits.
        probe: images ``[n, 3, S, S]`` as it takes them, which show what batch norms it runs.

    Raises:
        InputError: when it has no batch norms.
    """

    def __init__(self, name: str, network: nn.Module, probe: Tensor) -> None:
        super().__init__()
        self.network = network
        self._layers = [module for module in network.modules() if _is_tracking(module)]
        self._found: list[tuple[int, tuple[Tensor, Tensor]]] = []
        for index, layer in enumerate(self._layers):
            if type(layer) is nn.BatchNorm2d:  # and not one that does something besides
                layer.forward = self._norm(index, layer)  # type: ignore[method-assign]
            else:
                layer.register_forward_pre_hook(self._hook(index))
        self.training = network.training
        with torch.no_grad():
            self(probe)
        order = [index for index, _ in self._found]
        if not order:
            raise InputError(
                f"sre2l: expected a teacher with batch norms (BatchNorm2d), whose running statistics the images are "
                f"fitted to, found none in {name}; give another --teacher, or a ConvNet with --teacher-args "
                f'\'{{"norm": "batch"}}\', or make the set with rded'
            )
        self.running: Statistics = [_running(self._layers[index]) for index in order]

    def forward(self, images: Tensor) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
        """Logits ``[n, C]`` of images ``[n, 3, S, S]``, and the statistics of this batch, both with gradients."""
        self._found.clear()
        logits: Tensor = self.network(images)
        return logits, [statistics for _, statistics in self._found]

    def _hook(self, index: int) -> Any:
        def keep(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self._found.append((index, moments(inputs[0])))

        return keep

    def _norm(self, index: int, layer: Any) -> Any:
        """The forward pass of a batch norm, which also keeps the statistics of its input."""
        plain = layer.forward
        scale, shift = _affine(layer)

        def forward(values: Tensor) -> Tensor:
            if values.dtype is not torch.float32:  # which would become float32
                self._found.append((index, moments(values)))
                kept: Tensor = plain(values)
                return kept
            normed: Tensor
            normed, mean, variance = _Norm.apply(values, scale, shift)
            self._found.append((index, (mean, variance)))
            return normed

        return forward


def _is_tracking(module: nn.Module) -> bool:
    return isinstance(module, nn.BatchNorm2d) and module.running_mean is not None


def _running(layer: Any) -> tuple[Tensor, Tensor]:
    return layer.running_mean.detach().float(), layer.running_var.detach().float()


def _affine(layer: Any) -> tuple[Tensor, Tensor]:
    """The factor and the offset of a frozen batch norm, ``[c, 1, 1]`` each."""
    mean, variance = _running(layer)
    scale = (variance + layer.eps).rsqrt()
    if layer.weight is not None:
        scale = scale * layer.weight.detach()
    shift = -mean * scale
    if layer.bias is not None:
        shift = shift + layer.bias.detach()
    return scale[:, None, None], shift[:, None, None]


def moments(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (of all values, not an estimate) of each channel of ``[n, c, h, w]``, float32 ``[c]`` each."""
    mean, variance = _Moments.apply(values)
    return mean, variance


def _measure(values: Tensor) -> tuple[Tensor, Tensor]:
    """`moments` without a gradient, by the kernels of batch norm."""
    if values.is_cuda and not torch.compiler.is_compiling():  # which knows only the other
        mean, scale = torch.batch_norm_stats(values, TINY)
    else:  # in half precision this kernel rounds what it returns
        _, mean, scale = torch.native_batch_norm(values.float(), None, None, None, None, True, 0.0, TINY)
    variance: Tensor = (scale.pow(-2) - TINY).clamp_(min=0)
    return mean, variance


def _gradient(values: Tensor, mean: Tensor, of_mean: Tensor, of_variance: Tensor) -> Tensor:
    """The gradient of `moments`, as one multiplication and addition of the values."""
    count = values.numel() / values.shape[1]
    slope = 2 / count * of_variance
    level = of_mean / count - slope * mean
    return torch.addcmul(level[:, None, None], values, slope[:, None, None])


class _Moments(torch.autograd.Function):
    """`moments`."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> tuple[Tensor, Tensor]:
        mean, variance = _measure(values)
        ctx.save_for_backward(values, mean)
        return mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return _gradient(*ctx.saved_tensors, *gradients).to(ctx.saved_tensors[0].dtype)


class _Norm(torch.autograd.Function):
    """``values * scale + shift``, and `moments` of the values; float32."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, scale: Tensor, shift: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        mean, variance = _measure(values)
        ctx.save_for_backward(values, mean, scale)
        return torch.addcmul(shift, values, scale), mean, variance

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        values, mean, scale = ctx.saved_tensors
        of_normed, of_mean, of_variance = gradients
        return _gradient(values, mean, of_mean, of_variance).addcmul_(of_normed, scale), None, None


def distance(found: Statistics, wanted: Statistics, first: float) -> Tensor:
    """The sum over batch norms of ``|mean - wanted mean| + |variance - wanted variance|``, Euclidean norms.

    Args:
        found: of a batch.
        wanted: of the same batch norms.
        first: weight of the first of them; the others have 1.
    """
    norms = [
        torch.linalg.vector_norm(mean - wanted_mean) + torch.linalg.vector_norm(variance - wanted_variance)
        for (mean, variance), (wanted_mean, wanted_variance) in zip(found, wanted, strict=True)
    ]
    return torch.stack([first * norms[0], *norms[1:]]).sum()


def pooled(batches: Iterable[tuple[int, Statistics]]) -> Statistics:
    """The statistics of many batches together, summed in float64.

    Args:
        batches: of each, its images and its statistics.
    """
    total = 0
    sums: list[tuple[Tensor, Tensor]] = []
    for count, found in batches:
        parts = [(count * mean.double(), count * (variance.double() + mean.double() ** 2)) for mean, variance in found]
        sums = [(a + x, b + y) for (a, b), (x, y) in zip(sums, parts, strict=True)] if sums else parts
        total += count
    means = [(first / total, second / total) for first, second in sums]
    return [(mean.float(), (square - mean**2).clamp(min=0).float()) for mean, square in means]
