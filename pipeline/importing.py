"""Tensor files of distillation repositories become a class folder of lossless PNG."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from labelstore import removing
from labelstore.errors import InputError
from labelstore.places import require_apart
from labelstore.removing import Proof
from pipeline.headers import MAX_PIXELS, MAX_SIDE
from pipeline.render.normalise import require_normalisation

IMAGE_KEYS = ("images", "image", "data", "x", "image_syn", "images_syn", "syn_images")
LABEL_KEYS = ("labels", "label", "targets", "target", "y", "label_syn", "labels_syn", "syn_labels")
LABEL_WORDS = ("label", "target", "soft", "logit", "prob")
_IMAGES_AT_ONCE = 64


@dataclass(frozen=True)
class ImportReport:
    """What an import wrote.

    Attributes:
        images: number of images.
        classes: number of class folders.
        height: rows of every image.
        width: columns of every image.
        max_rounding_error: largest distance between a value and the level it was rounded to, in levels of 0 to
            255, without clipped values; 0 for uint8 images.
        clipped_share: share of the values that lay outside 0 to 255.
    """

    images: int
    classes: int
    height: int
    width: int
    max_rounding_error: float
    clipped_share: float


@dataclass(frozen=True)
class _Pair:
    """Images and labels of one set, with the names under which the file holds them."""

    images: Tensor
    labels: Tensor
    images_name: str
    labels_name: str


@dataclass
class _Rounding:
    """What rounding to levels has cost so far."""

    largest: float = 0.0
    clipped: int = 0


def import_tensors(
    file: Path,
    out: Path,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Write the images of a tensor file as a class folder of PNG files.

    The file holds a dict of images and labels, such a dict within another, or a pair (images, labels). Images
    are uint8 or float, ``[N, C, H, W]`` or ``[N, H, W, C]`` with 1 or 3 channels; labels are class indexes
    ``[N]`` or ``[N, 1]``. Class folders are named by the index, padded with zeros so that byte order is numeric
    order; files are named by their place in the tensor.

    Args:
        file: a file written by ``torch.save``; nothing in it is executed.
        out: the class folder to make; absent or empty.
        mean: channel means that the images were normalised with; required for float images.
        std: channel standard deviations that the images were normalised with; required for float images.
        progress: called with (images written, images).

    Raises:
        InputError: names what in the file, or which flag, cannot be used. Nothing is left behind.
    """
    require_apart({"--out": out}, {})
    out = out.resolve()
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise InputError(f"{out}: expected a folder that is absent or empty, found something in the way")
    pair = _find_pair(_load(file), file)
    labels = _class_indexes(pair, file)
    images = _channels_last(pair, file)
    scale = _scale(pair, images, mean, std, file)
    rounding = _Rounding()
    aside = _make_aside(out)
    paths: list[Path] = []
    try:
        paths = _make_paths(aside, labels)
        with ThreadPoolExecutor() as pool:
            for start, levels in _levels(images, scale, rounding, f"{file}: {pair.images_name}"):
                part = paths[start : start + len(levels)]
                list(pool.map(_write_png, part, levels))
                if progress:
                    progress(start + len(part), len(paths))
        removing.move_folder(aside, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    finally:
        _remove_aside(aside, paths)
    return ImportReport(
        images=len(paths),
        classes=len(np.unique(labels)),
        height=images.shape[1],
        width=images.shape[2],
        max_rounding_error=rounding.largest,
        clipped_share=rounding.clipped / images.numel(),
    )


def _load(file: Path) -> object:
    """The content of a tensor file; tensors of the zip format are mapped, not read."""
    try:
        mapped = zipfile.is_zipfile(file)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=mapped)
    except FileNotFoundError as error:
        raise InputError(f"{file}: no such file") from error
    except Exception as error:  # torch raises whatever the bytes lead to
        held = re.search(r"GLOBAL ([\w.]+)", str(error))
        found = f"a {held[1]}, which only code could make" if held else "something else, or a damaged file"
        raise InputError(
            f"{file}: expected nothing but tensors, written by torch.save, found {found}; "
            f"save a dict of tensors: torch.save({{'images': images, 'labels': labels}}, ...)"
        ) from error


