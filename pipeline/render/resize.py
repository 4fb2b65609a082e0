"""From a box of a decoded image to a finished crop: cut, resize, flip.

The crop is cut out first and resized then, so that no pixel outside its box has a part in it; a box that has the
crop's sides already passes unchanged. Pillow resizes: its crops are torchvision's ``resized_crop`` of a Pillow image,
bit for bit, with the antialiased filter that nearly every published teacher was trained on.
"""

from __future__ import annotations

import numpy as np
from PIL import Image
from torch import Tensor

Box = tuple[int, int, int, int]
_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}


def cut(image: Tensor, box: Box) -> Tensor:
    """The box (top, left, height, width) of an image ``[H, W, 3]``, black where it reaches outside.

    Returns:
        uint8 ``[height, width, 3]``; a view where nothing is outside.
    """
    top, left, height, width = box
    inside = image[max(top, 0) : max(top + height, 0), max(left, 0) : max(left + width, 0)]
    if inside.shape[:2] == (height, width):
        return inside
    padded = image.new_zeros((height, width, 3))
    rows, columns = inside.shape[:2]
    padded[max(-top, 0) : max(-top, 0) + rows, max(-left, 0) : max(-left, 0) + columns] = inside
    return padded


def resize_into(crop: Tensor, pixels: Tensor, flip: bool, interpolation: str) -> None:
    """Fill ``crop`` with ``pixels`` resized, and flipped left to right if ``flip``.

    Args:
        crop: uint8 ``[S, S, 3]``, contiguous.
        pixels: uint8 ``[h, w, 3]``.
        flip: whether to flip.
        interpolation: ``bilinear`` or ``bicubic``.
    """
    size = crop.shape[0]
    done = Image.fromarray(np.ascontiguousarray(pixels.numpy())).resize((size, size), _FILTERS[interpolation])
    if flip:
        done = done.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    crop.numpy()[:] = np.asarray(done)
