"""Several networks as one: the weighted mean of their logits."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class Ensemble(nn.Module):
    """The weighted mean of the logits of several networks, summed in float32 in their order.

    Args:
        networks: with logits of one shape.
        shares: weight of each network's logits; they sum to 1.
    """

    def __init__(self, networks: Sequence[nn.Module], shares: Sequence[float]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)
        self.shares = tuple(shares)

    def forward(self, images: Tensor) -> Tensor:
        """Logits, float32 ``[n, C]``, of images ``[n, 3, S, S]``."""
        first, *others = (
            network(images).float() * share for network, share in zip(self.networks, self.shares, strict=True)
        )
        total: Tensor = first
        for logits in others:
            total = total + logits
        return total
