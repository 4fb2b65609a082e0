"""A network for images of one size, given smaller ones with zeros around them."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


class Padded(nn.Module):
    """Pads normalised images with zeros to the network's side, centred; of an odd rest, one more below and right.

    Zeros after the normalisation are the mean colour.

    Args:
        network: takes images ``[n, 3, S, S]``.
        side: S in pixels.
    """

    def __init__(self, network: nn.Module, side: int) -> None:
        super().__init__()
        self.network = network
        self._side = side
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images ``[n, 3, s, s]``, s at most S."""
        height, width = (self._side - side for side in images.shape[-2:])
        around = (width // 2, width - width // 2, height // 2, height - height // 2)
        logits: Tensor = self.network(functional.pad(images, around))
        return logits
