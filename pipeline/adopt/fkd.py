"""FKD's labels: one file an image, of many crops of it, each with the largest probabilities of a softmax.

View v is the v-th crop of every image, in an order that is drawn here: FKD's files have none. The columns whose
probability is not stored are masked; FKD spreads what is left of 1 over them, or scales the others up, by a flag of its
training: the labels do not say which.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from torch import Tensor

from labelstore.command.names import printable
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.adopt.labels import (
    MASKED,
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
from pipeline.adopt.records import described, is_whole, load, wrong
from pipeline.images.manifest import Manifest
from pipeline.plan import draws
from pipeline.plan.spec import Interpolation

WINDOW_BYTES = 256 << 20  # of labels in memory: as many views of all images as fit are read at a time
DIRECT = 1_024  # labels that are read from their files alone
EXACT_INDEXES = 2_048  # below which float16 holds all integers
MOST_COLUMNS = 2**24  # below which float32 holds all integers
SUM_ERROR = 1e-2  # by which probabilities in float16 may sum to more than 1


@dataclass(frozen=True, eq=False, slots=True)
class Records:
    """Labels of n crops.

    Attributes:
        shares: boxes as shares of the images' sides, float32 ``[n, 4]``.
        flips: bool ``[n]``.
        columns: of the largest probabilities, int32 ``[n, k]``.
        probabilities: float32 ``[n, k]``.
        half: whether they are stored in float16.
    """

    shares: npt.NDArray[np.float32]
    flips: npt.NDArray[np.bool_]
    columns: npt.NDArray[np.int32]
    probabilities: npt.NDArray[np.float32]
    half: bool

    def __len__(self) -> int:
        return len(self.flips)

    def take(self, part: slice | int) -> Records:
        """Some of them."""
        at = slice(part, part + 1) if isinstance(part, int) else part
        return Records(self.shares[at], self.flips[at], self.columns[at], self.probabilities[at], self.half)


def joined(each: Sequence[Records]) -> Records:
    """Records one after the other."""
    parts = ("shares", "flips", "columns", "probabilities")
    values: dict[str, Any] = {name: np.concatenate([getattr(one, name) for one in each]) for name in parts}
    return Records(**values, half=each[0].half)


def read_image(path: Path) -> Records:
    """The labels in one file.

    Raises:
        InputError: names the file and the first value that is not as FKD writes it.
    """
    value = load(path)
    if not isinstance(value, (list, tuple)) or len(value) != 3:
        raise wrong(path, "a list of 3, as FKD writes it", described(value))
    shares, flips, label = value
    if not (isinstance(shares, Tensor) and shares.is_floating_point() and shares.ndim == 2 and shares.shape[1] == 4):
        raise wrong(path, "coordinates [V, 4]", described(shares))
    count = len(shares)
    if not count:
        raise wrong(path, "at least one crop", "none")
    if not (is_whole(flips) and flips.shape == (count,)):
        raise wrong(path, f"flips [{count}], true or false", described(flips))
    real = isinstance(label, Tensor) and not label.is_complex()
    if not (real and label.ndim in (1, 2, 3) and len(label) == count):
        raise wrong(path, f"labels of {count} crops", described(label))
    half = str(label.dtype) == "torch.float16"
    columns, probabilities = _largest(path, label.float().numpy())
    largest = columns.max() if columns.size else 0
    if half and largest >= EXACT_INDEXES:
        raise wrong(path, f"columns below {EXACT_INDEXES:,}, which float16 holds exactly", str(int(largest)))
    return Records(shares.float().numpy(), flips.bool().numpy(), columns, probabilities, half)


def _largest(path: Path, label: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.float32]]:
    """Columns and probabilities ``[n, k]`` of FKD's types of labels: hard [n], smoothing [n, 2], others [n, 2, k]."""
    if label.ndim == 1:
        columns, probabilities = label[:, None], np.ones((len(label), 1), np.float32)
    elif label.shape[1] != 2:
        raise wrong(path, "labels [V, 2, k]: columns, then probabilities", f"labels {list(label.shape)}")
    else:
        columns, probabilities = (part.reshape(len(label), -1) for part in (label[:, 0], label[:, 1]))
    odd = columns[~((np.rint(columns) == columns) & (columns >= 0) & (columns < MOST_COLUMNS))]
    if len(odd):
        raise wrong(path, "columns as whole numbers from 0 on", f"{float(odd[0]):g}")
    whole = columns.astype(np.int32)
    ascending = np.sort(whole, axis=1)
    twice = (ascending[:, 1:] == ascending[:, :-1]).any(axis=1)
    if twice.any():
        crop = int(np.argmax(twice))
        raise wrong(path, "each column once", f"columns {whole[crop].tolist()} of crop {crop}")
    sums = probabilities.sum(axis=1)
    right = (probabilities >= 0).all(axis=1) & (sums > 0) & (sums <= 1 + SUM_ERROR)
    if not right.all():
        crop = int(np.argmin(right))
        raise wrong(path, "probabilities", f"{probabilities[crop].tolist()} of crop {crop}")
    return whole, probabilities


