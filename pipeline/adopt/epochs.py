"""Folders of epochs with a file for each batch: an epoch is a view, and mixed crops mix within a batch."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.adopt.labels import (
    Crops,
    Int64Array,
    Mix,
    Request,
    Shown,
    boxes_of,
    crop_columns,
    image_columns,
    require_unused,
)
from pipeline.adopt.orders import SIDECAR, ImageOrder, ListedOrder, SamplerOrder
from pipeline.adopt.records import Batch, Layout, load, read_batch
from pipeline.plan.spec import Interpolation

SEED = 42  # of the sampler in the authors' code
EPOCH, BATCH = (re.compile(pattern) for pattern in (r"epoch_(0|[1-9][0-9]*)", r"batch_(0|[1-9][0-9]*)\.tar"))


def numbered(folder: Path, pattern: re.Pattern[str]) -> list[int]:
    """The numbers in the names of a folder that a pattern matches whole, ascending."""
    try:
        names = [path.name for path in folder.iterdir()]
    except OSError as error:
        raise InputError(f"{folder}: expected a folder of labels ({error.strerror})") from error
    return sorted(int(found[1]) for name in names if (found := pattern.fullmatch(name)))


def batch_file(folder: Path, epoch: int, batch: int) -> Path:
    """The file of a batch."""
    return folder / f"epoch_{epoch}" / f"batch_{batch}.tar"


@dataclass(frozen=True, slots=True)
class EpochsFormat:
    """A format of epochs and batches.

    Attributes:
        layout: layout of its files.
    """

    layout: Layout

    def recognises(self, folder: Path) -> bool:
        """Whether the first file holds a list of as many values as the layout has."""
        first = batch_file(folder, 0, 0)
        if not first.is_file():
            return False
        value = load(first)
        return isinstance(value, (list, tuple)) and len(value) == self.layout.fields

    def open(self, request: Request) -> Sequence[Epochs]:
        """The labels of the folder, once for each order that they may have."""
        shape = measure(request, self.layout)
        if self.layout.index is not None:
            require_unused(self.layout.name, request, "--sampler-seed", "--order")
            return [Epochs(request, self.layout, shape, None)]
        listed = request.order or (request.folder / SIDECAR if (request.folder / SIDECAR).exists() else None)
        if listed:
            return [Epochs(request, self.layout, shape, ListedOrder(listed, shape.images, shape.views))]
        seed = SEED if request.sampler_seed is None else request.sampler_seed
        orders = [SamplerOrder(shape.images, seed, draws) for draws in (2, 1)[: min(shape.views, 2)]]
        return [Epochs(request, self.layout, shape, order) for order in orders]


@dataclass(frozen=True, kw_only=True, slots=True)
class Shape:
    """Numbers of a folder of epochs.

    Attributes:
        there: epochs in the folder.
        views: epochs to adopt.
        images: labels in an epoch.
        batch: labels in a file; the last file of an epoch may have fewer.
        columns: columns C of a label.
        mix: how the crops of the first batch are mixed.
    """

    there: int
    views: int
    images: int
    batch: int
    columns: int
    mix: Mix

    @property
    def batches(self) -> int:
        """Files in an epoch."""
        return -(-self.images // self.batch)


def measure(request: Request, layout: Layout) -> Shape:
    """The numbers of a folder, from its names and from the first and last file of its first epoch.

    Raises:
        InputError: names what is missing, or how many images are expected.
    """
    folder, images = request.folder, len(request.manifest)
    epochs = numbered(folder, EPOCH)
    batches = numbered(folder / "epoch_0", BATCH) if 0 in epochs else []
    if not batches:
        raise InputError(f"{folder}: expected the labels epoch_0/batch_0.tar and so on, found none")
    require_files(folder, 0, batches, batches[-1] + 1)
    first, last = (read_batch(batch_file(folder, 0, batch), layout) for batch in (batches[0], batches[-1]))
    labels = len(first) * (len(batches) - 1) + len(last)
    if labels != images:
        dropped = labels == images // len(first) * len(first)
        why = (
            f"; the last {images - labels} images of an epoch were dropped with their short batch, as LPLD does where "
            f"it prunes: such epochs show not every image, and cannot be the views of a store"
            if dropped
            else "; give the images that were labelled"
        )
        raise InputError(
            f"{folder}: expected labels of {images:,} images, those of {request.manifest.location}, found {labels:,} "
            f"an epoch ({len(batches):,} files of {len(first):,}){why}"
        )
    if first.mix != "none" and len(first) == 1:
        raise InputError(f"{folder}: expected files of several labels with {first.mix}, found files of one label each")
    views = len(epochs) if request.views is None else request.views
    require_whole(folder, epochs, batches, views)
    return Shape(
        there=len(epochs),
        views=views,
        images=images,
        batch=len(first),
        columns=first.logits.shape[1],
        mix=first.mix,
    )


def require_whole(folder: Path, epochs: Sequence[int], batches: Sequence[int], views: int) -> None:
    """Refuse a folder in which one of the first ``views`` epochs is missing, or has a file too few or too many.

    Raises:
        InputError: names the first such epoch or file, and how many whole epochs come before it.
    """
    present = set(epochs)
    for epoch in range(max(views, 1)):
        if epoch not in present:
            raise InputError(
                f"{folder}: epoch_{epoch} is missing: expected {views} epochs, found epochs up to epoch_{epochs[-1]}; "
                f"{earlier(epoch)}"
            )
        require_files(folder, epoch, numbered(folder / f"epoch_{epoch}", BATCH), len(batches))


def require_files(folder: Path, epoch: int, batches: Sequence[int], count: int) -> None:
    """Refuse an epoch whose files are not those of batches 0 to ``count - 1``.

    Raises:
        InputError: names the first file that is missing or one too many.
    """
    wanted, there = set(range(min(count, len(batches) + 1))), set(batches)
    absent, more = sorted(wanted - there), sorted(there - set(range(count)))
    if absent or more:
        file = f"{folder}: epoch_{epoch}/batch_{(absent or more)[0]}.tar"
        found = "is missing" if absent else "is one too many"
        raise InputError(f"{file} {found}: expected {count:,} files an epoch, found {len(there):,}; {earlier(epoch)}")


def earlier(epoch: int) -> str:
    """A remedy for an incomplete epoch."""
    return f"--views {epoch} adopts the epochs before it" if epoch else "take the folder from its source again"


class Epochs:
    """Labels in epochs and batches; implements `Labels`.

    Args:
        request: options of the caller.
        layout: layout of the files.
        shape: numbers of the folder.
        order: order of the images; None if the files store their indexes.
    """

    content: Literal["logits", "topk"] = "logits"
    interpolation: Interpolation = "bilinear"

    def __init__(self, request: Request, layout: Layout, shape: Shape, order: ImageOrder | None) -> None:
        self._folder, self._layout, self._shape, self._order = request.folder, layout, shape, order
        self._size, self._numbering = request.size, request.numbering
        self._heights, self._widths = request.manifest.heights, request.manifest.widths
        self.views, self.there, self.images = shape.views, shape.there, shape.images
        self.columns, self.mix = shape.columns, shape.mix
        self.group = shape.batch if shape.mix != "none" else 1
        self.order = "stored with the labels" if order is None else order.text
        self.files = (
            f"{layout.name}, {shape.there:,} epochs of {shape.batches:,} files, {shape.batch:,} labels each, "
            f"mix {shape.mix}"
        )

    def shown(self, view: int, start: int, stop: int) -> Shown:
        """Labels at positions of a view, whole batches, and the images that they are of."""
        batches = self._batches(view, start, stop)
        images = self._images(view, start, batches)
        partners, weights = [], []
        for own, batch in zip(_parts(images, batches), batches, strict=True):
            partners.append(own if batch.partners is None else own[batch.partners])
            weights.append(np.full(len(batch), self._weight(batch), np.float32))
        return Shown(images, np.concatenate(partners), np.concatenate(weights), _logits(batches))

    def crops(self, view: int, start: int, stop: int) -> Crops:
        """Labels at positions of a view, whole groups, and the rows of their crops."""
        batches = self._batches(view, start, stop)
        images = self._images(view, start, batches)
        each = [self._rows(own, batch) for own, batch in zip(_parts(images, batches), batches, strict=True)]
        rows, logits = np.concatenate(each, axis=1), _logits(batches)
        skipped = start % self._shape.batch if self.group == 1 else 0
        part = slice(skipped, skipped + stop - start)
        return Crops(CropRows(crop_columns(self.mix), rows[:, part]), logits[part])

    def _batches(self, view: int, start: int, stop: int) -> list[Batch]:
        """The batches with positions ``start`` to ``stop`` of a view."""
        size = self._shape.batch
        return [self._batch(view, number) for number in range(start // size, -(-stop // size))]

    def _batch(self, view: int, number: int) -> Batch:
        shape = self._shape
        batch = read_batch(batch_file(self._folder, view, number), self._layout)
        wanted = min(shape.batch, shape.images - number * shape.batch)
        for what, expected, found in (
            ("labels, as the files of epoch_0 hold,", wanted, len(batch)),
            ("columns, as those of the first file,", shape.columns, batch.logits.shape[1]),
            ("as mix, as in the first file,", shape.mix, batch.mix),
        ):
            if found != expected:
                raise InputError(f"{batch.place}: expected {expected} {what} found {found}; all batches must be alike")
        if batch.box is not None and max(batch.box) > self._size:
            raise InputError(
                f"{batch.place}: expected a CutMix box within crops of {self._size} px, found one up to "
                f"{max(batch.box)}; give the side of the crops that were labelled: --size"
            )
        return batch

    def _images(self, view: int, start: int, batches: Sequence[Batch]) -> Int64Array:
        """The image of each crop of some batches, the first of which holds position ``start``."""
        numbers = self._numbers(view, start, batches)
        return numbers if self._numbering is None else self._numbering[numbers]

    def _numbers(self, view: int, start: int, batches: Sequence[Batch]) -> Int64Array:
        """The number that the authors' code gives each of these images."""
        if self._order is not None:
            first = start // self._shape.batch * self._shape.batch
            return self._order.images(view)[first : first + sum(map(len, batches))]
        for batch in batches:
            if batch.index is not None and batch.index.max() >= self.images:
                raise InputError(
                    f"{batch.place}: expected indexes of {self.images:,} images, found {int(batch.index.max())}; give "
                    f"the images that were labelled"
                )
        return np.concatenate([batch.index for batch in batches if batch.index is not None])

    def _weight(self, batch: Batch) -> float:
        """Share of a crop's pixels that show its own image."""
        if batch.box is None:
            return batch.lam
        top, left, bottom, right = batch.box
        return 1 - (bottom - top) * (right - left) / self._size**2

    def _rows(self, images: Int64Array, batch: Batch) -> npt.NDArray[np.uint16]:
        """The rows of a batch's crops, uint16 ``[K, B]``."""
        shares = batch.shares
        if self._layout.swapped:
            heights, widths = self._heights[images].astype(np.float64), self._widths[images].astype(np.float64)
            shares = shares * np.stack([widths / heights, heights / widths] * 2, axis=1)
        boxes = boxes_of(shares, self._heights[images], self._widths[images], batch.place)
        values: list[Any] = [*image_columns(images), *boxes.T, batch.flips]
        if batch.partners is not None:
            values.append(batch.partners)
            if batch.box is None:
                values.append(np.full(len(batch), min(round(batch.lam * 65536), 65535)))
            else:
                top, left, bottom, right = batch.box
                values += [np.full(len(batch), edge) for edge in (top, left, bottom - top, right - left)]
        return np.stack(values).astype(np.uint16)


def _parts(images: Int64Array, batches: Sequence[Batch]) -> list[Int64Array]:
    """The images of each batch."""
    return np.split(images, np.cumsum([len(batch) for batch in batches])[:-1])


def _logits(batches: Sequence[Batch]) -> npt.NDArray[Any]:
    """The labels of some batches."""
    return batches[0].logits if len(batches) == 1 else np.concatenate([batch.logits for batch in batches])
