"""Tar files: WebDataset shards, or a class folder in one or several tars; never extracted, one read an image.

Where there are ``.cls`` files, they have the class of the image of the same name: a name, or a number. Elsewhere the
class is the folder, as in a class folder.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from labelstore.command.names import natural_key, printable
from labelstore.errors import InputError
from labelstore.storage_table import as_typed, scheme_of
from pipeline.images import tar_index
from pipeline.images.addresses import files_at
from pipeline.images.class_folder import order_classes
from pipeline.images.class_names import FLAG, read_class_names, refuse_class_names, require_named
from pipeline.images.containers import Containers
from pipeline.images.members import Chosen
from pipeline.images.patterns import CIFAR, COMPRESSED_TARS, files_named, has_wildcards
from pipeline.images.remote import RemoteFiles, read_together
from pipeline.images.source import Listing, Stamp
from pipeline.images.source_table import Request, SourceKind
from pipeline.images.tar_headers import compressed
from pipeline.images.tar_index import TarIndex

SUFFIX = ".tar"
Paths = TypeVar("Paths", bound=Sequence[str])


class TarImages:
    """The images of tar files: an `ImageSource`.

    Attributes:
        listing: the images, by class and name, whichever tar they are in.
    """

    def __init__(self, path: Path, request: Request) -> None:
        """List the tars: their headers are read, unless an index of them is kept and they have not changed.

        Raises:
            InputError: a tar is compressed, truncated or damaged, holds one name twice, or has no classes.
        """
        self._containers: Containers | RemoteFiles
        if scheme_of(path):
            self._containers, inside = files_at(path, "tar"), ""
            _plain(self._containers.paths)
        else:
            paths, inside = shards(path)
            self._containers = Containers(paths)
        index = tar_index.load_or_make(self._containers, str(path), request.kept("tar"))
        chosen = _by_class_files(index, inside, request) if len(index.labels) else _by_folders(index, inside, request)
        images = chosen.images
        self._files, self._offsets = index.files[images], index.offsets[images]
        self.listing = Listing(
            location=str(as_typed(path) if scheme_of(path) else path.absolute()),
            classes=chosen.classes,
            names=chosen.names,
            targets=chosen.targets,
            sizes=index.sizes[images],
            stamps=self._containers.times[self._files],
            layout=layout_of(self._files, self._offsets),
            left_out=index.members.left_out,
            remote=bool(scheme_of(path)),
        )
        self._images, self._paths = images, index.members.paths

    def place(self, image: int) -> str:
        """The tar of an image, and its path in it."""
        return f"{self._containers.paths[int(self._files[image])]}: {self._paths[int(self._images[image])]}"

    def stamp(self, image: int) -> Stamp:
        """The image's size, and the modification time of its tar."""
        return int(self.listing.sizes[image]), self._containers.stamp(int(self._files[image]))

    def open(self, image: int) -> BytesIO:
        """The image in memory."""
        return BytesIO(self.read(image))

    def read(self, image: int) -> bytes:
        """The bytes of an image."""
        return self._containers.read(int(self._files[image]), int(self._offsets[image]), int(self.listing.sizes[image]))

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The bytes of some images, read one by one; at an address many at a time."""
        return read_together(self, images) if self.listing.remote else map(self.read, images)


def recognises(path: Path) -> bool:
    """Whether a path is a tar, a folder of tars and nothing else, a pattern of tars, or a folder in one of these."""
    try:
        return _parted(path) is not None
    except OSError:
        return False


KIND = SourceKind(recognises, TarImages)


def _parted(path: Path) -> tuple[Path, str] | None:
    """The tar, folder of tars or pattern that a path names, and the folder in it; None if there is none."""
    for place in (path, *path.parents):
        inside = "/".join(path.parts[len(place.parts) :])
        if place.is_dir():
            pattern = "{" in inside or has_wildcards(inside)  # of other files in a folder that has tars too
            return (place, inside) if not pattern and _holds_tars(place) else None
        name = place.name.lower()
        if name.endswith((SUFFIX, *COMPRESSED_TARS)):
            return None if CIFAR.match(name) else (place, inside)
        if place.exists():
            return None
    return None


def _holds_tars(folder: Path) -> bool:
    """Whether a folder has tars, and no folders, which could be classes."""
    found = [entry for entry in os.scandir(folder) if not entry.name.startswith(".")]
    tars = any(entry.name.lower().endswith(SUFFIX) for entry in found)
    return tars and not any(entry.is_dir() for entry in found)


def shards(path: Path) -> tuple[list[str], str]:
    """The tars that ``--images`` names, in order, and the folder within them.

    Raises:
        InputError: none of them is there, or they are compressed.
    """
    place, inside = _parted(path) or (path, "")
    if place.is_dir():
        found = [str(entry.absolute()) for entry in place.iterdir() if entry.name.lower().endswith(SUFFIX)]
        if not found:
            raise InputError(f"{printable(str(path))}: expected tar files, found none")
        return sorted(found, key=natural_key), inside
    return _plain(files_named(place)), inside


def _plain(paths: Paths) -> Paths:
    """Tars, none of them compressed by its name."""
    for path in paths:
        if path.lower().endswith(COMPRESSED_TARS):
            raise compressed(path)
    return paths


def _by_folders(index: TarIndex, inside: str, request: Request) -> Chosen:
    """Images whose class is their folder."""
    refuse_class_names(Path(index.members.location), request.class_names)
    return index.members.choose(inside, request.class_order, request.leave_out)


def _by_class_files(index: TarIndex, inside: str, request: Request) -> Chosen:
    """Images whose class is in a ``.cls`` of the same name; the names of images begin with the class."""
    members = index.members
    keep = np.flatnonzero([not inside or f"{folder}/".startswith(f"{inside}/") for folder in members.holding])
    images = np.flatnonzero(np.isin(members.folder_of, keep))
    lost = images[index.classes[images] < 0]
    if len(lost) or not len(images):
        found = f"none for {printable(members.paths[lost[0]])}" if len(lost) else "no image"
        raise InputError(f"{members.location}: expected images, each with a .cls as there are for some, found {found}")
    pairs = _pairs(index, images)
    labels = {number: index.labels[number] for number, _ in pairs}
    if all(label.isdecimal() for label in labels.values()):
        classes, targets = _numbered(index, pairs, {number: int(label) for number, label in labels.items()}, request)
    else:
        refuse_class_names(Path(members.location), request.class_names)
        classes = order_classes(set(labels.values()), request.class_order)
        targets = {number: classes.index(label) for number, label in labels.items()}
    if not inside and all(classes[targets[number]] == folder for number, folder in pairs):
        return members.choose("", request.class_order, request.leave_out, classes)
    gone, keys = frozenset(request.leave_out), []
    for image in images.tolist():
        target, path = targets[int(index.classes[image])], members.paths[image]
        whole = path if path.startswith(f"{classes[target]}/") else f"{classes[target]}/{path}"
        if whole not in gone:
            folder, _, file = whole.rpartition("/")
            keys.append((target, folder, file, image))
    keys.sort()
    return members.chosen(classes, keys)


def _pairs(index: TarIndex, images: npt.NDArray[np.int64]) -> set[tuple[int, str]]:
    """Each label with the outermost folders of its images."""
    holding = index.members.holding
    joined = index.classes[images] * len(holding) + index.members.folder_of[images]
    labels, folders = np.divmod(np.unique(joined), len(holding))
    return {
        (label, holding[folder].split("/")[0]) for label, folder in zip(labels.tolist(), folders.tolist(), strict=True)
    }


def _numbered(
    index: TarIndex, pairs: set[tuple[int, str]], numbers: dict[int, int], request: Request
) -> tuple[list[str], dict[int, int]]:
    """Class names, and the target of each label, of labels that are numbers.

    The names are those of --class-names, or of the folders, if each class has its own folder.
    """
    members = index.members
    if request.class_names is not None:
        names = read_class_names(request.class_names)
        require_named(f"{members.location}: .cls", max(numbers.values()), names)
        return list(names), numbers
    folders = {folder for _, folder in pairs}
    if "" in folders or not len(pairs) == len(folders) == len(numbers):
        raise InputError(
            f"{members.location}: the classes are numbers (.cls), up to {max(numbers.values())}, and their names are "
            f"not known; {FLAG} gives them: comma-separated, or a file with one a line or of JSON"
        )
    ranks = {label: rank for rank, label in enumerate(sorted(numbers, key=numbers.__getitem__))}
    folder_of = dict(pairs)
    return [folder_of[label] for label in ranks], ranks


def layout_of(files: npt.NDArray[np.int64], offsets: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """Where each image follows when all files are read from front to back."""
    layout = np.empty(len(files), np.int64)
    layout[np.lexsort((offsets, files))] = np.arange(len(files))
    return layout
