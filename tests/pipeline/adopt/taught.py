"""A teacher that knows the classes of a small set: a random ConvNet whose last layer is fitted by least squares."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torchvision.datasets import ImageFolder
from torchvision.transforms import RandomResizedCrop, functional

from pipeline.networks import build_network
from pipeline.networks.weights import save_weights
from tests.journeys.world import CLASSES, SIDE, draw_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
CROPS = 16  # of each image


@dataclass(frozen=True)
class Taught:
    """Images, and a network that knows their classes."""

    folder: Path
    images: Path
    weights: Path
    network: nn.Module

    @property
    def teacher(self) -> list[object]:
        """The words that name the teacher on a command line."""
        return ["--teacher", "convnet-d2", "--teacher-args", ARGS, "--weights", self.weights]


ARGS = '{"width": 16, "norm": "batch"}'


def taught(folder: Path, *, per_class: int = 8) -> Taught:
    """A class folder of pictures, and a ConvNet-D2 that classifies crops of them."""
    images = draw_images(folder / "images", per_class=per_class)
    torch.manual_seed(0)
    network = build_network("convnet-d2", {"width": 16, "norm": "batch"}, classes=len(CLASSES), size=SIDE).eval()
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    crops, targets = _crops(images)
    features: list[Tensor] = []
    hook = last.register_forward_hook(lambda _layer, given, _result: features.append(given[0]))
    with torch.no_grad():
        network(crops)
        hook.remove()
        inputs = torch.cat([features[0], torch.ones(len(crops), 1)], dim=1).double()
        wanted = 6 * nn.functional.one_hot(targets, len(CLASSES)).double() - 2
        ridge = inputs.T @ inputs + 1e-2 * torch.eye(inputs.shape[1], dtype=torch.float64)
        solved = torch.linalg.solve(ridge, inputs.T @ wanted).float()
        last.weight.copy_(solved[:-1].T)
        last.bias.copy_(solved[-1])
    weights = folder / "teacher.safetensors"
    save_weights(network.state_dict(), weights)
    return Taught(folder, images, weights, network)


def _crops(images: Path) -> tuple[Tensor, Tensor]:
    crops, targets = [], []
    for path, target in (files := ImageFolder(images)).samples:
        image = files.loader(path)
        for _ in range(CROPS):
            box = RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3])
            crop = functional.to_tensor(functional.resized_crop(image, *box, [SIDE, SIDE]))
            crops.append(functional.normalize(crop, list(MEAN), list(STD)))
            targets.append(target)
    return torch.stack(crops), torch.tensor(targets)
