"""An augmentation and a teacher of your own: `python -m examples.own_augmentation IMAGES STORE`.

The augmentation inverts the colours of every second crop or so, after normalisation. The teacher is a linear classifier
on a small thumbnail, with weights drawn from a seed: put your own network and weights in its place. A store is built
with both, and replayed.
With the README's quickstart: `python -m examples.own_augmentation runs/demo/small runs/inverted`.

A store with a new augmentation needs it registered wherever its crops are rendered again. Commands import the modules
of networks that they are given as `module:attribute`; so register where your networks are, as this file does.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

import trainer
from labelstore import CropRows
from labelstore.command.console import Console
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.networks import build_network, save_weights
from pipeline.plan import draws
from pipeline.plan.augment import INPUTS


class Invert:
    """Inverts the normalised image where the crop's column `invert` is 1; see `pipeline.plan.augment.Input`."""

    columns = ("invert",)

    def draw(self, size: int, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The column of the crop of each image ``[n]`` of a view, int64 ``[1, n]``: a function of its key alone."""
        del size
        words = draws.philox(draws.key("invert", seed, view), images.astype(np.int64))
        return draws.integers(words[:1], 2).astype(np.int64)

    def apply(self, images: Tensor, rows: CropRows, size: int) -> Tensor:
        """The augmented images, float32 ``[n, 3, S, S]``; all that varies is in ``rows``."""
        del size
        inverted = torch.from_numpy(rows.column("invert").astype(bool)).to(images.device)
        return torch.where(inverted[:, None, None, None], -images, images)


INPUTS["invert"] = Invert()  # the name is that of --augment


class Thumbnail(nn.Module):
    """Images ``[n, 3, S, S]`` to logits ``[n, C]``: a linear layer on 4 x 4 mean colours."""

    def __init__(self, num_classes: int) -> None:
        super().__init__()
        self.head = nn.Linear(48, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.head(adaptive_avg_pool2d(images, 4).flatten(1))
        return logits


TEACHER = "examples.own_augmentation:Thumbnail"


def make(images: Path, store: Path, *, size: int = 16, views: int = 10) -> None:
    """Build a store of inverted and other crops, labelled by a `Thumbnail`."""
    classes = sum(path.is_dir() for path in images.iterdir())
    weights = store.with_suffix(".safetensors")
    if not weights.exists():
        torch.manual_seed(0)
        save_weights(build_network(TEACHER, {}, classes=classes, size=size).state_dict(), weights)
    config = BuildConfig(
        images=images, teacher=(TEACHER,), weights=(str(weights),), size=size, views=views, augment=("invert",),
        store=store,
    )  # fmt: skip
    build(config, Console())


def count_inverted(images: Path, store: Path) -> tuple[int, int]:
    """Replay one view; how many crops were inverted, of how many. Replay compares pixels with the store first."""
    replay = trainer.Replay(store, images, batch_size=20)
    inverted = total = 0
    for batch in replay:
        assert batch.rows is not None  # noqa: S101  rows are there for augmentations of the normalised image
        inverted, total = inverted + int(batch.rows.column("invert").sum()), total + len(batch)
    replay.close()
    return inverted, total


def main() -> None:
    """Build and replay."""
    images, store = map(Path, sys.argv[1:])
    make(images, store)
    inverted, total = count_inverted(images, store)
    print(f"{inverted} of {total} crops of a view are inverted")


if __name__ == "__main__":
    main()
