"""The ConvNet of dataset distillation: blocks of convolution, norm, ReLU and 2x2 average pooling.

Layers and key names (``features.N``, ``classifier``) are those of DatasetCondensation, which the field's
checkpoints use.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Literal

from torch import Tensor, nn


class ConvNet(nn.Module):
    """``depth`` blocks of ``width`` channels and a linear head over all that the last block leaves.

    Args:
        depth: number of blocks; each halves the side, rounding down.
        num_classes: outputs of the head.
        size: side of the square input in pixels; the head's width depends on it.
        width: channels of every block.
        norm: "instance" (GroupNorm with one channel a group, affine) or "batch".
        channels: channels of the input.
    """

    def __init__(
        self,
        depth: int,
        *,
        num_classes: int,
        size: int,
        width: int = 128,
        norm: Literal["instance", "batch"] = "instance",
        channels: int = 3,
    ) -> None:
        super().__init__()
        if norm not in ("instance", "batch"):
            raise ValueError(f'norm: expected "instance" or "batch", found {norm!r}')
        side = size >> depth
        if side < 1:
            raise ValueError(f"{depth} blocks need at least {1 << depth} px, found {size} px")
        layers: list[nn.Module] = []
        for block in range(depth):
            layers += [
                nn.Conv2d(width if block else channels, width, 3, padding=1),
                nn.GroupNorm(width, width) if norm == "instance" else nn.BatchNorm2d(width),
                nn.ReLU(inplace=True),
                nn.AvgPool2d(2),
            ]
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Linear(width * side * side, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, C]`` of images ``[n, channels, size, size]``."""
        logits: Tensor = self.classifier(self.features(images).flatten(1))
        return logits


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    f"convnet-d{depth}": partial(ConvNet, depth) for depth in range(1, 7)
}
