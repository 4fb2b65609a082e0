"""Differentiable siamese augmentation as GIFT applies it, on the normalised image, crop by crop.

`color_crop_cutout_flip_scale_rotate` of DSA (Zhao and Bilen 2021) as in LINs-lab/GIFT, utils/transforms.py, DiffAug:
brightness, saturation, contrast; then one of shift, scale and rotate; then cutout. Its flip, which comes first, is the
plan's own. The authors draw which of the three once a batch; here it is drawn once a crop, since labels exist before
batches do.

A real number u in [0, 1) is the column 65536 u, rounded down; a whole number is the column.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from labelstore.format.columns import CropRows
from pipeline.plan import draws

if TYPE_CHECKING:
    from torch import Tensor

# The operators import torch when they run, so that a plan is drawn without it.
columns = (
    "dsa_brightness", "dsa_saturation", "dsa_contrast", "dsa_kind", "dsa_vertical", "dsa_horizontal", "dsa_cut_row",
    "dsa_cut_column",
)  # fmt: skip
SHIFT, SCALE, ROTATE = range(3)
MAX_SHIFT, MAX_SCALE, MAX_DEGREES, CUT = 0.125, 1.2, 15.0, 0.5


def draw(size: int, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """The columns of the crop of each image in a view, int64 ``[8, n]``."""
    counters = images.astype(np.int64)
    color = draws.philox(draws.key("dsa color", seed, view), counters) >> np.uint32(16)
    kind, first, second, _ = draws.philox(draws.key("dsa geometry", seed, view), counters)
    cut = draws.philox(draws.key("dsa cutout", seed, view), counters)
    kinds = draws.integers(kind, 3).astype(np.int64)
    furthest, hole = furthest_shift(size), hole_of(size)
    moved = [
        np.where(kinds == SHIFT, draws.integers(word, 2 * furthest + 1), word >> np.uint32(16))
        for word in (first, second)
    ]
    moved[1] = np.where(kinds == ROTATE, 0, moved[1])
    centres = [draws.integers(word, size + 1 - hole % 2) for word in cut[:2]]
    return np.stack([*color[:3], kinds, *moved, *centres]).astype(np.int64)


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

    kinds = rows.column("dsa_kind")
    places = [np.flatnonzero(chosen) for chosen in (kinds == SHIFT, kinds != SHIFT)]
    *values, shifts, others = numbers_to_device([*map(rows.column, columns), *places], images.device)
    brightness, saturation, contrast, kind, vertical, horizontal, row, column = values
    images = recolored(images, brightness, saturation, contrast)
    moved = images.new_zeros(images.shape)
    if len(shifts):
        moved[shifts] = shifted(images[shifts], vertical[shifts], horizontal[shifts], size)
    if len(others):
        matrices = _matrices(kind[others], vertical[others], horizontal[others])
        moved[others] = sampled(images[others], matrices, align_corners=False)
    return cut(moved, row, column, size)


def furthest_shift(size: int) -> int:
    """The largest shift of a crop of this side, in pixels."""
    return math.floor(size * MAX_SHIFT + 0.5)


def hole_of(size: int) -> int:
    """Side of the square that is cut out of a crop of this side, in pixels."""
    return math.floor(size * CUT + 0.5)


def recolored(images: Tensor, *numbers: Tensor) -> Tensor:
    """Images ``[n, 3, S, S]`` of other brightness, then saturation, then contrast: 65536 u of each, int64 ``[n]``."""
    import torch

    brightness, saturation, contrast = ((u.double() / 65536).float()[:, None, None, None] for u in numbers)
    images = images + (brightness - 0.5)
    mean = images.mean(1, keepdim=True, dtype=torch.float64).float()
    images.sub_(mean).mul_(2 * saturation).add_(mean)
    mean = images.mean((1, 2, 3), keepdim=True, dtype=torch.float64).float()
    return images.sub_(mean).mul_(contrast + 0.5).add_(mean)


def shifted(images: Tensor, vertical: Tensor, horizontal: Tensor, size: int) -> Tensor:
    """Images ``[n, 3, S, S]`` shifted, zero where nothing was.

    Args:
        images: the crops.
        vertical: of each, in pixels of a crop of side ``size``, plus the largest shift, int64 ``[n]``.
        horizontal: likewise.
        size: side of the crops that the shifts were drawn for.
    """
    import torch

    side = images.shape[-1]
    at = torch.arange(side, device=images.device)
    down, across = (_scaled(drawn - furthest_shift(size), side, size)[:, None] + at for drawn in (vertical, horizontal))
    missing = [(place < 0) | (place >= side) for place in (down, across)]
    down, across = down.clamp(0, side - 1)[:, None, :, None], across.clamp(0, side - 1)[:, None, None, :]
    moved = images.gather(2, down.expand_as(images)).gather(3, across.expand_as(images))
    return moved.masked_fill_((missing[0][:, :, None] | missing[1][:, None, :])[:, None], 0)


def sampled(images: Tensor, matrices: Tensor, *, align_corners: bool) -> Tensor:
    """Images ``[n, 3, S, S]`` seen through matrices, float32 ``[n, 2, 3]``, bilinearly, zero where nothing was."""
    from torch.nn.functional import affine_grid, grid_sample

    if images.is_cuda:
        grid = grid_of(matrices, images.shape[-1], align_corners=align_corners)
    else:
        grid = affine_grid(matrices, list(images.shape), align_corners=align_corners)
    return grid_sample(images, grid, mode="bilinear", padding_mode="zeros", align_corners=align_corners)


def grid_of(matrices: Tensor, side: int, *, align_corners: bool) -> Tensor:
    """Where matrices ``[n, 2, 3]`` put the pixels of square images, ``[n, S, S, 2]``, as ``affine_grid`` does.

    That takes a matrix product, which TF32 would round to a tenth of a pixel at 224 px.
    """
    import torch

    at = torch.linspace(-1, 1, side, device=matrices.device) * (1 if align_corners else (side - 1) / side)
    by_column, by_row, shift = matrices[:, :, None, None].unbind(-1)
    return (by_column * at + by_row * at[:, None] + shift).movedim(1, -1)


def _matrices(kinds: Tensor, vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Scale or rotation of each crop, float32 ``[n, 2, 3]``."""
    import torch

    return torch.where((kinds == SCALE)[:, None, None], scales(vertical, horizontal), turns(vertical))


