r"""An augmentation and a teacher of your own, and `giftwrap` with both.

    python -m examples.own_augmentation weights runs/thumbnail.safetensors 10
    python -m examples.own_augmentation build --images runs/demo/small --teacher examples.own_augmentation:Thumbnail \
        --weights runs/thumbnail.safetensors --augment invert --size 16 --views 10 --store runs/inverted
    python -m examples.own_augmentation train --store runs/inverted --images runs/demo/small --student convnet-d3 \
        --epochs 10 --run runs/inverted-student

The augmentation inverts about half of the crops, after normalisation. The teacher is a linear classifier on a small
thumbnail, with weights drawn from a seed: put your own in its place. Its images are those of the README's quickstart.

A store with a new augmentation needs it wherever its crops are rendered again. So all commands of such a store run
through this program, or as `GIFTWRAP_MODULES=examples.own_augmentation giftwrap ...`, which also reaches the processes
that a command starts (`--seeds`, `sweep`, Ray); or a program of your own calls `trainer.Replay` after importing this
module.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d

from examples.arguments import arguments, whole_number
from labelstore import CropRows
from labelstore.command.console import run_command
from pipeline.networks import build_network, save_weights
from pipeline.plan import draws
from pipeline.plan.augment import INPUTS

USAGE = "python -m examples.own_augmentation weights FILE CLASSES, or a command of giftwrap"


class Invert:
    """Inverts the normalised image where the crop's column `invert` is 1; see `pipeline.plan.augment.Input`."""

    columns = ("invert",)

    def draw(self, size: int, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The column of the crop of each image ``[n]`` of a view, int64 ``[1, n]``: it depends only on its key."""
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


def save_drawn_weights(path: Path, classes: int) -> None:
    """Write the weights of a `Thumbnail`, drawn from a seed."""
    torch.manual_seed(0)
    network = build_network("examples.own_augmentation:Thumbnail", {}, classes=classes, size=16)
    save_weights(network.state_dict(), path)


def weights() -> None:
    """Write the weights that the command line names."""
    _, path, classes = arguments(USAGE, 3, 3)
    save_drawn_weights(Path(path), whole_number("CLASSES", classes, least=1))


def main() -> int:
    """Write weights, or run a command of giftwrap."""
    if sys.argv[1:2] == ["weights"]:
        return run_command(weights)
    from giftwrap.__main__ import main as giftwrap

    return giftwrap()


if __name__ == "__main__":
    sys.exit(main())
