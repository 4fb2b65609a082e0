"""Several networks as one: the weighted mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from pipeline.teacher.engine.precision import Precision, precision


class Ensemble(nn.Module):
    """The weighted mean of the logits of several networks, summed in float32 in their order.

    Args:
        networks: with logits of one shape.
        shares: weight of each network's logits; they sum to 1.
        products: precision of float32 products, whatever the code of the network before has set.
    """

    def __init__(self, networks: Sequence[nn.Module], shares: Sequence[float], products: Precision = "ieee") -> None:
        super().__init__()
        self._products = products
        self.networks = nn.ModuleList(networks)
        self.shares = tuple(shares)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 ``[n, C]``, of images ``[n, 3, S, S]``."""
        first, *others = (
            self._run(network, images) * share for network, share in zip(self.networks, self.shares, strict=True)
        )
        total: Tensor = first
        for logits in others:
            total = total + logits
        return total

    def _run(self, network: nn.Module, images: Tensor) -> Tensor:
        with nullcontext() if torch.compiler.is_compiling() else precision(self._products):
            logits: Tensor = network(images).float()
        return logits
