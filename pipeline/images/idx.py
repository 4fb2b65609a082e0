"""IDX files, the format of MNIST and its successors: images in one file, class indexes in another."""

from __future__ import annotations

import gzip
import re
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.errors import InputError, reason
from pipeline.images.arrays import ArrayImages, named_classes
from pipeline.images.class_folder import named
from pipeline.images.containers import Containers
from pipeline.images.headers import MAX_PIXELS, MAX_SIDE
from pipeline.images.source_table import Request, SourceKind

_IMAGES = re.compile(r"(.*)images([-.])idx([34])-ubyte(\.gz)?")
_UINT8 = 8
_MOST_BYTES = 1 << 32  # of what a compressed file may hold


def recognises(path: Path) -> bool:
    """Whether a path is an IDX file of images, or a folder that has some."""
    try:
        return (bool(_IMAGES.fullmatch(path.name)) and path.is_file()) or (path.is_dir() and bool(_in_folder(path)))
    except OSError:
        return False


def open_idx(path: Path, request: Request) -> ArrayImages:
    """The images of an IDX file; their classes are those of the file of labels beside it.

    Raises:
        InputError: a file is missing, truncated or no IDX file; a folder has several files of images.
    """
    if path.is_dir():
        found = _in_folder(path)
        if len(found) != 1:
            raise InputError(
                f"{printable(str(path))}: expected one IDX file of images, found {named(found) if found else 'none'}; "
                f"give one of them: --images {printable(str(path))}/{printable(found[-1]) if found else 'FILE'}"
            )
        path = path / found[0]
    labels = _labels_of(path)
    containers = Containers([str(path.absolute()), str(labels.absolute())])
    pixels, classes = _read(path, (3, 4)), _read(labels, (1,)).astype(np.int64)
    if pixels.ndim == 3:
        pixels = pixels[..., None]
    _require_images(path, pixels.shape)
    if len(pixels) != len(classes):
        raise InputError(
            f"{printable(str(labels))}: expected a class for each of the {len(pixels):,} images of {path.name}, found "
            f"{len(classes):,}"
        )
    names, targets = named_classes(printable(str(labels)), classes, request.class_names)
    _, height, width, channels = pixels.shape
    return ArrayImages(
        str(path.absolute()),
        names,
        targets,
        lambda image: pixels[image],
        (height, width, channels),
        lambda: containers.stamp(0),
        request,
    )


KIND = SourceKind(recognises, open_idx)


def _in_folder(folder: Path) -> list[str]:
    """The IDX files of images in a folder; if a file exists compressed too, only the uncompressed one."""
    names = {entry.name for entry in folder.iterdir() if _IMAGES.fullmatch(entry.name)}
    return sorted(name for name in names if name.removesuffix(".gz") == name or name.removesuffix(".gz") not in names)


def _labels_of(path: Path) -> Path:
    """The file of the labels of images."""
    parts = _IMAGES.fullmatch(path.name)
    if parts is None:
        raise InputError(
            f"{printable(str(path))}: expected a name such as train-images-idx3-ubyte, by which the file of labels "
            f"beside it is found"
        )
    name = f"{parts[1]}labels{parts[2]}idx1-ubyte"
    for found in (path.with_name(name + (parts[4] or "")), path.with_name(name), path.with_name(f"{name}.gz")):
        if found.is_file():
            return found
    raise InputError(f"{printable(str(path))}: expected its labels in {printable(name)} beside it, found no such file")


def _read(path: Path, dimensions: tuple[int, ...]) -> npt.NDArray[np.uint8]:
    """The array in an IDX file, mapped if the file is not compressed."""
    shown = printable(str(path))
    try:
        if path.name.endswith(".gz"):
            with gzip.open(path) as file:
                shape = _shape(file.read(4 + 4 * max(dimensions))[:20], dimensions, shown)
                start, count = 4 + 4 * len(shape), int(np.prod(shape, dtype=object))
                if count > _MOST_BYTES:
                    raise InputError(f"{shown}: declares {count:,} bytes; expected at most {_MOST_BYTES:,}")
                file.seek(start)
                data = np.frombuffer(file.read(count), np.uint8)
                more = bool(file.read(1))
        else:
            with path.open("rb") as plain:
                shape = _shape(plain.read(20), dimensions, shown)
            start, count = 4 + 4 * len(shape), int(np.prod(shape, dtype=object))
            held = path.stat().st_size
            more = held > start + count
            data = (
                np.memmap(path, np.uint8, "r", start, (count,)) if 0 < count <= held - start else np.empty(0, np.uint8)
            )
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"{shown}: cannot be read whole, it is truncated or damaged ({reason(error)})") from error
    if len(data) != count:
        raise InputError(f"{shown}: expected {count:,} bytes of an array {list(shape)}, found fewer: it is truncated")
    if more:
        raise InputError(f"{shown}: expected {count:,} bytes of an array {list(shape)}, found more after them")
    return data.reshape(shape)


def _shape(head: bytes, dimensions: tuple[int, ...], shown: str) -> tuple[int, ...]:
    """The shape that the head of a file declares."""
    if len(head) < 4 or head[:2] != b"\0\0" or head[2] != _UINT8 or head[3] not in dimensions:
        raise InputError(
            f"{shown}: expected an IDX file of bytes in {' or '.join(map(str, dimensions))} dimensions, found content "
            f"that begins with {head[:4]!r}"
        )
    sides = head[4 : 4 + 4 * head[3]]
    if len(sides) < 4 * head[3]:
        raise InputError(f"{shown}: ends within its header: it is truncated")
    return tuple(int.from_bytes(sides[at : at + 4]) for at in range(0, len(sides), 4))


def _require_images(path: Path, shape: tuple[int, ...]) -> None:
    """Refuse arrays that are no images."""
    _, height, width, channels = shape
    if channels not in (1, 3) or not 0 < height * width <= MAX_PIXELS or max(height, width) > MAX_SIDE:
        raise InputError(f"{printable(str(path))}: expected images [N, H, W] or [N, H, W, 1 or 3], found {list(shape)}")