def scales(vertical: Tensor, horizontal: Tensor) -> Tensor:
    """Factors of both axes, 65536 u of each, int64 ``[n]``, as matrices, float32 ``[n, 2, 3]``."""
    import torch

    u = torch.stack([vertical, horizontal]).double() / 65536
    factors = u * (MAX_SCALE - 1 / MAX_SCALE) + 1 / MAX_SCALE
    zero = torch.zeros_like(u[0])
    return torch.stack([factors[1], zero, zero, zero, factors[0], zero]).T.reshape(-1, 2, 3).float()


def turns(drawn: Tensor) -> Tensor:
    """Rotations, 65536 u, int64 ``[n]``, as matrices, float32 ``[n, 2, 3]``."""
    import torch

    angle = (drawn.double() / 65536 - 0.5) * 2 * MAX_DEGREES / 180 * math.pi
    zero = torch.zeros_like(angle)
    rows = [angle.cos(), -angle.sin(), zero, angle.sin(), angle.cos(), zero]
    return torch.stack(rows).T.reshape(-1, 2, 3).float()


def cut(images: Tensor, row: Tensor, column: Tensor, size: int) -> Tensor:
    """Zero in a square of half the side around (row, column), clipped to the image."""
    import torch

    side = images.shape[-1]
    hole = hole_of(side)
    at = torch.arange(side, device=images.device)
    top, left = (_scaled(centre, side, size)[:, None] - hole // 2 for centre in (row, column))
    down, across = ((at >= start) & (at < start + hole) for start in (top, left))
    return images.masked_fill((down[:, :, None] & across[:, None, :])[:, None], 0)


def _scaled(lengths: Tensor, side: int, size: int) -> Tensor:
    """Lengths in pixels of a crop of side ``size`` as those of one of ``side``, rounded half up."""
    return lengths if side == size else (2 * lengths * side + size).div(2 * size, rounding_mode="floor")
