"""torchvision's ResNets for small images: a 3x3 stem of stride 1 and no max-pooling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import nn
from torchvision.models import resnet18, resnet101

RESNETS: dict[str, Callable[..., nn.Module]] = {"resnet18-modified": resnet18, "resnet101-modified": resnet101}


def resnet_modified(name: str, *, num_classes: int, **args: Any) -> nn.Module:
    """A ResNet of `RESNETS` whose first stage sees the full resolution; ``args`` go to torchvision's constructor."""
    network = RESNETS[name](num_classes=num_classes, **args)
    network.conv1 = nn.Conv2d(3, 64, 3, stride=1, padding=1, bias=False)
    network.maxpool = nn.Identity()
    return network


NETWORKS: Mapping[str, Callable[..., nn.Module]] = {name: partial(resnet_modified, name) for name in RESNETS}
