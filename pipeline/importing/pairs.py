"""The images and labels in a tensor file, or in two, by the names that distillation repositories use."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError
from pipeline.images.headers import MAX_PIXELS, MAX_SIDE
from pipeline.importing.numpy_files import NUMPY, read_numpy
from pipeline.networks.file_kinds import shown
from pipeline.networks.torch_files import read_content

IMAGE_KEYS = ("images", "image", "data", "x", "image_syn", "images_syn", "syn_images")
LABEL_KEYS = ("labels", "label", "targets", "target", "y", "label_syn", "labels_syn", "syn_labels")
LABEL_WORDS = ("label", "target", "soft", "logit", "prob")
_ADVICE = "save a dict of tensors: torch.save({'images': images, 'labels': labels}, ...)"
_DEPTH = 4


@dataclass(frozen=True)
class Pair:
    """Images and labels of one set, with the names under which the file holds them.

    Attributes:
        images: ``[N, C, H, W]`` or ``[N, H, W, C]``.
        labels: of each image.
        images_name: of the images, for messages.
        labels_name: of the labels, for messages.
        notes: lines to print about the choices.
    """

    images: Tensor
    labels: Tensor
    images_name: str
    labels_name: str
    notes: tuple[str, ...] = ()


def read_pair(file: Path, *, labels: Path | None, index: int | None, argmax: bool, inside: str = "") -> Pair:
    """The set of images and labels that is meant.

    Args:
        file: of the images, and of the labels where ``labels`` is None; nothing in it is executed.
        labels: the file of the labels.
        index: which of several sets.
        argmax: of soft labels take the largest, instead of refusing them.
        inside: which split of an .npz that has several.

    Raises:
        InputError: names what was found instead.
    """
    content = _content(file)
    if inside:
        if not isinstance(content, Mapping) or inside not in content:
            raise InputError(f"{file}: expected a split {shown(inside)}, found {_outline(content)}")
        content = content[inside]
    if labels is None:
        pairs = list(_pairs(content, f"{file}: ", argmax))
        wanted = (
            f"a dict of images [N, C, H, W] (under {', '.join(IMAGE_KEYS)}) and labels (under "
            f"{', '.join(LABEL_KEYS)}), or a pair of them, found {_outline(content)}{_apart(content, file)}"
        )
        return _one(pairs, file, index, wanted)
    images = [Pair(held, held, name, "") for name, held in _tensors(content, IMAGE_KEYS, {4})]
    found = _one(images, file, index, f"images [N, C, H, W] alone, found {_outline(content)}")
    other = _content(labels)
    several = [Pair(held, held, name, "") for name, held in _tensors(other, LABEL_KEYS, {1, 2})]
    own = _one(several, labels, index if len(several) > 1 else None, f"labels [N], found {_outline(other)}")
    _refuse_soft_labels({"": own.images}, "", f"{labels}: {own.images_name}", len(found.images), argmax)
    notes = found.notes
    if labels != file and any(True for _ in _pairs(content, "", argmax=True)):
        notes += (f"labels are those of {labels}, not those that {file} holds too",)
    return replace(found, labels=own.images, labels_name=f"{labels}: {own.images_name}", notes=notes)


def _content(file: Path) -> object:
    """What a file holds."""
    numpy = file.suffix.lower() in NUMPY
    return _with_channels(read_numpy(file) if numpy else read_content(file, str(file), _ADVICE, mapped=True))


def _with_channels(content: object, depth: int = _DEPTH + 1) -> object:
    """The same, in which images of bytes ``[N, H, W]`` have one channel."""
    if isinstance(content, Tensor):
        return content[..., None] if content.dtype == torch.uint8 and content.ndim == 3 else content
    if depth and isinstance(content, Mapping):
        return {key: _with_channels(value, depth - 1) for key, value in content.items()}
    if depth and isinstance(content, list | tuple):
        held = (_with_channels(value, depth - 1) for value in content)
        return tuple(held) if isinstance(content, tuple) else list(held)
    return content


def _one(pairs: Sequence[Pair], file: Path, index: int | None, wanted: str) -> Pair:
    """The pair that is meant: the only one, or the one that was chosen."""
    if not pairs:
        raise InputError(f"{file}: expected {wanted}")
    names = ", ".join(shown(pair.images_name) for pair in pairs[:5]) + (", ..." if len(pairs) > 5 else "")
    if index is None and len(pairs) > 1:
        raise InputError(
            f"{file}: expected one set of images, found {len(pairs)} ({names}); --index K takes one of them, "
            f"0 to {len(pairs) - 1}"
        )
    if index is not None and not 0 <= index < len(pairs):
        raise InputError(f"--index {index}: expected 0 to {len(pairs) - 1}, {file} holds {len(pairs)} ({names})")
    chosen = pairs[index or 0]
    if len(pairs) == 1:
        return chosen
    return replace(chosen, notes=(f"set {index} of {len(pairs)} is taken: {shown(chosen.images_name)}",))


def _pairs(content: object, file: str, argmax: bool, place: str = "", depth: int = _DEPTH) -> Iterator[Pair]:
    """All pairs of images and labels within dicts, lists and tuples."""
    if isinstance(content, Mapping):
        entries: dict[str, Any] = {str(key): value for key, value in content.items()}
        images = _entry(entries, IMAGE_KEYS, {4})
        labels = _entry(entries, LABEL_KEYS, {1, 2, 3, 4})
        if images and labels:
            count = len(entries[images])
            _refuse_soft_labels(entries, labels, f"{file}{place}", count, argmax)
            yield Pair(entries[images], _tensor(entries[labels]), place + images, place + labels)
            return
    elif isinstance(content, list | tuple):
        parts = [_tensor(part) for part in content] if len(content) == 2 else []
        if len(parts) == 2 and all(part is not None for part in parts) and parts[0].ndim == 4:
            _refuse_soft_labels({"1": parts[1]}, "1", f"{file}{place}", len(parts[0]), argmax)
            yield Pair(parts[0], parts[1], f"{place}0", f"{place}1")
            return
        entries = {str(index): value for index, value in enumerate(content)}
    else:
        return
    if depth:
        for key, value in entries.items():
            yield from _pairs(value, file, argmax, f"{place}{key}.", depth - 1)


def _tensors(
    content: object, keys: tuple[str, ...], dimensions: set[int], place: str = "", depth: int = _DEPTH
) -> Iterator[tuple[str, Tensor]]:
    """The tensor in a file that has only one kind: the whole content, or the value of one of these keys."""
    tensor = _tensor(content)
    if tensor is not None:
        if tensor.ndim in dimensions:
            yield place.rstrip(".") or "the tensor", tensor
    elif isinstance(content, Mapping):
        entries = {str(key): value for key, value in content.items()}
        name = _entry(entries, keys, dimensions)
        if name:
            yield place + name, _tensor(entries[name])
    if tensor is None and depth and isinstance(content, Mapping | list | tuple):
        inner = content.items() if isinstance(content, Mapping) else enumerate(content)
        for key, value in inner:
            if isinstance(value, Mapping | list | tuple):
                yield from _tensors(value, keys, dimensions, f"{place}{key}.", depth - 1)


def _tensor(value: object) -> Any:
    """A tensor, or a list of whole numbers as one; else None."""
    if isinstance(value, list) and value and all(type(number) is int and abs(number) < 2**62 for number in value):
        return torch.tensor(value)
    return value if isinstance(value, Tensor) else None


def _entry(entries: Mapping[str, Any], keys: tuple[str, ...], dimensions: set[int]) -> str | None:
    """The first of these keys that holds a tensor of so many dimensions."""
    lower = {name.lower(): name for name in entries}
    for key in keys:
        value = _tensor(entries.get(lower.get(key, "")))
        if value is not None and value.ndim in dimensions:
            return lower[key]
    return None


def _refuse_soft_labels(entries: Mapping[str, Any], labels: str, place: str, count: int, argmax: bool) -> None:
    """Raise InputError for soft labels, which importing would drop silently, unless ``argmax`` is set."""
    for name, value in entries.items():
        named_so = name == labels or any(word in name.lower() for word in LABEL_WORDS)
        if argmax or not (named_so and isinstance(value, Tensor)):
            continue
        if value.ndim == 2 and len(value) == count and value.shape[1] > 1 and value.is_floating_point():
            raise InputError(
                f"{place}{shown(name)}, a tensor {list(value.shape)}, holds soft labels; a class folder keeps one "
                f"class an image, and a store takes its soft labels from a teacher: --argmax keeps the class of the "
                f"largest alone (or class indexes [{count}] beside them)"
            )


def _apart(content: object, file: Path) -> str:
    """A remedy for a file that has only images."""
    if not any(True for _ in _tensors(content, IMAGE_KEYS, {4})):
        return ""
    try:
        beside = sorted(
            entry.name
            for entry in file.absolute().parent.iterdir()
            if entry.name != file.name and any(word in entry.name.lower() for word in ("label", "target"))
        )
    except OSError:
        beside = []
    lies = f" ({', '.join(map(shown, beside[:3]))} lies beside it)" if beside else ""
    return f"; --labels FILE names the file of their labels{lies}"


def _outline(content: object, *, deep: bool = True) -> str:
    """An outline of a file for a message; with ``deep``, of its entries too."""
    if isinstance(content, Tensor):
        return f"one tensor {list(content.shape)}"
    if isinstance(content, Mapping):
        held = (f"{shown(key)} ({_outline(value, deep=False)})" for key, value in list(content.items())[:10])
        return "a dict of " + (", ".join(held) or "nothing") if deep else "a dict"
    if isinstance(content, list | tuple):
        return f"a {type(content).__name__} of {len(content)}"
    return type(content).__name__


def class_indexes(pair: Pair, file: Path, *, argmax: bool) -> tuple[npt.NDArray[np.int64], tuple[str, ...]]:
    """The class index of each image, int64 ``[N]``, and remarks for the user."""
    labels, count = pair.labels.detach(), len(pair.images)
    notes: tuple[str, ...] = ()
    if argmax and labels.ndim == 2 and len(labels) == count and labels.shape[1] > 1:
        values = labels.to(torch.float64)
        top = values.topk(2, dim=1).values
        undecided = int((~(top[:, 0] > top[:, 1])).sum())
        if undecided or not values.isfinite().all():
            raise InputError(
                f"{file}: {pair.labels_name}: --argmax: {undecided} of {count} rows have no single largest value"
            )
        labels = values.argmax(dim=1)
        notes = (f"labels: the class of the largest of {values.shape[1]} values of each image; the others are dropped",)
    if not count or tuple(labels.shape) not in ((count,), (count, 1)):
        raise InputError(
            f"{file}: {pair.labels_name}: expected one class index for each of the {count} images, "
            f"found a tensor {list(labels.shape)}"
        )
    values = labels.reshape(-1).to(torch.float64)
    indexes = values.to(torch.int64)
    if not torch.equal(indexes.to(torch.float64), values) or int(indexes.min()) < 0:
        raise InputError(f"{file}: {pair.labels_name}: expected class indexes 0, 1, ..., found other numbers")
    return indexes.numpy(), notes


def channels_last(pair: Pair, file: Path) -> Tensor:
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
