"""How well images fit their targets and statistics: the loss of `sre2l`, and what is recorded of it in the end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from pipeline.synthesis.config import Sre2lOptions
from pipeline.synthesis.gradients import Networks
from pipeline.synthesis.statistics import Statistics, distance


@dataclass(frozen=True, eq=False)
class Fit:
    """The loss of a batch of n images.

    Attributes:
        networks: of the teacher; the loss of several is the mean of theirs, by their shares.
        options: the weights.
        columns: of the logits, for each image, int64 ``[n]`` on the device.
        wanted: statistics that the batch is fitted to, of each network.
    """

    networks: Networks
    options: Sre2lOptions
    columns: Tensor
    wanted: Sequence[Statistics]

    def loss(self, images: Tensor) -> Tensor:
        """The loss of normalised images, float32 ``[n, 3, S, S]``: a scalar with a gradient."""
        own = self.options
        total = torch.zeros((), device=images.device)
        for seen, wanted in zip(self.networks.see(images, fast=True), self.wanted, strict=True):
            fitted = own.bn_weight * distance(seen.statistics, wanted, own.first_bn)
            total = total + seen.share * (cross_entropy(seen.logits, self.columns) + fitted)
        if own.tv_weight:
            total = total + own.tv_weight * total_variation(images)
        if own.l2_weight:
            total = total + own.l2_weight * mean_norm(images)
        return total

    def report(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.generic]]:
        """The parts of the loss, without their weights, of finished images, uint8 ``[n, S, S, 3]``, shown whole.

        Returns:
            Of each image: ``scores``, float64 ``[n, 1]``: cross-entropy with its class; ``confidences``, float64
            ``[n]``: the teacher's for it; ``agreements``, bool ``[n]``: whether it is the teacher's first choice.
            Of its batch: ``bn_losses``, ``tv_losses`` and ``l2_losses``, float64 ``[n]``.
        """
        images = self.networks.images(torch.from_numpy(pixels))
        with torch.no_grad():
            seen = self.networks.see(images)
            logits = torch.stack([each.share * each.logits.double() for each in seen]).sum(0)
            parts = (
                sum(
                    each.share * float(distance(each.statistics, wanted, self.options.first_bn))
                    for each, wanted in zip(seen, self.wanted, strict=True)
                ),
                float(total_variation(images)),
                float(mean_norm(images)),
            )
        own = logits.gather(1, self.columns[:, None])
        losses = torch.stack([cross_entropy(e.logits.double(), self.columns, reduction="none") * e.share for e in seen])
        names = ("bn_losses", "tv_losses", "l2_losses")
        return {
            "scores": losses.sum(0)[:, None].cpu().numpy(),
            "confidences": (own[:, 0] - logits.logsumexp(1)).exp().cpu().numpy(),
            "agreements": (own >= logits[:, self.choices]).all(1).cpu().numpy(),
            **{name: np.full(len(pixels), part) for name, part in zip(names, parts, strict=True)},
        }

    @property
    def choices(self) -> Tensor | slice:
        """The columns that are classes of the folders."""
        folders = self.networks.teacher.class_columns
        return torch.tensor(folders, device=self.columns.device) if folders else slice(None)


def total_variation(images: Tensor) -> Tensor:
    """The sum of the Euclidean norms of the differences between neighbours, in four directions, of all images."""
    right = images[..., :-1] - images[..., 1:]
    down = images[..., :-1, :] - images[..., 1:, :]
    rising = images[..., 1:, :-1] - images[..., :-1, 1:]
    falling = images[..., :-1, :-1] - images[..., 1:, 1:]
    return torch.stack([torch.linalg.vector_norm(each) for each in (right, down, rising, falling)]).sum()


def mean_norm(images: Tensor) -> Tensor:
    """The mean over images of their Euclidean norm."""
    norms: Tensor = torch.linalg.vector_norm(images.flatten(1), dim=1)
    return norms.mean()
