"""Augmentations, one file each: columns, draw, operator. Every plan crops and flips; the others are in tables.

In the order of their operators: those of `SOURCES` rearrange the image that crops are cut from, the crop is cut,
resized and flipped, those of `MIXES` mix it with its partner's, and those of `INPUTS` change the normalised image. What
an operator needs stands in the crop's row. `augment` of a plan names those of `SOURCES` and `INPUTS`, with a number
where they take one: ``("patch-shuffle=2", "dsa")``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.plan.augment import cutmix, dsa, mixup, patch_shuffle

if TYPE_CHECKING:
    from pipeline.plan.plan import PlanSpec


class Mix(Protocol):
    """What a file of a mixing augmentation holds."""

    @property
    def columns(self) -> tuple[str, ...]:
        """``partner``, then what `draw` returns."""

    def draw(self, spec: PlanSpec, view: int, counters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """The columns behind ``partner``, one value for each counter: a group's number, or a position."""

    def mix(self, pixels: torch.Tensor, rows: CropRows, group: int) -> torch.Tensor:
        """The operator on uint8 ``[n, S, S, 3]``."""


class Source(Protocol):
    """What a file of an augmentation holds that comes before the crop; its draw takes the number in `augment`."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What `draw` returns."""

    def check(self, number: int | None) -> None:
        """Refuse a number that it cannot take, and none where it needs one."""

    def draw(self, number: int | None, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The columns of the crop of each image ``[n]`` of a view, int64 ``[K, n]``."""

    def arrange(self, image: Tensor, values: tuple[int, ...]) -> Tensor:
        """The image ``[H, W, 3]`` of the same sides that the crop with these values of its columns is cut from."""


class Input(Protocol):
    """What a file of an augmentation holds that works on the normalised image."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What `draw` returns."""

    def draw(self, size: int, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The columns of the crop, of side ``size``, of each image ``[n]`` of a view, int64 ``[K, n]``."""

    def apply(self, images: Tensor, rows: CropRows, size: int) -> Tensor:
        """The operator on float32 ``[n, 3, S, S]``, contiguous, of rows drawn for side ``size``."""


SOURCES: dict[str, Source] = {"patch-shuffle": patch_shuffle}
MIXES: dict[str, Mix] = {"cutmix": cutmix, "mixup": mixup}
INPUTS: dict[str, Input] = {"dsa": dsa}


def named(words: Sequence[str]) -> list[tuple[str, int | None]]:
    """The names in ``augment`` with their numbers, in the order of their operators.

    Raises:
        InputError: when there is no such augmentation, or its number is wrong.
    """
    given: dict[str, int | None] = {}
    for word in words:
        name, equals, number = word.partition("=")
        if name not in (*SOURCES, *INPUTS) or name in given or (equals and not number.isdecimal()):
            known = ", ".join([*(f"{name}=NUMBER" for name in SOURCES), *INPUTS])
            raise InputError(f"augment: expected each of {known} at most once, found {word!r}")
        given[name] = int(number) if equals else None
        if name in SOURCES:
            SOURCES[name].check(given[name])
        elif equals:
            raise InputError(f"augment {name}: takes no number, found {word!r}")
    return [(name, given[name]) for name in (*SOURCES, *INPUTS) if name in given]


def columns_of(words: Sequence[str]) -> tuple[str, ...]:
    """The columns of the augmentations of a plan, in stored order."""
    return tuple(
        column
        for name, _ in named(words)
        for column in (SOURCES[name].columns if name in SOURCES else INPUTS[name].columns)
    )


def draw(spec: PlanSpec, view: int, images: npt.NDArray[np.uint32]) -> list[npt.NDArray[np.int64]]:
    """The values of `columns_of` the plan's augmentations for the crops of some images of a view."""
    return [
        SOURCES[name].draw(number, spec.seed, view, images)
        if name in SOURCES
        else INPUTS[name].draw(spec.size, spec.seed, view, images)
        for name, number in named(spec.augment)
    ]


def arrange(image: Tensor, rows: CropRows, row: int) -> Tensor:
    """The image ``[H, W, 3]`` that the crop of a row is cut from."""
    for source in SOURCES.values():
        if source.columns[0] in rows:
            image = source.arrange(image, tuple(int(rows.column(name)[row]) for name in source.columns))
    return image


def arranges(names: Sequence[str]) -> bool:
    """Whether crops with these columns are cut from rearranged images."""
    return any(source.columns[0] in names for source in SOURCES.values())


def inputs_of(names: Sequence[str]) -> list[Input]:
    """What works on the normalised images of crops with these columns."""
    return [each for each in INPUTS.values() if each.columns[0] in names]


def fingerprints(names: Sequence[str], device: torch.device) -> dict[str, list[float]]:
    """What the operators of `INPUTS` for crops with these columns make of a known image: means of 4 quarters a crop.

    They work on floats, so that two devices or libraries agree only to within rounding: a store keeps these numbers.
    """
    made: dict[str, list[float]] = {}
    for name, each in INPUTS.items():
        if each.columns[0] in names:
            count, side = 16, 16
            known = torch.arange(count * 3 * side * side, device=device) * 7919 % 251
            images = (known.float() / 125 - 1).reshape(count, 3, side, side)
            values = each.draw(side, 0, 0, np.arange(count, dtype=np.uint32))
            images = each.apply(images, CropRows(tuple(each.columns), values.astype(np.uint16)), side)
            means = images.double().reshape(count, 3, 2, side // 2, 2, side // 2).mean((1, 3, 5)).flatten()
            made[name] = [round(mean, 7) for mean in means.tolist()]
    return made
