"""The logits in what a network returns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from labelstore.errors import InputError


class Logits(nn.Module):
    """A network that returns its logits and nothing else: see `logits_of`.

    Attributes:
        network: has the weights; its state dict is what is saved and loaded.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.training = network.training

    def forward(self, images: Tensor) -> Tensor:
        """Logits of images ``[n, 3, S, S]``."""
        return logits_of(self.network(images))


def logits_of(output: Any) -> Tensor:
    """The logits: the output itself, what it names ``logits``, or the first of several.

    Auxiliary logits (GoogLeNet, Inception) and features beside them are ignored.

    Raises:
        InputError: when there are none.
    """
    if isinstance(output, Tensor):
        return output
    found = output.get("logits") if isinstance(output, Mapping) else getattr(output, "logits", None)
    if found is None and isinstance(output, (tuple, list)) and output:
        found = output[0]
    if not isinstance(found, Tensor):
        raise InputError(
            f"expected logits: a tensor, something with a tensor named 'logits', or a tuple that begins with one; "
            f"found {type(output).__name__}"
        )
    return found
