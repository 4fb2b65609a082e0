"""An expert trained by a plain PyTorch loop: pixels by Pillow, own network and loop, nothing of giftwrap."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn.functional import cross_entropy


@dataclass(frozen=True)
class Loop:
    """How an expert is trained.

    Attributes:
        depth: blocks of the ConvNet.
        width: its channels.
        batch: images a step.
        rate: learning rate of SGD.
        momentum: of SGD.
        mean: of the normalisation of pixels in [0, 1], for each channel.
        std: likewise.
    """

    depth: int
    width: int
    batch: int
    rate: float
    momentum: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def read_folder(root: Path) -> tuple[Tensor, Tensor]:
    """All images of a class folder, uint8 ``[N, 3, S, S]``, and their classes ``[N]``, in byte order of the names."""
    pixels, targets = [], []
    for target, folder in enumerate(sorted(path for path in root.iterdir() if path.is_dir())):
        for file in sorted(folder.iterdir()):
            with Image.open(file) as image:
                pixels.append(np.asarray(image.convert("RGB")))
            targets.append(target)
    return torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).contiguous(), torch.tensor(targets)


def conv_net(loop: Loop, side: int, classes: int) -> nn.Sequential:
    """A ConvNet with instance norm, with torch's first weights."""
    layers: list[nn.Module] = []
    for block in range(loop.depth):
        layers += [
            nn.Conv2d(loop.width if block else 3, loop.width, 3, padding=1),
            nn.InstanceNorm2d(loop.width, affine=True),
            nn.ReLU(),
            nn.AvgPool2d(2),
        ]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(loop.width * (side >> loop.depth) ** 2, classes))


def plain_top1(train: Path, test: Path, loop: Loop, epochs: int, seed: int) -> float:
    """Top-1 in percent on the test images after some epochs of hard labels, without augmentation."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pixels, targets = read_folder(train)
        network = conv_net(loop, pixels.shape[-1], int(targets.max()) + 1)
        optimiser = torch.optim.SGD(network.parameters(), lr=loop.rate, momentum=loop.momentum)
        for _ in range(epochs):
            order = torch.randperm(len(pixels))
            for start in range(0, len(order), loop.batch):
                chosen = order[start : start + loop.batch]
                loss = cross_entropy(network(normalised(pixels[chosen], loop)), targets[chosen])
                optimiser.zero_grad()
                torch.autograd.backward(loss)
                optimiser.step()
    pixels, targets = read_folder(test)
    network.eval()
    hits = 0
    with torch.no_grad():
        for start in range(0, len(pixels), loop.batch):
            rows = slice(start, start + loop.batch)
            hits += int((network(normalised(pixels[rows], loop)).argmax(1) == targets[rows]).sum())
    return 100 * hits / len(pixels)


def normalised(pixels: Tensor, loop: Loop) -> Tensor:
    """Pixels, uint8 ``[n, 3, S, S]``, as floats with the mean and the deviation taken out."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (loop.mean, loop.std))
    return (pixels / 255 - mean) / std
