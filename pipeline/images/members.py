"""The images of an archive by their paths: the same classes, in the same order, as of a class folder of these files."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from labelstore.command.console import quantity
from labelstore.command.names import printable, same_form
from labelstore.errors import InputError
from pipeline.images.class_folder import SUFFIXES, instead, named, order_classes, require_one_form
from pipeline.images.file_formats import readable
from pipeline.images.kinds import HEAD_BYTES, other_kind
from pipeline.images.left_out import LeftOut, left_out_kind
from pipeline.images.source_table import ClassOrder

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Chosen:
    """The images of an archive, in order.

    Attributes:
        classes: their names, in target order.
        images: of the M members those that are images of a class, int64 ``[N]``.
        names: of these images: their paths below the folder of classes.
        targets: int64 ``[N]``.
    """

    classes: tuple[str, ...]
    images: Int64Array
    names: list[str]
    targets: Int64Array


@dataclass(eq=False, slots=True)
class Members:
    """The content of an archive, collected entry by entry.

    Attributes:
        location: of the archive, for messages.
        paths: of its images, relative, with ``/``.
        folders: all folders that contain something, or are entries.
        left_out: what is no image.
        holding: the folders that images are in, once `sort` has been called.
        folder_of: of each image the index of its folder in ``holding``, int64 ``[M]``, likewise.
    """

    location: str
    paths: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    left_out: LeftOut = field(default_factory=LeftOut)
    holding: list[str] = field(default_factory=list)
    folder_of: Int64Array = field(default_factory=lambda: np.empty(0, np.int64))

    def path(self, name: str) -> str | None:
        """The path of an entry in the listing; None for files of systems and tools, which are counted.

        Raises:
            InputError: a path that leaves the archive, or is no UTF-8.
        """
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if name.startswith("/") or ".." in parts or "\0" in name:
            raise InputError(
                f"{self.location}: expected relative paths, found {printable(name)!r}; make the archive in the folder "
                f"that holds the class folders"
            )
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"{self.location}: {name!r}: expected a name in UTF-8; rename it") from error
        for depth, part in enumerate(parts, 1):
            if kind := left_out_kind(part):
                self.left_out.add(kind, "/".join(parts[:depth]))
                return None
        return "/".join(parts)

    def add_folder(self, path: str) -> None:
        """Add a folder and its parents."""
        while path and path not in self.folders:
            self.folders.add(path)
            path = path.rpartition("/")[0]

    def is_image(self, path: str, head: bytes | None) -> bool:
        """Whether a file is an image, by its name or its first bytes; other files are counted.

        Args:
            path: of the file.
            head: its first bytes, ``HEAD_BYTES`` of them; None if the name suffices (`named_as_image`).
        """
        self.add_folder(path.rpartition("/")[0])
        if named_as_image(path) or (head is not None and readable(head[:HEAD_BYTES])):
            return True
        self.left_out.add(other_kind((head or b"")[:HEAD_BYTES], path), path)
        return False

    def sort(self, where: Callable[[int, int], str] = lambda _one, _other: "") -> Int64Array:
        """Put the paths in the order of their folders and names; where each was before, int64 ``[M]``.

        Args:
            where: called with the places of two images of one path; where they are, for the message.

        Raises:
            InputError: two images have one path.
        """
        split = [path.rpartition("/") for path in self.paths]
        order = sorted(range(len(split)), key=split.__getitem__)
        for one, other in pairwise(order):
            if split[one] == split[other]:
                self.refuse_twice(self.paths[one], where(one, other))
        self.paths = [self.paths[index] for index in order]
        folders = [split[index][0] for index in order]
        self.holding = list(dict.fromkeys(folders))
        numbers = {folder: number for number, folder in enumerate(self.holding)}
        self.folder_of = np.array([numbers[folder] for folder in folders], np.int64)
        return np.array(order, np.int64)

    def choose(
        self,
        inside: str,
        class_order: ClassOrder,
        leave_out: Collection[str],
        classes: Sequence[str] | None = None,
    ) -> Chosen:
        """The images below a folder, by class, then folder, then file name; the paths have been sorted.

        Args:
            inside: the folder whose folders are the classes.
            class_order: their order.
            leave_out: names of images that are not chosen.
            classes: the classes in order, where they are known.
        """
        before = f"{inside}/" if inside else ""
        if classes is None:
            below = {path[len(before) :] for path in self.folders if path.startswith(before) and path != inside}
            found = {path.split("/")[0] for path in below}
            if not found:
                self._refuse_flat(inside)
            require_one_form(self.location, found)
            classes = order_classes(found, class_order)
        images, of_folder = self._in_order(before, {name: target for target, name in enumerate(classes)})
        if before or len(images) < len(self.paths) or (np.diff(images) != 1).any():
            names = [self.paths[image][len(before) :] for image in images.tolist()]
        else:  # all of them, in their order
            names = self.paths
        if leave_out:
            gone = frozenset(map(same_form, leave_out))
            kept = [place for place, name in enumerate(names) if same_form(name) not in gone]
            images, names = images[kept], [names[place] for place in kept]
        return self.require_full(Chosen(tuple(classes), images, names, of_folder[self.folder_of[images]]))

    def _in_order(self, before: str, targets: Mapping[str, int]) -> tuple[Int64Array, Int64Array]:
        """The images whose paths begin with ``before``, in order, and the target of each folder of images."""
        of_folder = np.full(len(self.holding), -1, np.int64)
        places = []
        for number, folder in enumerate(self.holding):
            if f"{folder}/" == before or not folder:  # beside the classes
                for image in np.flatnonzero(self.folder_of == number).tolist():
                    self.left_out.add_loose(self.paths[image])
            elif folder.startswith(before):
                rest = folder[len(before) :]
                of_folder[number] = targets[rest.split("/")[0]]
                places.append((int(of_folder[number]), rest, number))
        ranks = np.full(len(self.holding), -1, np.int64)
        ranks[[number for _, _, number in sorted(places)]] = np.arange(len(places))
        images = np.flatnonzero(ranks[self.folder_of] >= 0)
        return images[np.argsort(ranks[self.folder_of[images]], kind="stable")], of_folder

    def chosen(self, classes: Sequence[str], keys: Sequence[tuple[int, str, str, int]]) -> Chosen:
        """Images in the order of their keys: (target, folder, file, index)."""
        names = [f"{folder}/{file}" for _, folder, file, _ in keys]
        for one, other in pairwise(keys):
            if one[:3] == other[:3]:
                self.refuse_twice(f"{one[1]}/{one[2]}")
        images, targets = (np.array([key[part] for key in keys], np.int64) for part in (3, 0))
        return self.require_full(Chosen(tuple(classes), images, names, targets))

    def require_full(self, chosen: Chosen) -> Chosen:
        """Refuse classes without images."""
        counts = np.bincount(chosen.targets, minlength=len(chosen.classes))
        if empty := [name for name, count in zip(chosen.classes, counts, strict=True) if not count]:
            raise InputError(
                f"{self.location}: expected images in every class, found none in {named(empty)}; add JPEG, PNG, WebP "
                f"or PPM files or leave the class out{instead(self.left_out)}"
            )
        return chosen

    def refuse_twice(self, path: str, where: str = "") -> NoReturn:
        """Raise for a path that two images have."""
        raise InputError(
            f"{self.location}: expected each image once, found {printable(path)!r} twice{where}; remove or rename one"
        )

    def _refuse_flat(self, inside: str) -> NoReturn:
        """Raise for an archive without class folders."""
        if inside and self.folders:
            tops = sorted({path.split("/")[0] for path in self.folders})
            raise InputError(
                f"{self.location}: no folder {printable(inside)!r} with classes in it, found {named(tops)}"
            )
        raise InputError(
            f"{self.location}: expected a folder for each class, found none and {quantity(len(self.paths), 'image')}"
            f"{instead(self.left_out)}"
        )


def named_as_image(path: str) -> bool:
    """Whether a file has the suffix of an image: it is taken for one without a look at it."""
    return path.lower().endswith(SUFFIXES)
