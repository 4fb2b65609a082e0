"""The CIFAR ResNet of He et al. 2016: three stages of basic blocks, shortcuts without parameters (option A).

Key names (``conv1``, ``bn1``, ``layerN.M.conv1``, ``linear``) are those of the widely used CIFAR checkpoints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import Tensor, nn
from torch.nn.functional import pad, relu


class BasicBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut; a stride of 2 doubles the channels."""

    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.stride = channels // channels_in
        self.pad = (channels - channels_in) // 2
        self.conv1 = nn.Conv2d(channels_in, channels, 3, self.stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        """``[n, channels_in, S, S]`` to ``[n, channels, S / stride, S / stride]``."""
        out = relu(self.bn1(self.conv1(x)), inplace=True)
        out = self.bn2(self.conv2(out))
        if self.stride > 1:  # every second pixel, zero channels at both ends
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.pad, self.pad))
        return relu(out.add_(x), inplace=True)


class CifarResNet(nn.Module):
    """ResNet of ``depth`` = 6 n + 2 layers with 16, 32 and 64 channels."""

    def __init__(self, depth: int, *, num_classes: int) -> None:
        super().__init__()
        blocks = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks)
        self.layer2 = self._stage(16, 32, blocks)
        self.layer3 = self._stage(32, 64, blocks)
        self.linear = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight)

    @staticmethod
    def _stage(channels_in: int, channels: int, blocks: int) -> nn.Sequential:
        first = BasicBlock(channels_in, channels)
        return nn.Sequential(first, *(BasicBlock(channels, channels) for _ in range(blocks - 1)))

    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, C]`` of images ``[n, 3, S, S]``."""
        x = relu(self.bn1(self.conv1(images)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        logits: Tensor = self.linear(x.mean((2, 3)))
        return logits


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {
    f"cifar-resnet{depth}": partial(CifarResNet, depth) for depth in (20, 32, 44, 56, 110)
}
