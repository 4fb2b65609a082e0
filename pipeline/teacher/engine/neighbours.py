"""Check on a probe batch that labels do not depend on the other crops of their batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from labelstore.errors import InputError

NEIGHBOUR_BAND = 1e-3  # largest difference, as a share of the logit norm
PROBE_CROPS = 8


def require_independent(
    name: str, network: nn.Module, logits: Callable[[Tensor], Tensor], size: int, batch: int | None
) -> None:
    """Refuse a network whose logits for a crop change with its place in the batch and with its neighbours.

    The same crops are labelled twice: the second time in reverse, half of them replaced by the black crops that fill a
    batch. (With only another order, batch norm in training mode would give the same.)

    Args:
        name: of the network, for the message.
        network: what is run.
        logits: labels uint8 ``[n, size, size, 3]``.
        size: side of the crops in pixels.
        batch: crops in a batch, if given; a single crop has no neighbours.
    """
    half = min(PROBE_CROPS, batch or PROBE_CROPS) // 2
    if not half:
        return
    generator = torch.Generator().manual_seed(0)
    crops = torch.randint(0, 256, (2 * half, size, size, 3), dtype=torch.uint8, generator=generator)
    others = crops.flip(0)
    others[half:] = 0
    ours, theirs = logits(crops).double(), logits(others).double()
    kept, moved = ours[half:], theirs[:half].flip(0)
    difference = float(((kept - moved).norm(dim=1) / kept.norm(dim=1).clamp(min=1e-12)).max())
    if not difference <= NEIGHBOUR_BAND and bool(kept.isfinite().all()):
        raise InputError(
            f"the network {name} gives a crop other logits among other crops: they differ by {difference:.1e} of their "
            f"norm (at most {NEIGHBOUR_BAND:.0e}); {_reason(network)}"
        )


def _reason(network: nn.Module) -> str:
    """The layer that depends on other crops of the batch, and a remedy."""
    without = [
        path.removeprefix("network.")
        for path, module in network.named_modules()
        if isinstance(module, _NormBase)
        and "Batch" in type(module).__name__
        and (module.training or module.running_mean is None)
    ]
    if without:
        return (
            f"batch norms without running statistics ({', '.join(without[:3])}{', ...' if len(without) > 3 else ''}) "
            f"take those of the batch: give weights with running statistics, and a network that keeps them"
        )
    return (
        "it takes statistics of the batch, attends across it, or draws random numbers in eval mode: "
        "give a network whose output depends only on the crop itself"
    )
