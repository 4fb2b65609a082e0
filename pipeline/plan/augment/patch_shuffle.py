"""Patch shuffle of RDED's collages: the column strips of an image change places, then its row strips (ShufflePatches).

It is applied before the crop, so that boxes refer to the shuffled image. Where a side does not divide, the last strip
takes the remainder.
"""

from __future__ import annotations

import math
from functools import cache
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from pipeline.plan import draws

if TYPE_CHECKING:
    from torch import Tensor

columns = ("strips", "strip_columns", "strip_rows")
MAX_STRIPS = 8  # 8! orders fit a uint16


def check(number: int | None) -> None:
    """Raise InputError for a number of strips whose orders do not fit their columns."""
    if number is None or not 2 <= number <= MAX_STRIPS:
        raise InputError(
            f"augment patch-shuffle: expected strips a side, patch-shuffle=2 to {MAX_STRIPS}, found {number}"
        )


def draw(number: int | None, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
    """Strips a side, and the orders of column and of row strips, as `rank` numbers them: int64 ``[3, n]``."""
    strips = number or 1
    orders = [
        rank(draws.permutations(draws.key(f"patch shuffle {axis}", seed, view), images.astype(np.int64), strips))
        for axis in ("columns", "rows")
    ]
    return np.stack([np.full(len(images), strips), *orders])


def arrange(image: Tensor, values: tuple[int, ...]) -> Tensor:
    """The shuffled image.

    Args:
        image: uint8 ``[H, W, 3]``.
        values: the values of the crop's `columns`.
    """
    import torch  # here, so that a plan is drawn without it

    strips, across, down = values
    for axis, ranked in ((1, across), (0, down)):
        side = image.shape[axis]
        edges = [*(side // strips * strip for strip in range(strips)), side]
        order = unrank(ranked, strips)
        image = torch.cat([image.narrow(axis, edges[at], edges[at + 1] - edges[at]) for at in order], axis)
    return image


def strips_of(
    values: npt.NDArray[np.int64], sides: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """What `arrange` does, as tables: where strips begin in shuffled images, and how far their pixels have moved.

    Args:
        values: the values of the crops' `columns`, int64 ``[3, n]``.
        sides: height and width of each crop's image, int64 ``[n, 2]``.

    Returns:
        begins and moves, int64 ``[n, 2, f]`` each, of row strips and of column strips: the shuffled image's pixel
        ``p``, in the strip that begins last at or before ``p``, is the image's pixel ``p + move``. Where images have
        fewer than f strips, the others begin at the end of the side.
    """
    most = int(values[0].max(initial=1))
    strips = values[0][:, None, None]
    orders = np.tile(np.arange(most), (values.shape[1], 2, 1))
    for row, (count, across, down) in enumerate(values.T.tolist()):
        orders[row, :, :count] = unrank(down, count), unrank(across, count)
    size = sides[:, :, None] // strips
    starts = np.where(orders < strips, orders * size, sides[:, :, None])
    lengths = np.where(orders == strips - 1, sides[:, :, None] - starts, np.where(orders < strips, size, 0))
    begins = np.cumsum(lengths, axis=2) - lengths
    return begins, starts - begins


def rank(orders: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The number of each permutation ``[n, f]`` in lexicographic order, int64 ``[n]``."""
    strips = orders.shape[1]
    smaller = [(orders[:, at + 1 :] < orders[:, at, None]).sum(1) for at in range(strips)]
    weights = [math.factorial(strips - 1 - at) for at in range(strips)]
    ranked: npt.NDArray[np.int64] = np.stack(smaller, axis=1) @ np.array(weights)
    return ranked


@cache
def unrank(ranked: int, strips: int) -> tuple[int, ...]:
    """The permutation that `rank` gave the number."""
    left, order = list(range(strips)), []
    for at in range(strips):
        place, ranked = divmod(ranked, math.factorial(strips - 1 - at))
        order.append(left.pop(place))
    return tuple(order)