class Fkd:
    """One file an image.

    Args:
        request: what they are opened with.
        files: of each image.
        first: what the first file holds.
    """

    content: Literal["logits", "topk"] = "topk"
    interpolation: Interpolation = "bicubic"
    mix: Mix = "none"
    group = 1

    def __init__(self, request: Request, files: Sequence[Path], first: Records) -> None:
        self._files, self._manifest = files, request.manifest
        self._kept, self._half = first.columns.shape[1], first.half
        self.there = len(first)
        self.views = self.there if request.views is None else request.views
        self.images = len(files)
        self.columns = request.columns or len(request.manifest.classes)
        if self.views > self.there:
            raise InputError(f"{files[0]}: expected {self.views} crops, --views, found {self.there}")
        mass = first.probabilities.sum(axis=1).mean()
        self.files = (
            f"fkd, {self.images:,} files of {self.there:,} crops, the {self._kept} largest probabilities of each, "
            "which "
            f"sum to {mass:.4f} in the first file; the other columns are not known"
        )
        self.order = "each view is shuffled: the files have no order"
        per_crop = 17 + 8 * self._kept
        self._views = min(max(WINDOW_BYTES // (per_crop * self.images), 1), self.views)
        self._first, self._window = -1, list[Records]()

    def shown(self, view: int, start: int, stop: int) -> Shown:
        """Labels at positions of a view, and the images that they are of."""
        images = self._order(view)[start:stop]
        records = self._records(view, images)
        return Shown(images, images, np.ones(len(images), np.float32), self._logits(images, records))

    def crops(self, view: int, start: int, stop: int) -> Crops:
        """The same with the rows of the crops."""
        images = self._order(view)[start:stop]
        records, manifest = self._records(view, images), self._manifest
        boxes = boxes_of(
            records.shares,
            manifest.heights[images],
            manifest.widths[images],
            f"{self._files[images[0]].parents[1]}, crop {view} of the images of positions {start} to {stop - 1}",
            exact=not records.half,
        )
        values = np.stack([*image_columns(images), *boxes.T, records.flips]).astype(np.uint16)
        return Crops(CropRows(crop_columns("none"), values), self._logits(images, records))

    def _order(self, view: int) -> Int64Array:
        """The image at each position of a view."""
        return draws.permutation(draws.key("order of adopted labels", view), self.images).astype(np.int64)

    def _records(self, view: int, images: Int64Array) -> Records:
        """The labels of one crop of each of some images."""
        inside = self._first >= 0 and self._first <= view < self._first + self._views
        if not inside and len(images) <= DIRECT and len(images) < self.images:
            return joined([self._read(image).take(view) for image in images.tolist()])
        if not inside:
            self._first = view
            part = slice(view, view + self._views)
            each = joined([self._read(image).take(part) for image in range(self.images)])
            held = min(self._views, self.there - view)
            places = np.arange(self.images) * held
            self._window = [_at(each, places + offset) for offset in range(held)]
        return _at(self._window[view - self._first], images)

    def _read(self, image: int) -> Records:
        """All labels of an image, as many as of the first, and as large."""
        found = read_image(self._files[image])
        if len(found) != self.there or found.columns.shape[1] != self._kept or found.half != self._half:
            raise wrong(
                self._files[image],
                f"{self.there} crops with {self._kept} probabilities each, as in the first file",
                f"{len(found)} with {found.columns.shape[1]}",
            )
        return found

    def _logits(self, images: Int64Array, records: Records) -> npt.NDArray[np.float32]:
        """Logarithms of the probabilities, and the masked value in all other columns: float32 ``[n, C]``."""
        wrong_rows = np.flatnonzero((records.columns >= self.columns).any(axis=1))
        if len(wrong_rows):
            row = wrong_rows[0]
            raise InputError(
                f"{self._files[images[row]]}: expected columns below {self.columns:,}, the classes of the images, "
                "found "
                f"{int(records.columns[row].max())}; give the images of all classes, or --class-columns imagenet"
            )
        logits = np.full((len(images), self.columns), MASKED, np.float32)
        with np.errstate(divide="ignore"):
            values = np.maximum(np.log(records.probabilities), MASKED)
        np.put_along_axis(logits, records.columns.astype(np.int64), values.astype(np.float32), axis=1)
        return logits


def _at(records: Records, rows: Int64Array) -> Records:
    """The records at some rows."""
    return Records(
        records.shares[rows], records.flips[rows], records.columns[rows], records.probabilities[rows], records.half
    )


def files_of(folder: Path, manifest: Manifest) -> list[Path]:
    """The file of each image: CLASS/NAME.tar somewhere below the folder, NAME up to the first dot of the image's.

    Raises:
        InputError: names an image that has none, or two that have one together.
    """
    there: dict[tuple[str, str], Path] = {}
    for file in sorted(folder.rglob("*.tar")):
        first = there.setdefault((file.parent.name, file.name.partition(".")[0]), file)
        if first != file:
            raise InputError(f"{folder}: expected one file of labels for an image, found {first} and {file}")
    found: dict[Path, int] = {}
    missing: list[str] = []
    for image, name in enumerate(manifest.names):
        parts = PurePosixPath(name)
        path = there.get((parts.parent.name, parts.name.partition(".")[0]))
        if path is None:
            missing.append(name)
            continue
        if path in found:
            raise InputError(
                f"{path}: is the file of both {printable(manifest.names[found[path]])} and {printable(name)}: FKD "
                "names "
                f"labels by an image's name up to its first dot; give the images that were labelled"
            )
        found[path] = image
    if missing:
        raise InputError(
            f"{folder}: expected a file of labels for each of {len(manifest):,} images, found none of "
            f"{len(missing):,} of them, first {printable(missing[0])}; give the images that were labelled"
        )
    return list(found)


class FkdFormat:
    """FKD's one file an image."""

    def recognises(self, folder: Path) -> bool:
        """Whether the first file has three values."""
        first = next((path for path in folder.rglob("*.tar") if path.is_file()), None)
        if first is None:
            return False
        value = load(first)
        return isinstance(value, (list, tuple)) and len(value) == 3

    def open(self, request: Request) -> Sequence[Fkd]:
        """The labels of the folder."""
        require_unused("fkd", request, "--sampler-seed", "--order", "--image-list")
        files = files_of(request.folder, request.manifest)
        return [Fkd(request, files, read_image(files[0]))]


FORMAT = FkdFormat()
