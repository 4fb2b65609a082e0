"""How far two sets of images are from each other in the features of a classifier, as Gaussians: not FID.

FID (arXiv 1706.08500) is this distance in the features of one Inception network, of 50,000 images; ours has another
network and fewer images, and its values are comparable only with each other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from pipeline.images.manifest import scan
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from pipeline.render.normalise import normalise

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of the bundle's networks for CIFAR-10
BATCH = 128  # images
Floats: TypeAlias = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a classifier makes of images.

    Attributes:
        features: what its last linear layer gets, float64 ``[n, d]``.
        right: whether its first choice is the class of the folder, ``[n]``.
        targets: the class, int64 ``[n]``.
    """

    features: Floats
    right: npt.NDArray[np.bool_]
    targets: npt.NDArray[np.int64]

    def first(self, count: int) -> Floats:
        """Features of the first images of each class, ``[classes * count, d]``."""
        order = np.argsort(self.targets, kind="stable")
        starts = np.searchsorted(self.targets[order], self.targets[order])
        return self.features[order[np.arange(len(order)) - starts < count]]


def look(
    network: nn.Module, images: Path, size: int, device: torch.device, progress: Callable[[int], None] = lambda _: None
) -> Seen:
    """Show the images of a class folder, centre fit, to a classifier whose last layer is linear.

    Args:
        network: on the device, in eval mode; its classes are those of the folder, in byte order.
        images: the class folder.
        size: side of what the network is shown, in pixels.
        device: of the network.
        progress: called with the number of images that were shown since the last call.
    """
    manifest, spec = scan(images, digests=False), PlanSpec(size=size, crop="center", flip=0.0)
    plan = Plan(spec, manifest.heights, manifest.widths)
    last = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    features: list[Tensor] = []
    hook = last.register_forward_pre_hook(lambda _layer, inputs: features.append(inputs[0].double().cpu()))

    def choices() -> Iterator[npt.NDArray[np.int64]]:
        for start in range(0, len(manifest), BATCH):
            rows = plan.unmixed(0, np.arange(start, min(start + BATCH, len(manifest))))
            crops = normalise(renderer.render(rows).to(device), MEAN, STD, torch.float32, channels_last=False)
            yield network(crops).argmax(1).cpu().numpy()
            progress(len(rows))

    try:
        with closing(make_renderer(manifest, spec)) as renderer, torch.no_grad():
            chosen = np.concatenate([*choices()])
    finally:
        hook.remove()
    return Seen(torch.cat(features).numpy(), chosen == manifest.targets, manifest.targets)


def feature_distance(one: Floats, two: Floats) -> float:
    """Squared Fréchet distance between Gaussians with the mean and covariance of some vectors each.

    ``|m1 - m2|^2 + trace(C1 + C2 - 2 (C1^1/2 C2 C1^1/2)^1/2)``, in float64, with covariances over n - 1.

    Args:
        one: float64 ``[n, d]``.
        two: float64 ``[m, d]``.
    """
    apart = one.mean(axis=0) - two.mean(axis=0)
    first, second = (np.atleast_2d(np.cov(each, rowvar=False)) for each in (one, two))
    values, vectors = np.linalg.eigh(first)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    shared = np.sqrt(np.linalg.eigvalsh(root @ second @ root).clip(0)).sum()
    return float(apart @ apart + np.trace(first) + np.trace(second) - 2 * shared)
