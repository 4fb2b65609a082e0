"""Encoders of a few hundred parameters, of each kind of layer."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.networks import save_weights

WIDTH = 12


class Cnn(nn.Module):
    """Convolutions with norms; gives feature vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 8, 3, stride=2, padding=1),
            nn.BatchNorm2d(8),
            nn.ReLU(),
            nn.Conv2d(8, 8, 3, padding=1, groups=8),
            nn.Conv2d(8, WIDTH, 1, bias=False),
            nn.BatchNorm2d(WIDTH),
            nn.ReLU(),
        )

    def forward(self, images: Tensor) -> Tensor:
        features: Tensor = self.layers(images).mean((2, 3))
        return features


class Classifier(nn.Module):
    """The same as a classifier."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__()
        self.body = Cnn()
        self.fc = nn.Linear(WIDTH, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.fc(self.body(images))
        return logits


class Block(nn.Module):
    """A block of a ViT, with query, key and value in one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.qkv, self.proj = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm(tokens)).chunk(3, -1)
        found: Tensor = tokens + self.proj(nn.functional.scaled_dot_product_attention(q, k, v))
        return found


class Vit(nn.Module):
    """Patches, a block, their mean."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.block = nn.Conv2d(3, WIDTH, 4, stride=4), Block()

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.block(self.patches(images).flatten(2).transpose(1, 2))
        return found.mean(1)


class Maps(nn.Module):
    """Gives no vectors."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(3, 8, 3)

    def forward(self, images: Tensor) -> Tensor:
        maps: Tensor = self.layer(images)
        return maps


class Idle(Cnn):
    """Has a layer that it does not use."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Linear(8, 8)


ENCODERS = {"Cnn": Cnn, "Vit": Vit, "Classifier": Classifier, "Maps": Maps, "Idle": Idle}


def saved_encoder(name: str, path: Path, seed: int = 0) -> Path:
    """Random weights of an encoder, with running statistics of their own, in a file."""
    torch.manual_seed(seed)
    network = ENCODERS[name]()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.running_mean, std=0.1)  # type: ignore[arg-type]
            nn.init.uniform_(layer.running_var, 0.5, 1.5)  # type: ignore[arg-type]
    save_weights(network.state_dict(), path)
    return path
