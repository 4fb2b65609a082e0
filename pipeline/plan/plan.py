"""The plan: the pure function (spec, view) -> order and crop rows; nothing random happens elsewhere (P1)."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from typing import Any, Literal, TypeAlias, get_args

import numpy as np
import numpy.typing as npt

from labelstore.errors import FormatError, InputError
from labelstore.format.columns import IMAGE_COLUMNS, CropRows
from labelstore.spec import Json
from pipeline.plan import draws
from pipeline.plan.augment import MIXES, CropName, MixName, columns_of, crop, flip, mix_columns, named
from pipeline.plan.augment import draw as draw_augmentations
from pipeline.plan.augment.crop import CROPS

MAX_SIDE = 65_535  # columns are uint16
ORDERS_KEPT = 4  # orders of views in memory, 4 bytes an image each

Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
MixPer: TypeAlias = Literal["group", "pair"]

# Fields that have an effect only when crops are mixed.
_MIXING = ("alpha", "group", "mix_per")
# Fields that the first release did not have: left out of the identity at their default, so that it stays what it was.
_LATER = ("mix_per", "augment")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSpec:
    """Every number of the augmentation, without the number of views.

    Attributes:
        size: side S of the square crops in pixels.
        seed: seed of every draw, of the order too.
        crop: key of `pipeline.plan.augment.crop.CROPS`: ``resized`` (torchvision's RandomResizedCrop), ``center``
            (central square), ``padded`` (anywhere in the image padded with black; images must be S x S) or ``factor``
            (GIFT: one cell of a grid, or the whole image).
        scale: ``resized``: range of the crop's share of the image's area.
        ratio: ``resized``: range of the crop's width over its height, drawn uniformly in the logarithm.
        pad: ``padded``: pixels added on each side.
        resize: ``center``: length of the image's short side when ``size`` pixels are cut from its centre, at
            least ``size``; None: ``size``.
        factor: ``factor``: cells a side; the whole image is shown with probability 1 / factor^2.
        flip: probability of flipping left to right.
        mix: ``none``, or key of `pipeline.plan.augment.MIXES`: ``cutmix``, ``mixup``.
        alpha: mixed: weights are drawn from Beta(alpha, alpha).
        group: mixed: positions that mix with each other.
        mix_per: mixed: ``group``: all crops of a group share one weight or box; ``pair``: each crop has its own.
        augment: names of further augmentations, as `pipeline.plan.augment.named` takes them.
        interpolation: how the crop is resized, always antialiased.
    """

    size: int
    seed: int = 0
    crop: CropName = "resized"
    scale: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    pad: int = 4
    resize: int | None = None
    factor: int = 1
    flip: float = 0.5
    mix: MixName = "none"
    alpha: float = 1.0
    group: int = 1
    mix_per: MixPer = "group"
    augment: tuple[str, ...] = ()
    interpolation: Interpolation = "bilinear"

    def __post_init__(self) -> None:
        """Refuse what is not a plan."""
        for name, known in (
            ("crop", tuple(CROPS)),
            ("mix", ("none", *MIXES)),
            ("mix_per", get_args(MixPer)),
            ("interpolation", get_args(Interpolation)),
        ):
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if not self._has_effect(name) and value != field.default:
                chooser, choices = _only_with(name)
                raise InputError(
                    f"{name} {value}: has an effect only with {chooser} {' or '.join(choices)}, "
                    f"found {chooser} {getattr(self, chooser)}; leave {name} out"
                )
        low, high = self.scale
        self._require("scale", 0 < low <= high <= 1, "two shares of the area, 0 < low <= high <= 1")
        low, high = self.ratio
        self._require("ratio", 0 < low <= high < math.inf, "two ratios, 0 < low <= high")
        self._require("size", 1 <= self.size <= MAX_SIDE, f"1 to {MAX_SIDE} pixels")
        self._require("seed", 0 <= self.seed < 2**63, "0 <= seed < 2**63")
        self._require("pad", 0 <= self.effective_pad <= self.size, f"0 to {self.size} pixels (the size)")
        self._require("resize", self.resize is None or self.resize >= self.size, f"at least the size, {self.size}")
        self._require("factor", 1 <= self.factor <= self.size, f"1 to {self.size} cells a side (the size)")
        named(self.augment)
        self._require("flip", 0 <= self.flip <= 1, "a probability from 0 to 1")
        self._require("alpha", 1e-9 <= self.alpha <= 1e9, "1e-9 to 1e9")
        least = 1 if self.mix == "none" else 2
        self._require("group", least <= self.group <= 2**16, f"{least} to 65536 crops with mix {self.mix}")

    def _require(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise InputError(f"{name}: expected {expected}, found {getattr(self, name)!r}")

    def _has_effect(self, name: str) -> bool:
        """Whether a field changes any crop of this plan; those that do not are left out of a store's identity."""
        chooser, choices = _only_with(name)
        return not choices or getattr(self, chooser) in choices

    @property
    def effective_pad(self) -> int:
        """Pixels that crop boxes count from outside the image's corner."""
        return self.pad if self._has_effect("pad") else 0

    @property
    def crop_numbers(self) -> dict[str, Any]:
        """The parameters of this plan's crop, by name."""
        return {name: getattr(self, name) for name in CROPS[self.crop].parameters}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a crop row, in stored order."""
        own = (*crop.columns, *flip.columns, *columns_of(self.augment))
        return (*IMAGE_COLUMNS, *own, *mix_columns(self.mix))

    @property
    def unmixed(self) -> PlanSpec:
        """The same crops without mixing."""
        return dataclasses.replace(self, mix="none", alpha=1.0, group=1, mix_per="group")

    def to_json(self) -> dict[str, Json]:
        """The fields that have an effect, as a JSON object."""
        values = {
            name: value
            for name, value in asdict(self).items()
            if self._has_effect(name) and not (name in _LATER and value == _DEFAULTS[name])
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> PlanSpec:
        """The plan that `to_json` described; FormatError if it is not one."""
        try:
            return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise FormatError(f"the plan of this store cannot be read: {error}") from error


_DEFAULTS = {field.name: field.default for field in fields(PlanSpec)}


def _only_with(name: str) -> tuple[str, tuple[str, ...]]:
    """The field, and its values, with which alone the field ``name`` has an effect; no values: it always has one."""
    if name in _MIXING:
        return "mix", tuple(MIXES)
    own = () if name == "size" else tuple(kind for kind, each in CROPS.items() if name in each.parameters)
    return "crop", own


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
        values = np.empty((len(self.spec.columns), stop - start), np.uint16)
        images = self.order(view)[start:stop]
        crops = len(self.spec.columns) - len(mix_columns(self.spec.mix))
        for first in range(0, len(images), draws.CHUNK):
            part = slice(first, first + draws.CHUNK)
            values[:crops, part] = self._crops(view, images[part])
        if self.spec.mix != "none" and len(images):
            values[crops:] = self._mixing(view, start, stop)
        return CropRows(self.spec.columns, values)

    def unmixed(self, view: int, images: npt.NDArray[np.integer]) -> CropRows:
        """The crop rows of some images of a view in the order of ``images``, without their mixing columns."""
        return CropRows(self.spec.unmixed.columns, self._crops(view, images.astype(np.uint32)).astype(np.uint16))

    def _draw_order(self, view: int) -> npt.NDArray[np.uint32]:
        order = draws.permutation(draws.key("order", self.spec.seed, view), self.images).astype(np.uint32)
        order.setflags(write=False)
        return order

    def _crops(self, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """Columns that depend on the image alone: int64 ``[K, n]``."""
        spec, seed = self.spec, self.spec.seed
        sides = self._heights[images], self._widths[images]
        boxes = crop.draw(spec.crop, spec.crop_numbers, seed, view, images, *sides)
        flips = flip.draw(spec.flip, seed, view, images)
        others = draw_augmentations(spec.augment, spec.size, seed, view, images)
        return np.concatenate([[images & 0xFFFF, images >> 16], boxes, flips, *others])

    def _mixing(self, view: int, start: int, stop: int) -> npt.NDArray[np.int64]:
        """The columns of mixing of whole groups: int64 ``[K, stop - start]``."""
        spec, group = self.spec, self.spec.group
        groups = np.arange(start // group, -(-stop // group))
        whole = (stop - start) // group  # the view's last group can be smaller
        key = draws.key("partner", spec.seed, view)
        partners = [draws.permutations(key, groups[:whole], group).ravel()]
        if whole < len(groups):
            partners.append(draws.permutations(key, groups[whole:], (stop - start) % group).ravel())
        counters = np.arange(start, stop) if spec.mix_per == "pair" else groups
        drawn = MIXES[spec.mix].draw(spec.alpha, spec.size, spec.seed, view, counters)
        if spec.mix_per == "group":
            drawn = np.repeat(drawn, group, axis=1)[:, : stop - start]
        return np.concatenate([[np.concatenate(partners)], drawn])
