"""The plan: the pure function (spec, view) -> order and crop rows; nothing random happens elsewhere (P1)."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.plan import draws
from pipeline.plan.augment import MIXES, crop, flip, mix_columns
from pipeline.plan.augment import draw as draw_augmentations
from pipeline.plan.spec import MAX_SIDE, PlanSpec

__all__ = ["MAX_SIDE", "Plan", "PlanSpec"]

ORDERS_KEPT = 4  # orders of views in memory, 4 bytes an image each


class Plan:
    """Order and crop rows of any view of N images."""

    def __init__(self, spec: PlanSpec, heights: npt.NDArray[np.int32], widths: npt.NDArray[np.int32]) -> None:
        """Plan crops of images.

        Args:
            spec: the numbers of the augmentation.
            heights: heights of the images in pixels after EXIF orientation, int32 ``[N]``.
            widths: their widths, int32 ``[N]``.

        Raises:
            InputError: there are no images, or one has sides that the plan cannot use.
        """
        if len(heights) != len(widths) or not 0 < len(heights) <= 2**32:
            raise InputError(f"a plan needs the sides of 1 to 2**32 images, found {len(heights)}, {len(widths)}")
        wrong = np.flatnonzero((np.minimum(heights, widths) < 1) | (np.maximum(heights, widths) > MAX_SIDE))
        if len(wrong):
            raise InputError(
                f"sides of image {wrong[0]}: expected 1 to {MAX_SIDE} pixels, "
                f"found {heights[wrong[0]]} x {widths[wrong[0]]}; resize that image or leave it out"
            )
        crop.require_sides(spec.crop, spec.crop_numbers, heights, widths)
        self.spec = spec
        self.images = len(heights)
        self._heights, self._widths = heights, widths
        self._order = lru_cache(maxsize=ORDERS_KEPT)(self._draw_order)

    def order(self, view: int) -> npt.NDArray[np.uint32]:
        """The image at each position of a view: a permutation, uint32 ``[N]``, read-only."""
        return self._order(view)

    def rows(self, view: int, start: int, stop: int) -> CropRows:
        """The crop rows of positions ``start <= p < stop`` of a view.

        Raises:
            InputError: the positions are not in the view, or cut a group.
        """
        group = self.spec.group
        cuts_group = any(edge % group and edge != self.images for edge in (start, stop))
        if not 0 <= start <= stop <= self.images or cuts_group:
            raise InputError(f"positions {start} to {stop}: expected whole groups of {group} within 0 to {self.images}")
        return self.rows_at(view, np.arange(start, stop))

    def rows_at(self, view: int, positions: npt.NDArray[np.int64]) -> CropRows:
        """The crop rows at some positions of a view: whole groups in any order, a view's short last one at the end."""
        values = np.empty((len(self.spec.columns), len(positions)), np.uint16)
        images = self.order(view)[positions]
        crops = len(self.spec.columns) - len(mix_columns(self.spec.mix))
        for first in range(0, len(images), draws.CHUNK):
            part = slice(first, first + draws.CHUNK)
            values[:crops, part] = self._crops(view, images[part])
        if self.spec.mix != "none" and len(images):
            values[crops:] = self._mixing(view, positions)
        return CropRows(self.spec.columns, values)

    def unmixed(self, view: int, images: npt.NDArray[np.integer]) -> CropRows:
        """The crop rows of some images of a view in the order of ``images``, without their mixing columns."""
        return CropRows(self.spec.unmixed.columns, self._crops(view, images.astype(np.uint32)).astype(np.uint16))

    def _draw_order(self, view: int) -> npt.NDArray[np.uint32]:
        order = draws.permutation(draws.key("order", self.spec.seed, view), self.images).astype(np.uint32)
        order.setflags(write=False)
        return order

    def _crops(self, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """Columns that depend only on the image: int64 ``[K, n]``."""
        spec, seed = self.spec, self.spec.seed
        sides = self._heights[images], self._widths[images]
        boxes = crop.draw(spec.crop, spec.crop_numbers, seed, view, images, *sides)
        flips = flip.draw(spec.flip, seed, view, images)
        others = draw_augmentations(spec.augment, spec.size, seed, view, images)
        return np.concatenate([[images & 0xFFFF, images >> 16], boxes, flips, *others])

    def _mixing(self, view: int, positions: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The columns of mixing at positions of whole groups: int64 ``[K, n]``."""
        spec, group = self.spec, self.spec.group
        groups = positions[::group] // group
        whole, short = divmod(len(positions), group)  # the view's last group can be smaller
        key = draws.key("partner", spec.seed, view)
        partners = [draws.permutations(key, groups[:whole], group).ravel()]
        if short:
            partners.append(draws.permutations(key, groups[whole:], short).ravel())
        counters = positions if spec.mix_per == "pair" else groups
        drawn = MIXES[spec.mix].draw(spec.alpha, spec.size, spec.seed, view, counters)
        if spec.mix_per == "group":
            drawn = np.repeat(drawn, group, axis=1)[:, : len(positions)]
        return np.concatenate([[np.concatenate(partners)], drawn])
