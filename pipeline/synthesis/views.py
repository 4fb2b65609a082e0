"""Views of optimised images: a different box at each step, flipped and shifted.

Crop, bilinear resize, flip and shift act on rows and on columns alone, so that they are products with two matrices:
``R x C^T``. These have one shape whatever the box, gradients like any product, and no sums in an order of their own on
a GPU, where the gradient of an interpolation has them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.plan import draws
from pipeline.plan.augment import CROPS

RATIO = (3 / 4, 4 / 3)  # range of a box's width over its height, as of torchvision's RandomResizedCrop


@dataclass(frozen=True, slots=True, eq=False)
class Views:
    """The views of T steps, the same for all images of a batch.

    Attributes:
        size: side S of the images, and of what is shown of them, in pixels.
        boxes: (top, left, height, width) in pixels, int64 ``[T, 4]``.
        flips: whether the box is flipped left to right, bool ``[T]``.
        shifts: how far the result is rolled down and to the right, int64 ``[T, 2]``.
    """

    size: int
    boxes: npt.NDArray[np.int64]
    flips: npt.NDArray[np.bool_]
    shifts: npt.NDArray[np.int64]

    def matrices(self, step: int) -> npt.NDArray[np.float32]:
        """R and C of a step, float32 ``[2, S, S]``."""
        top, left, height, width = self.boxes[step].tolist()
        rows, columns = resizing(top, height, self.size), resizing(left, width, self.size)
        if self.flips[step]:
            columns = columns[::-1]
        down, right = self.shifts[step].tolist()
        return np.stack([np.roll(rows, down, axis=0), np.roll(columns, right, axis=0)])


def draw_views(key: str, seed: int, steps: int, size: int, scale: tuple[float, float], jitter: int) -> Views:
    """Draw the views of a batch.

    Args:
        key: what the draws are for; other batches have other keys.
        seed: of all draws.
        steps: how many.
        size: side of the images in pixels.
        scale: range of a box's share of the image's area.
        jitter: largest shift in pixels, in both directions.
    """
    step = np.arange(steps)
    sides = np.full(steps, size, np.int32)
    of_boxes, of_others = draws.key(f"sre2l boxes {key}", seed), draws.key(f"sre2l flips and shifts {key}", seed)
    boxes = CROPS["resized"].boxes(of_boxes, step.astype(np.uint32), sides, sides, scale=scale, ratio=RATIO)
    words = draws.philox(of_others, step)
    return Views(size, boxes.T, words[0] >= 2**31, draws.integers(words[1:3], jitter + 1).astype(np.int64).T)


def resizing(start: int, length: int, size: int) -> npt.NDArray[np.float32]:
    """The matrix ``[S, S]`` that stretches ``length`` of S pixels from ``start`` on to all S, bilinearly.

    A box is never larger than what it becomes, so that there is nothing to antialias.
    """
    place = np.maximum((np.arange(size) + 0.5) * (length / size) - 0.5, 0)
    lower = np.minimum(place.astype(np.int64), length - 1)
    upper = np.minimum(lower + 1, length - 1)
    share = place - lower
    matrix = np.zeros((size, size), np.float64)
    row = np.arange(size)
    np.add.at(matrix, (row, start + lower), 1 - share)
    np.add.at(matrix, (row, start + upper), share)
    return matrix.astype(np.float32)


def show(images: Tensor, matrices: Tensor) -> Tensor:
    """Apply matrices ``[2, S, S]`` to images ``[n, 3, S, S]``; the result has the same shape."""
    rows, columns = matrices
    return torch.matmul(rows, torch.matmul(images, columns.T))
