"""The images of any source, byte for byte, as a class folder or as tar shards."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.durable import removing
from labelstore.durable.newfile import new_file
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from pipeline.images import tar_index
from pipeline.images.containers import Containers
from pipeline.images.left_out import left_out_kind
from pipeline.images.opening import open_images
from pipeline.images.source import ImageSource
from pipeline.importing.config import ImportConfig
from pipeline.importing.importing import MAX_NAME, make_aside, remove_aside, require_empty
from pipeline.networks.file_kinds import shown

Progress = Callable[[int, int], None]
_SPAN = 64  # images that a thread copies in one task


@dataclass(frozen=True)
class CopyReport:
    """The result of a copy.

    Attributes:
        images: number of images.
        classes: number of classes.
        shards: number of tar shards; 0 for a class folder.
        notes: lines to print.
    """

    images: int
    classes: int
    shards: int
    notes: tuple[str, ...]


def copy_images(config: ImportConfig, progress: Progress | None = None) -> CopyReport:
    """Write the images that the flags name.

    A class folder appears whole or not at all. Of tar shards each does, and the same call writes those that are
    missing.

    Raises:
        InputError: a class or an image has a name that no folder takes; something is in the way; an image cannot be
            read.
    """
    require_apart({"--out": config.out}, {"the images": config.data})
    to_shards = config.shards is not None or config.shard_mib is not None
    order = config.class_order if to_shards or config.class_order != "auto" else "bytes"  # a folder keeps none
    source = open_images(config.data, order, options=config.source)
    listing = source.listing
    _require_names(listing.classes, listing.names)
    shards = _shards(config, source)
    try:
        if shards:
            _write_shards(source, config.out, shards, progress)
        else:
            _write_folder(source, require_empty(config.out.resolve()), progress)
    except OSError as error:
        raise InputError(f"{config.out}: cannot be written ({error.strerror})") from error
    notes = tuple(filter(None, [*listing.left_out.warnings, listing.left_out.line]))
    if not shards and list(listing.classes) != sorted(listing.classes):
        notes += ("the classes have another order than their names: a store made of the folder has the names' order",)
    return CopyReport(len(listing.names), len(listing.classes), shards, notes)


def _require_names(classes: Sequence[str], names: Sequence[str]) -> None:
    """Refuse names that would not be read again from a class folder."""
    for name in classes:
        usable = "/" not in name and name.isprintable() and name == name.strip() and not left_out_kind(name)
        if not usable or len(name.encode(errors="replace")) > MAX_NAME:
            raise InputError(f"class '{shown(name)}': cannot name a folder; --class-names may give others")
    for name in names:
        if any(left_out_kind(part) for part in name.split("/")):
            raise InputError(f"image '{shown(name)}': is hidden or named as a file of a system, and would not be read")


def _shards(config: ImportConfig, source: ImageSource) -> int:
    """The number of shards to write; 0 for a class folder."""
    sizes = source.listing.sizes
    if config.shard_mib is None:
        count = config.shards or 0
    elif not sizes.all():
        raise InputError("--shard-mib: the sizes of these images are not known before they are read; give --shards")
    else:
        count = -(-int(sizes.sum()) // (config.shard_mib << 20))
    if count > len(sizes):
        raise InputError(f"--shards: expected at most one for each of the {len(sizes):,} images, found {count:,}")
    return count


def _write_folder(source: ImageSource, out: Path, progress: Progress | None) -> None:
    """Write a class folder."""
    aside = make_aside(out)
    names = source.listing.names
    paths = [aside / name for name in names]
    order = np.arange(len(names)) if source.listing.layout is None else np.argsort(source.listing.layout, kind="stable")
    spans = [order[start : start + _SPAN].tolist() for start in range(0, len(order), _SPAN)]
    try:
        for folder in dict.fromkeys(path.parent for path in paths):
            folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor() as pool:
            for done, _ in enumerate(pool.map(lambda span: _copy(source, span, paths), spans), 1):
                if progress:
                    progress(min(done * _SPAN, len(names)), len(names))
        removing.move_folder(aside, out)
    finally:
        remove_aside(aside, paths)


def _copy(source: ImageSource, images: Sequence[int], paths: Sequence[Path]) -> None:
    """Write some images, a file each."""
    for image, data in zip(images, _read(source, images), strict=True):
        with paths[image].open("xb") as file:
            file.write(data)


def _read(source: ImageSource, images: Sequence[int]) -> Iterator[bytes]:
    """The bytes of some images; InputError names one that cannot be read."""
    contents = source.read_many(images)
    for image in images:
        try:
            yield next(contents)
        except OSError as error:
            raise InputError(f"{printable(source.place(image))}: cannot be read ({error.strerror})") from error


def _write_shards(source: ImageSource, out: Path, count: int, progress: Progress | None) -> None:
    """Write those of the shards that are not there."""
    parts = _parts(source, count)
    digits = max(3, len(str(count - 1)))
    paths = [out / f"shards-{number:0{digits}d}.tar" for number in range(count)]
    out.mkdir(parents=True, exist_ok=True)
    others = {path.name for path in out.iterdir()} - {path.name for path in paths}
    if others:
        raise InputError(
            f"{out}: expected a folder that is absent or empty, or some of these {count:,} shards, found "
            f"{printable(min(others))}"
        )
    done = 0
    for path, images in zip(paths, parts, strict=True):
        if os.path.lexists(path):
            _require_shard(path, source, images)
        else:
            with new_file(path) as file:
                write_shard(file, source, images)
        done += len(images)
        if progress:
            progress(done, len(source.listing.names))


def _parts(source: ImageSource, count: int) -> list[list[int]]:
    """The images of each shard, in order.

    Dealt out in turn, so that each shard has all classes. Images that are read with their neighbours, as those of
    Parquet files, whose sizes are not known either, stay together in stored order.
    """
    listing = source.listing
    if listing.layout is not None and not listing.sizes.all():
        found: list[npt.NDArray[np.int64]] = np.array_split(np.argsort(listing.layout, kind="stable"), count)
        return [part.tolist() for part in found]
    return [list(range(first, len(listing.names), count)) for first in range(count)]


def write_shard(file: BinaryIO, source: ImageSource, images: Sequence[int]) -> None:
    """Write images as a tar: each under its name, and its class as a number in a ``.cls`` beside it."""
    listing = source.listing
    labelled: set[str] = set()
    with tarfile.TarFile(fileobj=file, mode="w") as tar:
        for image, data in zip(images, _read(source, images), strict=True):
            name = listing.names[image]
            label = f"{_stem(name)}.cls"
            _add(tar, name, data)
            if label not in labelled:
                _add(tar, label, str(int(listing.targets[image])).encode())
                labelled.add(label)


def _stem(name: str) -> str:
    """A name without its suffix."""
    folder, _, file = name.rpartition("/")
    return f"{folder}/{file.rpartition('.')[0] or file}"


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    """Add a file, with no owner and no time: the same images give the same tar."""
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, BytesIO(data))


def _require_shard(path: Path, source: ImageSource, images: Sequence[int]) -> None:
    """Refuse a file that is not the shard of these images."""
    try:
        index = tar_index.make(Containers([str(path)]), printable(str(path)))
        found = dict(zip(index.members.paths, index.sizes.tolist(), strict=True))
    except InputError:
        found = {}
    listing = source.listing
    known = {listing.names[image]: int(listing.sizes[image]) for image in images}
    if found.keys() != known.keys() or any(size not in (0, found[name]) for name, size in known.items()):
        raise InputError(
            f"{path}: exists already, and is not the shard of these images: expected {len(images):,} of them; move it "
            f"away, or give another --out"
        )