def _find_pair(content: object, file: Path) -> _Pair:
    """The only pair of images and labels in a file."""
    pairs = list(_pairs(content, file))
    if len(pairs) == 1:
        return pairs[0]
    if pairs:
        names = ", ".join(pair.images_name for pair in pairs)
        raise InputError(f"{file}: expected one set of images, found {len(pairs)} ({names}); save one of them alone")
    raise InputError(
        f"{file}: expected a dict of images (under {', '.join(IMAGE_KEYS)}) and labels (under "
        f"{', '.join(LABEL_KEYS)}), or a pair of them, found {_outline(content)}"
    )


def _pairs(content: object, file: Path, place: str = "", depth: int = 4) -> Iterator[_Pair]:
    """All pairs of images and labels within dicts, lists and tuples."""
    if isinstance(content, Mapping):
        entries: dict[str, Any] = {str(key): value for key, value in content.items()}
        images = _entry(entries, IMAGE_KEYS, 4)
        labels = _entry(entries, LABEL_KEYS, 1)
        if images and labels:
            _refuse_soft_labels(entries, labels, f"{file}: {place}", len(entries[images]))
            yield _Pair(entries[images], entries[labels], place + images, place + labels)
            return
    elif isinstance(content, list | tuple):
        if len(content) == 2 and all(isinstance(part, Tensor) for part in content) and content[0].ndim == 4:
            _refuse_soft_labels({"1": content[1]}, "1", f"{file}: {place}", len(content[0]))
            yield _Pair(content[0], content[1], f"{place}0", f"{place}1")
            return
        entries = {str(index): value for index, value in enumerate(content)}
    else:
        return
    if depth:
        for key, value in entries.items():
            yield from _pairs(value, file, f"{place}{key}.", depth - 1)


def _entry(entries: Mapping[str, Any], keys: tuple[str, ...], dimensions: int) -> str | None:
    """The first of these keys that holds a tensor of at least so many dimensions."""
    lower = {name.lower(): name for name in entries}
    for key in keys:
        value = entries.get(lower.get(key, ""))
        if isinstance(value, Tensor) and value.ndim >= dimensions:
            return lower[key]
    return None


def _refuse_soft_labels(entries: Mapping[str, Any], labels: str, place: str, count: int) -> None:
    """Refuse a set that comes with soft labels: importing would drop them in silence."""
    for name, value in entries.items():
        named_so = name == labels or any(word in name.lower() for word in LABEL_WORDS)
        if not (named_so and isinstance(value, Tensor)):
            continue
        if value.ndim == 2 and len(value) == count and value.shape[1] > 1 and value.is_floating_point():
            raise InputError(
                f"{place}{name}, a tensor {list(value.shape)}, holds soft labels; a class folder keeps one class "
                f"an image, and a store takes its soft labels from a teacher: save the file with class indexes "
                f"[{count}] alone"
            )


def _outline(content: object) -> str:
    """What a file holds, for a message."""
    if isinstance(content, Tensor):
        return f"one tensor {list(content.shape)}"
    if isinstance(content, Mapping):
        return "a dict of " + (", ".join(str(key) for key in list(content)[:10]) or "nothing")
    if isinstance(content, list | tuple):
        return f"a {type(content).__name__} of {len(content)}"
    return type(content).__name__


def _class_indexes(pair: _Pair, file: Path) -> npt.NDArray[np.int64]:
    """The class index of each image, int64 ``[N]``."""
    labels, count = pair.labels.detach(), len(pair.images)
    if not count or tuple(labels.shape) not in ((count,), (count, 1)):
        raise InputError(
            f"{file}: {pair.labels_name}: expected one class index for each of the {count} images, "
            f"found a tensor {list(labels.shape)}"
        )
    values = labels.reshape(-1).to(torch.float64)
    indexes = values.to(torch.int64)
    if not torch.equal(indexes.to(torch.float64), values) or int(indexes.min()) < 0:
        raise InputError(f"{file}: {pair.labels_name}: expected class indexes 0, 1, ..., found other numbers")
    return indexes.numpy()


