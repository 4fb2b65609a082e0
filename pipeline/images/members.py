"""The images of an archive by their paths: the same classes, in the same order, as of a class folder of these files."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NoReturn

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable, same_form
from labelstore.errors import InputError
from pipeline.images.class_folder import SUFFIXES, instead, named, order_classes, require_one_form
from pipeline.images.file_formats import readable
from pipeline.images.kinds import HEAD_BYTES, other_kind
from pipeline.images.left_out import LeftOut, left_out_kind
from pipeline.images.opening import ClassOrder

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
    """What an archive holds, as it is read entry by entry.

    Attributes:
        location: of the archive, for messages.
        paths: of its images, relative, with ``/``.
        folders: all folders that hold something, or are entries of their own.
        left_out: what is no image.
    """

    location: str
    paths: list[str] = field(default_factory=list)
    folders: set[str] = field(default_factory=set)
    left_out: LeftOut = field(default_factory=LeftOut)

    def path(self, name: str) -> str | None:
        """The path of an entry as it is listed; None for what systems and tools leave, which is counted.

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
        """A folder, and those that it lies in."""
        while path and path not in self.folders:
            self.folders.add(path)
            path = path.rpartition("/")[0]

    def is_image(self, path: str, head: bytes | None) -> bool:
        """Whether a file is an image, by its name or its first bytes; other files are counted.

        Args:
            path: of the file.
            head: its first bytes, ``HEAD_BYTES`` of them; None where the name suffices (`named_as_image`).
        """
        self.add_folder(path.rpartition("/")[0])
        if named_as_image(path) or (head is not None and readable(head[:HEAD_BYTES])):
            return True
        self.left_out.add(other_kind((head or b"")[:HEAD_BYTES], path), path)
        return False

    def choose(
        self,
        inside: str,
        class_order: ClassOrder,
        leave_out: Collection[str],
    ) -> Chosen:
        """The images below a folder of the archive, by class, then folder, then file name."""
        before = f"{inside}/" if inside else ""
        classes = {
            path[len(before) :].split("/")[0] for path in self.folders if path.startswith(before) and path != inside
        }
        if not classes:
            self._refuse_flat(inside)
        require_one_form(self.location, classes)
        order = order_classes(classes, class_order)
        targets = {name: target for target, name in enumerate(order)}
        gone = frozenset(map(same_form, leave_out))
        keys: list[tuple[int, str, str, int]] = []
        for index, path in enumerate(self.paths):
            if not path.startswith(before):
                continue
            folder, _, file = path[len(before) :].rpartition("/")
            if not folder:
                self.left_out.add_loose(path)
            elif not gone or same_form(path[len(before) :]) not in gone:
                keys.append((targets[folder.split("/")[0]], folder, file, index))
        keys.sort()
        return self.chosen(order, keys)

    def chosen(self, classes: Sequence[str], keys: Sequence[tuple[int, str, str, int]]) -> Chosen:
        """Images in the order of their keys: (target, folder, file, index)."""
        found = np.array([key[0] for key in keys], np.int64)
        counts = np.bincount(found, minlength=len(classes))
        empty = [name for name, count in zip(classes, counts, strict=True) if not count]
        if empty:
            raise InputError(
                f"{self.location}: expected images in every class, found none in {named(empty)}; add JPEG, PNG, WebP "
                f"or PPM files or leave the class out{instead(self.left_out)}"
            )
        names = [f"{folder}/{file}" for _, folder, file, _ in keys]
        for one, other in pairwise(keys):
            if one[:3] == other[:3]:
                self.refuse_twice(f"{one[1]}/{one[2]}")
        return Chosen(tuple(classes), np.array([key[3] for key in keys], np.int64), names, found)

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
            f"{self.location}: expected a folder for each class, found none and {len(self.paths):,} images"
            f"{instead(self.left_out)}"
        )


def named_as_image(path: str) -> bool:
    """Whether a file has the suffix of an image: it is taken for one without a look at it."""
    return path.lower().endswith(SUFFIXES)
