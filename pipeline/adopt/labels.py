"""The seam between `adopt` and the formats of others: labels by view and position, and the crops that they are of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from labelstore.format.columns import BOX_COLUMNS, IMAGE_COLUMNS, CropRows
from pipeline.images.manifest import Manifest
from pipeline.plan.augment import mix_columns
from pipeline.plan.spec import Interpolation

Int64Array = npt.NDArray[np.int64]
Mix = Literal["none", "cutmix", "mixup"]
MASKED = -1e4  # logit of columns that are not known
OFF_PIXELS = 0.02  # that a stored share of a side may be off a whole pixel: float32 resolves 0.008 of 65,535
HALF_ERROR = 2**-10  # of a share in float16, twice its rounding


@dataclass(frozen=True, eq=False, kw_only=True, slots=True)
class Request:
    """What labels are opened with.

    Attributes:
        folder: of the labels.
        manifest: of the images.
        size: side of the crops in pixels.
        columns: of a label, where the format does not store it; None: one for each class.
        views: how many views are wanted, the first ones; all when None.
        sampler_seed: of the sampler whose order is rebuilt; None: 42, that of their code.
        order: file of the images of each epoch, instead.
        numbering: the image that each number of theirs means, int64 ``[N]``; None: both count alike.
    """

    folder: Path
    manifest: Manifest
    size: int
    columns: int | None = None
    views: int | None = None
    sampler_seed: int | None = None
    order: Path | None = None
    numbering: Int64Array | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Shown:
    """Labels of n positions of a view, in whole groups, and which images they are of.

    Attributes:
        images: of each crop, int64 ``[n]``.
        partners: image that is mixed into it, int64 ``[n]``.
        weights: share of the pixels that are its own image's, float32 ``[n]``.
        logits: float16 or float32 ``[n, C]``, as stored.
    """

    images: Int64Array
    partners: Int64Array
    weights: npt.NDArray[np.float32]
    logits: npt.NDArray[Any]

    @property
    def mainly(self) -> Int64Array:
        """The image that most of each crop's pixels are of, int64 ``[n]``."""
        return np.where(self.weights >= 0.5, self.images, self.partners)


@dataclass(frozen=True, eq=False, slots=True)
class Crops:
    """Labels of n positions of a view, in whole groups, and the rows that make their crops.

    Attributes:
        rows: n rows.
        logits: float16 or float32 ``[n, C]``, as stored.
    """

    rows: CropRows
    logits: npt.NDArray[Any]


class Labels(Protocol):
    """Labels in a format of others.

    Attributes:
        views: V that are wanted.
        there: views that the folder has.
        images: N.
        columns: C of a label.
        group: consecutive positions that mix with each other; 1 without mixing.
        mix: how.
        content: as a store's identity has it.
        interpolation: filter with which the format's own code resizes crops.
        files: what was found, in words.
        order: where the order of the images is from, in words.
    """

    @property
    def views(self) -> int: ...  # noqa: D102
    @property
    def there(self) -> int: ...  # noqa: D102
    @property
    def images(self) -> int: ...  # noqa: D102
    @property
    def columns(self) -> int: ...  # noqa: D102
    @property
    def group(self) -> int: ...  # noqa: D102
    @property
    def mix(self) -> Mix: ...  # noqa: D102
    @property
    def content(self) -> Literal["logits", "topk"]: ...  # noqa: D102
    @property
    def interpolation(self) -> Interpolation: ...  # noqa: D102
    @property
    def files(self) -> str: ...  # noqa: D102
    @property
    def order(self) -> str: ...  # noqa: D102

    def shown(self, view: int, start: int, stop: int) -> Shown:
        """Labels at positions of a view, whole groups, and the images that they are of."""

    def crops(self, view: int, start: int, stop: int) -> Crops:
        """The same with the rows of the crops.

        Raises:
            InputError: names the file and what is wrong in it.
        """


class Format(Protocol):
    """A format of labels: an entry of the table."""

    def recognises(self, folder: Path) -> bool:
        """Whether a folder is in this format, by its names and its first file."""

    def open(self, request: Request) -> Sequence[Labels]:
        """The labels of a folder; several where it may be read in several orders: agreement with the folders decides.

        Raises:
            InputError: names what is missing, or does not fit the images.
        """


def crop_columns(mix: Mix) -> tuple[str, ...]:
    """Names of the columns of a crop row, in stored order."""
    return (*IMAGE_COLUMNS, *BOX_COLUMNS, "bits", *mix_columns(mix))


def boxes_of(
    shares: npt.NDArray[Any], heights: npt.NDArray[Any], widths: npt.NDArray[Any], place: str, *, exact: bool = True
) -> Int64Array:
    """Boxes (top, left, height, width) in source pixels, int64 ``[n, 4]``, of shares of the images' sides.

    Args:
        shares: of height, width, height, width ``[n, 4]``.
        heights: of each crop's image in pixels ``[n]``.
        widths: likewise.
        place: where they are stored, for messages.
        exact: whether they must be whole pixels; shares in float16 are not.

    Raises:
        InputError: when they are no boxes of images of these sides.
    """
    sides = np.stack([heights, widths, heights, widths], axis=1).astype(np.float64)
    pixels = shares.astype(np.float64) * sides
    boxes = np.rint(pixels)
    if not exact:
        boxes[:, 2:] = np.clip(boxes[:, 2:], 1, sides[:, 2:])
        boxes[:, :2] = np.minimum(boxes[:, :2], sides[:, :2] - boxes[:, 2:])
    inside = (boxes[:, :2] >= 0) & (boxes[:, 2:] >= 1) & (boxes[:, :2] + boxes[:, 2:] <= sides[:, :2])
    with np.errstate(invalid="ignore"):  # of infinite shares, which are refused
        off = np.abs(pixels - boxes) <= (OFF_PIXELS if exact else 0.5 + HALF_ERROR * sides)
    right = inside.all(axis=1) & off.all(axis=1) & (pixels[:, 2:] > 0.5).all(axis=1)
    if not right.all():
        crop = int(np.argmin(right))
        whole = "a box in whole pixels of" if exact else "a box within"
        raise InputError(
            f"{place}: crop {crop}: expected {whole} an image of {int(heights[crop])} x "
            f"{int(widths[crop])}, found top, left, height, width {', '.join(f'{side:.2f}' for side in pixels[crop])}; "
            f"give the images that were labelled, in the size that they had"
        )
    return boxes.astype(np.int64)


def image_columns(images: Int64Array) -> list[Int64Array]:
    """The two columns of an image index."""
    return [images & 0xFFFF, images >> 16]


def require_unused(name: str, request: Request, *flags: str) -> None:
    """Refuse flags that have no effect with a format.

    Raises:
        InputError: names the first.
    """
    given = {"--sampler-seed": request.sampler_seed, "--order": request.order, "--image-list": request.numbering}
    for flag in flags:
        if given[flag] is not None:
            raise InputError(f"{flag}: has no effect on labels of {name}, which store their images; leave it out")


def largest_of(labels: npt.NDArray[Any]) -> float:
    """The largest magnitude of float16 numbers, NaN where one of them is: their bits without the sign are in order."""
    bits = int((labels.view(np.uint16) & np.uint16(0x7FFF)).max())
    return float(np.array(bits, np.uint16).view(np.float16))
