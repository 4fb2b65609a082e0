"""Augmentations, one file each: columns, draw, operator. Every plan crops and flips; the others are in tables.

In the order of their operators: `REARRANGEMENTS` work on the image that crops are cut from; then a crop is cut, resized
and flipped; `PIXELS` work on its pixels; `MIXES` mix it with its partner; `INPUTS` work on the normalised image. What
an operator needs is stored in the crop's row. A plan's ``mix`` names one of `MIXES`, and its ``augment`` names any of
the other three tables, with numbers where they take some: ``("patch-shuffle=2", "rand-augment=2,9", "dsa")``.

Draws take numbers, and nothing here imports torch before an operator runs, or numpy before rows are drawn: plans need
no torch, and command lines neither.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Protocol, TypeAlias

from labelstore.command.flags import Choices
from labelstore.errors import InputError
from labelstore.tables import Table

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor

    from labelstore.format.columns import CropRows


@dataclass(frozen=True, slots=True)
class Crop:
    """One way to choose boxes: an entry of `CROPS`.

    Attributes:
        boxes: called with a key, image indexes ``[n]``, their heights and widths in pixels ``[n]``, and the parameters
            by name; returns int64 ``[4, n]`` in the order of `labelstore.format.columns.BOX_COLUMNS`.
        parameters: the fields of the plan that it reads. Those other than ``size`` have an effect only with the crops
            that name them.
        require_sides: called with the heights and widths of all images, and the parameters by name; raises InputError
            for an image that this crop cannot use. None: it can use any.
    """

    boxes: Callable[..., npt.NDArray[np.int64]]
    parameters: tuple[str, ...]
    require_sides: Callable[..., None] | None = None


class Mix(Protocol):
    """A mixing augmentation, as its file implements it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """``partner``, then what `draw` returns.

        Either ``share`` or the four of `labelstore.format.columns.MIX_BOX_COLUMNS` must be among them: readers of a
        store derive the weights of the two targets from these.
        """

    def draw(
        self, alpha: float, size: int, seed: int, view: int, counters: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """The columns after ``partner``, int64 ``[K, n]``: one value for each counter, a group's number or a position.

        Args:
            alpha: of the plan: weights are drawn from Beta(alpha, alpha).
            size: side of the crops in pixels.
            seed: of the plan.
            view: number of the view.
            counters: int64 ``[n]``.
        """

    def mix(self, pixels: Tensor, rows: CropRows, group: int) -> Tensor:
        """The operator on uint8 ``[n, S, S, 3]``, whole groups, which it must not change in place."""


class Rearrangement(Protocol):
    """An augmentation of the image before the crop, as its file implements it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What `draw` returns."""

    def check(self, number: int | None) -> None:
        """Raise InputError for a number that it cannot take, and for none where it needs one."""

    def draw(self, number: int | None, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The columns of the crop of each image ``[n]`` of a view, int64 ``[K, n]``; ``number`` is the plan's."""

    def arrange(self, image: Tensor, values: tuple[int, ...]) -> Tensor:
        """The image ``[H, W, 3]`` of the same sides that the crop with these values of its columns is cut from."""

    def strips_of(
        self, values: npt.NDArray[np.int64], sides: npt.NDArray[np.int64]
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
        """What `arrange` does for many crops, with the values ``[K, n]`` of their columns, without making an image.

        Returns:
            begins and moves, int64 ``[n, 2, f]`` each, of row strips and of column strips: the new image's pixel ``p``,
            in the strip that begins last at or before ``p``, is the image's pixel ``p + move``. ``sides`` are the
            height and width of the images, int64 ``[n, 2]``.
        """


class PixelAugmentation(Protocol):
    """An augmentation of a crop's pixels, before crops are mixed, as its file implements it."""

    @property
    def prefix(self) -> str:
        """What the names of its columns, and of no others, begin with."""

    def check(self, numbers: tuple[int, ...]) -> None:
        """Raise InputError for numbers that it cannot take."""

    def columns(self, numbers: tuple[int, ...]) -> tuple[str, ...]:
        """What `draw` returns; ``numbers`` are the plan's."""

    def draw(
        self, numbers: tuple[int, ...], seed: int, view: int, images: npt.NDArray[np.uint32]
    ) -> npt.NDArray[np.int64]:
        """The columns of the crop of each image ``[n]`` of a view, int64 ``[K, n]``."""

    def change(self, pixels: npt.NDArray[np.uint8], values: tuple[int, ...]) -> npt.NDArray[np.uint8]:
        """The operator on one crop, uint8 ``[S, S, 3]`` of any side, with the values of its columns.

        It is called by several threads, and must not change ``pixels`` in place.
        """


class Input(Protocol):
    """An augmentation of the normalised image, as its file implements it."""

    @property
    def columns(self) -> tuple[str, ...]:
        """What `draw` returns."""

    def draw(self, size: int, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        """The columns of the crop, of side ``size``, of each image ``[n]`` of a view, int64 ``[K, n]``."""

    def apply(self, images: Tensor, rows: CropRows, size: int) -> Tensor:
        """The operator on float32 ``[n, 3, S, S]``, contiguous, of rows drawn for side ``size``."""


CROPS: Table[Crop] = Table(
    {
        "resized": "pipeline.plan.augment.crop:RESIZED",
        "center": "pipeline.plan.augment.crop:CENTER",
        "padded": "pipeline.plan.augment.crop:PADDED",
        "factor": "pipeline.plan.augment.crop:FACTOR",
    }
)
REARRANGEMENTS: Table[Rearrangement] = Table(
    {
        "patch-shuffle": "pipeline.plan.augment.patch_shuffle",
    }
)
PIXELS: Table[PixelAugmentation] = Table(
    {
        "rand-augment": "pipeline.plan.augment.rand_augment",
    }
)
MIXES: Table[Mix] = Table(
    {
        "cutmix": "pipeline.plan.augment.cutmix",
        "mixup": "pipeline.plan.augment.mixup",
    }
)
INPUTS: Table[Input] = Table(
    {
        "dsa": "pipeline.plan.augment.dsa",
        "dsa=one": "pipeline.plan.augment.dsa_one",
    }
)

CropName: TypeAlias = Annotated[str, Choices(CROPS)]
MixName: TypeAlias = Annotated[str, Choices(MIXES, ("none",))]


def known_words() -> list[str]:
    """The values of ``augment``, with their numbers: ``patch-shuffle=NUMBER``."""
    return [*(f"{name}=NUMBER" for name in REARRANGEMENTS), *(f"{name}=NUMBERS" for name in PIXELS), *INPUTS]


def named(words: Sequence[str]) -> list[tuple[str, tuple[int, ...]]]:
    """The names in ``augment`` with their numbers, in the order of their operators.

    Raises:
        InputError: there is no such augmentation, or its numbers are wrong.
    """
    given: dict[str, tuple[int, ...]] = {}
    for word in words:
        name, equals, text = (word, "", "") if word in INPUTS else word.partition("=")
        numbers = text.split(",") if equals else []
        twice = name.partition("=")[0] in (other.partition("=")[0] for other in given)  # dsa and dsa=one are one
        wrong = not all(number.isdecimal() for number in numbers) or (numbers and name in INPUTS)
        if name not in (*REARRANGEMENTS, *PIXELS, *INPUTS) or twice or wrong:
            raise InputError(f"augment: expected each of {', '.join(known_words())} at most once, found {word!r}")
        given[name] = tuple(map(int, numbers))
        if name in REARRANGEMENTS:
            REARRANGEMENTS[name].check(_only(given[name]))
        elif name in PIXELS:
            PIXELS[name].check(given[name])
    return [(name, given[name]) for name in (*REARRANGEMENTS, *PIXELS, *INPUTS) if name in given]


def _only(numbers: tuple[int, ...]) -> int | None:
    """The number of an augmentation that takes one; None if there is not just one."""
    return numbers[0] if len(numbers) == 1 else None


def columns_of(words: Sequence[str]) -> tuple[str, ...]:
    """The columns of the augmentations in ``augment``, in stored order."""
    found: list[str] = []
    for name, numbers in named(words):
        if name in PIXELS:
            found += PIXELS[name].columns(numbers)
        else:
            found += (REARRANGEMENTS[name] if name in REARRANGEMENTS else INPUTS[name]).columns
    return tuple(found)


def mix_columns(mix: str) -> tuple[str, ...]:
    """The columns of a plan's ``mix``, in stored order; none of ``none``."""
    return () if mix == "none" else MIXES[mix].columns


def draw(
    words: Sequence[str], size: int, seed: int, view: int, images: npt.NDArray[np.uint32]
) -> list[npt.NDArray[np.int64]]:
    """The values of `columns_of` these words for the crops, of side ``size``, of some images ``[n]`` of a view."""
    drawn: list[npt.NDArray[np.int64]] = []
    for name, numbers in named(words):
        if name in REARRANGEMENTS:
            drawn.append(REARRANGEMENTS[name].draw(_only(numbers), seed, view, images))
        elif name in PIXELS:
            drawn.append(PIXELS[name].draw(numbers, seed, view, images))
        else:
            drawn.append(INPUTS[name].draw(size, seed, view, images))
    return drawn


def arrange(image: Tensor, rows: CropRows, row: int) -> Tensor:
    """The image ``[H, W, 3]`` that the crop of a row is cut from."""
    for each in REARRANGEMENTS.values():
        if each.columns[0] in rows:
            image = each.arrange(image, tuple(int(rows.column(name)[row]) for name in each.columns))
    return image


def strips_of(
    rows: CropRows, sides: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]] | None:
    """What `arrange` does for all rows, as tables of strips (see `Rearrangement`); None if nothing is rearranged."""
    import numpy as np

    for each in REARRANGEMENTS.values():
        if each.columns[0] in rows:
            return each.strips_of(np.stack([rows.column(name) for name in each.columns]).astype(np.int64), sides)
    return None


def arranges(names: Sequence[str]) -> bool:
    """Whether crops with these columns are cut from rearranged images."""
    return any(each.columns[0] in names for each in REARRANGEMENTS.values())


def pixels_of(names: Sequence[str]) -> list[tuple[PixelAugmentation, tuple[str, ...]]]:
    """What works on the pixels of crops with these columns, each with its own columns, in their order."""
    found = [(each, tuple(name for name in names if name.startswith(each.prefix))) for each in PIXELS.values()]
    return [(each, own) for each, own in found if own]


def inputs_of(names: Sequence[str]) -> list[Input]:
    """What works on the normalised images of crops with these columns."""
    return [each for each in INPUTS.values() if each.columns[0] in names]


def drawn_inputs(names: Sequence[str], size: int, count: int) -> CropRows | None:
    """Rows of ``count`` crops of side ``size``, with those of these columns that `INPUTS` draw; None if none are."""
    inputs = inputs_of(names)
    if not inputs:
        return None
    import numpy as np

    from labelstore.format.columns import CropRows

    images = np.arange(count, dtype=np.uint32)
    values = np.concatenate([each.draw(size, 0, 0, images) for each in inputs])
    return CropRows(tuple(name for each in inputs for name in each.columns), values.astype(np.uint16))


def fingerprints(names: Sequence[str], device: torch.device) -> dict[str, list[float]]:
    """What the operators of `INPUTS` for crops with these columns make of a known image: means of 4 quarters a crop.

    They work on floats, so that two devices or libraries agree only to within rounding: a store keeps these numbers.
    """
    import numpy as np
    import torch

    from labelstore.format.columns import CropRows

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
