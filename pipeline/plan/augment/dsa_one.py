"""`dsa=one`: one of the six kinds of differentiable siamese augmentation, on the normalised image, crop by crop.

DSA (Zhao and Bilen 2021) with ``aug_mode`` "S", which sunnytqin/no-distillation trains with (softlabel/utils.py,
DiffAugment, strategy color_crop_cutout_flip_scale_rotate): each kind with probability 1/6, color being brightness,
saturation and contrast. The authors draw the kind once a batch, and its numbers once a crop; here all is drawn once a
crop, since labels exist before batches do. The flip is one of the six: leave the plan's own out (``--flip 0``).

Shift ("crop"), cutout and color are those of `dsa`. Scale and rotation sample with aligned corners, as the authors'
code does, and that of `dsa` does not.

A real number u in [0, 1) is the column 65536 u, rounded down; a whole number is the column; what a kind does not need
is 0.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from labelstore.format.columns import CropRows
from pipeline.plan import draws
from pipeline.plan.augment import dsa

if TYPE_CHECKING:
    from torch import Tensor

columns = ("dsa_one_kind", "dsa_one_first", "dsa_one_second", "dsa_one_third")
KINDS = ("color", "crop", "cutout", "flip", "scale", "rotate")
COLOR, SHIFT, CUTOUT, FLIP, SCALE, ROTATE = range(6)


def draw(size: int, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """The columns of the crop of each image in a view, int64 ``[4, n]``: the kind, and up to three numbers of it.

    Color has brightness, saturation, contrast; crop the shifts down and across, plus the largest shift; cutout row and
    column of its centre; flip whether it is; scale u of the vertical and of the horizontal axis; rotate one u.
    """
    kind, *words = draws.philox(draws.key("dsa one", seed, view), images.astype(np.int64))
    kinds = draws.integers(kind, len(KINDS)).astype(np.int64)
    furthest, hole = dsa.furthest_shift(size), dsa.hole_of(size)
    real = [(word >> np.uint32(16)).astype(np.int64) for word in words]
    shift, centre, half = (
        [draws.integers(word, below).astype(np.int64) for word in words]
        for below in (2 * furthest + 1, size + 1 - hole % 2, 2)
    )
    numbers = []
    for place in range(3):
        of_kind = np.zeros((len(KINDS), len(images)), np.int64)
        of_kind[COLOR] = real[place]
        if place < 2:
            of_kind[[SHIFT, CUTOUT, SCALE]] = shift[place], centre[place], real[place]
        if place < 1:
            of_kind[[FLIP, ROTATE]] = half[place], real[place]
        numbers.append(of_kind[kinds, np.arange(len(images))])
    return np.stack([kinds, *numbers])


def apply(images: Tensor, rows: CropRows, size: int) -> Tensor:
    """The augmented images.

    Args:
        images: normalised, float32 ``[n, 3, S, S]``, contiguous.
        rows: of the n crops.
        size: side of the crops that the rows were drawn for; lengths are scaled where ``images`` have another.

    Returns:
        float32 ``[n, 3, S, S]``, contiguous.
    """
    from pipeline.device.moving import numbers_to_device

    places = [np.flatnonzero(rows.column("dsa_one_kind") == kind) for kind in range(len(KINDS))]
    first, second, third, *of_kind = numbers_to_device([*map(rows.column, columns[1:]), *places], images.device)
    changed = images.new_empty(images.shape)
    for kind, at in enumerate(of_kind):
        if len(at):
            changed[at] = _changed(kind, images[at], (first[at], second[at], third[at]), size)
    return changed


def _changed(kind: int, images: Tensor, numbers: tuple[Tensor, Tensor, Tensor], size: int) -> Tensor:
    """Images of one kind, ``[n, 3, S, S]``, by their three numbers, int64 ``[n]`` each."""
    if kind == COLOR:
        return dsa.recolored(images, *numbers)
    if kind == SHIFT:
        return dsa.shifted(images, numbers[0], numbers[1], size)
    if kind == CUTOUT:
        return dsa.cut(images, numbers[0], numbers[1], size)
    if kind == FLIP:
        return images.flip(3).where(numbers[0].bool()[:, None, None, None], images)
    return _sampled(images, dsa.scales(numbers[0], numbers[1]) if kind == SCALE else dsa.turns(numbers[0]))


def _sampled(images: Tensor, matrices: Tensor) -> Tensor:
    """Images ``[n, 3, S, S]`` seen through matrices, float32 ``[n, 2, 3]``, with aligned corners."""
    if images.shape[-1] == 1:  # the centre, which neither scale nor rotation moves
        return images
    return dsa.sampled(images, matrices, align_corners=True)
