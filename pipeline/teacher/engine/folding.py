"""Folding batch norms into the layers before them: fewer passes over the activations, the same function."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights, fuse_linear_bn_weights
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labelstore.errors import InputError

FOLDING_BAND = 1e-4  # largest change, as a share of the largest logit, that float32 weights explain

Layer: TypeAlias = "nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear"
Norm: TypeAlias = "nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d"
# Exactly these: a subclass may use its weight in another way.
LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class _Uses(TorchDispatchMode):
    """Counts the operators that take each of some tensors."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept: list[Tensor] = []  # alive, so that no other tensor takes their id
        self.count: dict[int, int] = {}

    def watch(self, tensor: Tensor) -> None:
        """Count from now on."""
        self.kept.append(tensor)
        self.count[id(tensor)] = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if id(leaf) in self.count:
                self.count[id(leaf)] += 1
        return func(*args, **(kwargs or {}))


def fold_batch_norms(network: nn.Module, images: Tensor) -> int:
    """Fold, in place, each batch norm that is the only consumer of a convolution's or linear layer's output.

    Which ones do is seen in one run, so that any network can be folded; the result is held against the network before.

    Args:
        network: in eval mode, float32.
        images: float32 ``[n, 3, S, S]``, to see and compare by.

    Returns:
        The number of batch norms folded.

    Raises:
        InputError: when the logits change by more than ``FOLDING_BAND``.
    """
    with torch.no_grad():
        before, pairs = _watch(network, images)
        for layer, norm in pairs:
            _fold(layer, norm)
        _drop(network, [norm for _, norm in pairs])
        after: Tensor = network(images)
        change = float((after - before).abs().max() / before.abs().max().clamp(min=1e-12))
    if not change <= FOLDING_BAND:
        raise InputError(
            f"--fold: folding {len(pairs)} batch norms changes the logits by {change:.1e} of the largest "
            f"(at most {FOLDING_BAND:.0e}); leave --fold out for this teacher"
        )
    return len(pairs)


def _watch(network: nn.Module, images: Tensor) -> tuple[Tensor, list[tuple[Layer, Norm]]]:
    """The logits, and the layers whose output goes into one batch norm and nowhere else."""
    uses = _Uses()
    calls: Counter[nn.Module] = Counter()
    made: dict[int, Layer] = {}
    taken: dict[Norm, int] = {}

    def after_layer(layer: Layer, _inputs: Any, output: Tensor) -> None:
        calls[layer] += 1
        if output.ndim == 2 or not isinstance(layer, nn.Linear):  # else its columns are not the norm's channels
            made[id(output)] = layer
            uses.watch(output)

    def before_norm(norm: Norm, inputs: Sequence[Tensor]) -> None:
        calls[norm] += 1
        if id(inputs[0]) in made:  # now: once it is gone, another tensor may take its id
            taken[norm] = id(inputs[0])

    modules = list(network.modules())
    # a hook may compute a layer's weight at each call, as weight norm does
    layers = [module for module in modules if type(module) in LAYERS and not module._forward_pre_hooks]
    norms = [module for module in modules if isinstance(module, NORMS) and _is_foldable(module)]
    hooks = [layer.register_forward_hook(after_layer) for layer in layers]
    hooks += [norm.register_forward_pre_hook(before_norm) for norm in norms]
    try:
        with uses:
            logits: Tensor = network(images)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = [(made[source], norm) for norm, source in taken.items() if uses.count[source] == 1]
    return logits, [(layer, norm) for layer, norm in pairs if calls[layer] == calls[norm] == 1]


def _is_foldable(norm: nn.Module) -> bool:
    """Whether the norm uses running statistics and is nothing else besides, or timm's with an activation after it."""
    known = type(norm) in NORMS or _rest(norm) is not None
    return known and not norm.training and norm.running_mean is not None


def _rest(norm: nn.Module) -> nn.Module | None:
    """The operations of timm's batch norms after normalising."""
    act, drop = getattr(norm, "act", None), getattr(norm, "drop", None)
    return nn.Sequential(drop, act) if isinstance(act, nn.Module) and isinstance(drop, nn.Module) else None


def _fold(layer: Layer, norm: Norm) -> None:
    """Give the layer the weights that make it do the norm's work too; computed in float64."""
    fuse: Any = fuse_linear_bn_weights if isinstance(layer, nn.Linear) else fuse_conv_bn_weights
    statistics: Any = norm
    mean, variance = statistics.running_mean.double(), statistics.running_var.double()
    scale, shift, bias = (
        torch.full_like(mean, fill) if tensor is None else tensor.double()
        for tensor, fill in ((norm.weight, 1), (norm.bias, 0), (layer.bias, 0))
    )
    weight, bias = fuse(layer.weight.double(), bias, mean, variance, norm.eps, scale, shift)
    layer.weight = nn.Parameter(weight.to(layer.weight.dtype), requires_grad=False)
    layer.bias = nn.Parameter(bias.to(layer.weight.dtype), requires_grad=False)


def _drop(network: nn.Module, norms: Sequence[nn.Module]) -> None:
    """Put what is left of the norms in their places."""
    dropped = {*norms}
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child in dropped:
                setattr(parent, name, _rest(child) or nn.Identity())
