"""Tensor files, .npy and .npz as image sources, where nothing is to be chosen: uint8 images with class indexes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from labelstore.command.names import printable
from labelstore.errors import InputError
from pipeline.images.arrays import ArrayImages, Int64Array, named_classes
from pipeline.images.containers import Containers
from pipeline.images.places import Place, not_there, split
from pipeline.images.source_table import Request, SourceKind

if TYPE_CHECKING:
    from torch import Tensor

    from pipeline.importing.pairs import Pair

SUFFIXES = (".pt", ".pth", ".safetensors", ".npz", ".npy")


def recognises(path: Path) -> bool:
    """Whether a path is a file of tensors or arrays, or a split in an .npz."""
    place = split(path)
    if place is None:
        return False
    suffix = place.file.suffix.lower()
    return suffix in SUFFIXES if not place.inside else suffix == ".npz"


def open_tensors(path: Path, request: Request) -> ArrayImages:
    """The images of a file as `giftwrap import` finds them; grey ones ``[N, H, W]`` too.

    Raises:
        InputError: the file needs a choice that only `giftwrap import` takes, or holds something else.
    """
    place = split(path)
    if place is None:
        raise not_there(path)
    images, pair = _images(place)
    labels, targets = _labels(pair, place.file, request)
    containers = Containers([str(place.file.absolute())])
    _, height, width, channels = images.shape
    return ArrayImages(
        str(path.absolute()),
        labels,
        targets,
        lambda image: images[image].numpy(),
        (height, width, channels),
        lambda: containers.stamp(0),
        request,
    )


KIND = SourceKind(recognises, open_tensors)


def _images(place: Place) -> tuple[Tensor, Pair]:
    """The images of a file, uint8 ``[N, H, W, C]``, and what it holds."""
    import torch

    from pipeline.importing.pairs import channels_last, read_pair

    file = place.file
    try:
        pair = read_pair(file, labels=_beside(file), index=None, argmax=False, inside=place.inside)
        images = channels_last(pair, file)
    except InputError as error:
        flags = [flag for flag in ("--index", "--labels", "--argmax") if flag in str(error)]
        if not flags:
            raise
        one = f"; or give one split: --images {printable(str(file))}/train" if file.suffix.lower() == ".npz" else ""
        raise InputError(f"{error}; {_importing(file, flags[0])} reads it{one}") from error
    if images.dtype != torch.uint8:
        raise InputError(
            f"{file}: {pair.images_name}: expected uint8 images, found {images.dtype}, which can be read in several "
            f"ways; {_importing(file, '--mean M --std S')} makes a class folder of them"
        )
    return images, pair


def _labels(pair: Pair, file: Path, request: Request) -> tuple[tuple[str, ...], Int64Array]:
    """Class names and targets."""
    from pipeline.importing.pairs import class_indexes

    indexes, _ = class_indexes(pair, file, argmax=False)
    return named_classes(f"{file}: {pair.labels_name}", indexes, request.class_names)


def _beside(file: Path) -> Path | None:
    """The file of the labels of an .npy of images, which holds one array; None for other files."""
    if file.suffix.lower() != ".npy":
        return None
    other = file.with_name(file.name.replace("images", "labels"))
    if other == file or not other.is_file():
        raise InputError(
            f"{file}: holds one array; expected images in NAME_images.npy and their classes in NAME_labels.npy "
            f"beside it; or {_importing(file, '--labels FILE')}"
        )
    return other


def _importing(file: Path, flags: str) -> str:
    return f"`giftwrap import {printable(str(file))} --out DIR {flags}`"