def _channels_last(pair: _Pair, file: Path) -> Tensor:
    """The images as ``[N, H, W, C]``, not copied."""
    images, place = pair.images.detach(), f"{file}: {pair.images_name}"
    usable = images.device.type == "cpu" and images.layout == torch.strided and images.ndim == 4
    if not usable or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise InputError(
            f"{place}: expected uint8 or float [N, C, H, W] or [N, H, W, C], found {images.dtype} {list(images.shape)}"
        )
    first, last = images.shape[1] in (1, 3), images.shape[3] in (1, 3)
    if first == last:
        raise InputError(
            f"{place}: expected 1 or 3 channels in one place, [N, C, H, W] or [N, H, W, C], found {list(images.shape)}"
        )
    images = images.permute(0, 2, 3, 1) if first else images
    height, width = images.shape[1:3]
    if not height * width or height * width > MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise InputError(
            f"{place}: expected images of 1 to {MAX_PIXELS:,} pixels and sides of at most {MAX_SIDE:,}, "
            f"found {height:,} x {width:,}"
        )
    return images


def _scale(
    pair: _Pair, images: Tensor, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, file: Path
) -> tuple[Tensor, Tensor] | None:
    """Channel means and deviations in float64 ``[C]``; None for uint8 images, which are written as they are."""
    place = f"{file}: {pair.images_name}"
    if images.dtype == torch.uint8:
        if mean is not None or std is not None:
            raise InputError(f"{place}: uint8 images are written as they are; leave out --mean and --std")
        return None
    channels = images.shape[3]
    if mean is None or std is None:
        low, high = images[:_IMAGES_AT_ONCE].aminmax()
        zeros, ones = " ".join("0" * channels), " ".join("1" * channels)
        advice = "pass the --mean and --std that they were normalised with"
        if low >= 0 and high <= 1:
            advice += f"; if they were not (the values lie in [0, 1]), pass --mean {zeros} --std {ones}"
        elif low >= 0 and high > 16:
            advice = "the values look like levels of 0 to 255: save them as uint8"
        raise InputError(f"{place}: float images from {low:.4g} to {high:.4g}: {advice}")
    if len(mean) != channels or len(std) != channels:
        raise InputError(
            f"{place}: expected {channels} numbers in --mean and in --std, found {len(mean)} and {len(std)}"
        )
    require_normalisation(mean, std)
    return torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)


def _levels(
    images: Tensor, scale: tuple[Tensor, Tensor] | None, rounding: _Rounding, place: str
) -> Iterator[tuple[int, npt.NDArray[np.uint8]]]:
    """The images as levels, some at once: (index of the first, uint8 ``[n, H, W, C]``)."""
    for start in range(0, len(images), _IMAGES_AT_ONCE):
        values = images[start : start + _IMAGES_AT_ONCE]
        if scale:
            mean, std = scale
            exact = (values.to(torch.float64) * std + mean) * 255
            finite = exact.isfinite().flatten(1).all(dim=1)
            if not finite.all():
                raise InputError(
                    f"{place}: image {start + int(finite.to(torch.uint8).argmin())} holds NaN or infinite values; "
                    f"repair the file"
                )
            rounded = exact.round()
            values = rounded.clamp(0, 255)
            kept = rounded == values
            rounding.clipped += int((~kept).sum())
            rounding.largest = max(rounding.largest, float(((exact - rounded).abs() * kept).max()))
        yield start, values.to(torch.uint8).contiguous().numpy()


def _make_paths(root: Path, labels: npt.NDArray[np.int64]) -> list[Path]:
    """Make the class folders; the file of each image."""
    digits = max(2, len(str(labels.max())))
    places = len(str(len(labels) - 1))
    for label in np.unique(labels):
        (root / f"{label:0{digits}d}").mkdir(parents=True)
    return [root / f"{label:0{digits}d}" / f"{image:0{places}d}.png" for image, label in enumerate(labels)]


def _make_aside(out: Path) -> Path:
    """A new folder beside the one to make; what is written there is renamed when it is whole."""
    aside = out.with_name(f".{out.name}.partial")
    if os.path.lexists(aside):
        raise InputError(
            f"{aside}: is there already: what a stopped import has left, or yours; remove it or move it away, then "
            f"import again"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    return aside


def _remove_aside(aside: Path, paths: list[Path]) -> None:
    """Remove what this call has written, file by file, then the folders that are empty."""
    own = Proof("what this import writes", lambda _path: True)  # the folder is new, and each file was made there
    for path in paths:
        removing.remove(path, own)
    for folder in [*{path.parent: None for path in paths}, aside]:
        removing.remove_folder(folder)


def _write_png(path: Path, levels: npt.NDArray[np.uint8]) -> None:
    """Write one image ``[H, W, C]``."""
    with path.open("xb") as file:
        Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(file, "PNG")
