"""The class folder as a source of images: list its classes and files, without opening images."""

from __future__ import annotations

import os
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from labelstore.command.console import quantity
from labelstore.command.names import natural_key, printable, same_form, told_apart
from labelstore.errors import InputError
from pipeline.images.class_names import refuse_class_names
from pipeline.images.file_formats import readable
from pipeline.images.kinds import HEAD_BYTES, other_kind
from pipeline.images.left_out import LeftOut, left_out_kind
from pipeline.images.provenance import RECORD_FILES
from pipeline.images.source import ImageFile, Listing, Stamp
from pipeline.images.source_table import SOURCES, ClassOrder, Request, SourceKind

FORMER_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
"""The suffixes by which versions before 0.2 recognised images."""
SUFFIXES = (*FORMER_SUFFIXES, ".jfif", ".jpe", ".pjpeg", ".pjp")
"""Files with these suffixes count as images without being opened; one with another header is an error."""


class ClassFolder:
    """The images of a class folder: an `ImageSource`.

    Attributes:
        listing: the images, as `list_images` finds them.
    """

    def __init__(self, root: Path, class_order: ClassOrder = "auto", leave_out: Collection[str] = ()) -> None:
        """List the folder; see `list_images` for arguments and errors."""
        self.listing = list_images(root, class_order, leave_out)

    def place(self, image: int) -> str:
        """The path of an image's file."""
        return f"{self.listing.location}/{self.listing.names[image]}"

    def stamp(self, image: int) -> Stamp:
        """Bytes and modification time in ns of an image's file."""
        status = os.stat(self.place(image))  # noqa: PTH116  (a Path for each of millions is slow)
        return status.st_size, status.st_mtime_ns

    def open(self, image: int) -> ImageFile:
        """An image's file."""
        return open(self.place(image), "rb")  # noqa: PTH123  (as above; the caller closes it)

    def read(self, image: int) -> bytes:
        """The bytes of an image's file."""
        # As few system calls as possible, since Python threads contend for the GIL after each: 20 us instead of 34.
        file = os.open(self.place(image), os.O_RDONLY)
        try:
            size = os.fstat(file).st_size
            data = os.read(file, size)
            while len(data) < size and (more := os.read(file, size - len(data))):
                data += more
            return data
        finally:
            os.close(file)

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The bytes of some files, read one by one."""
        return map(self.read, images)


def open_folder(path: Path, request: Request) -> ClassFolder:
    """A class folder, as `--images` gives it."""
    refuse_class_names(path, request.class_names)
    return ClassFolder(path, request.class_order, request.leave_out)


KIND = SourceKind(lambda _path: False, open_folder)  # the default if nothing else recognises a path


def list_images(root: Path, class_order: ClassOrder = "auto", leave_out: Collection[str] = ()) -> Listing:
    """List a class folder in the order of torchvision's ImageFolder: by class, then folder, then file name.

    Only direct subfolders of ``root`` are classes; images may be anywhere below them. Hidden files and those of
    operating systems and tools are not read. Files with the suffix of an image count as images; other files are opened,
    and count if their first bytes are those of an image.

    Args:
        root: the class folder.
        class_order: order of the classes.
        leave_out: relative paths that are not listed.

    Raises:
        InputError: for a missing folder, no classes, a class without images, a link that is broken, circular or leads
        out of the folder, and class names of ambiguous order or in two Unicode forms.
    """
    base = _real(root)
    walk = _Walk(base, frozenset(leave_out))
    names, loose = walk.class_names()
    if not names:
        raise InputError(
            f"{_shown(root)}: expected one subfolder for each class, found none (and {quantity(loose, 'image')} "
            f"directly in it); "
            f"put the images of each class into a subfolder named after it"
        )
    require_one_form(base, names)
    classes = order_classes(names, class_order)
    counts = []
    for name in classes:
        before = len(walk.paths)
        walk.add_class(name)
        counts.append(len(walk.paths) - before)
    empty = [name for name, count in zip(classes, counts, strict=True) if not count]
    if empty:
        raise InputError(
            f"{_shown(root)}: expected images in every class folder, found none in {named(empty)}; "
            f"add JPEG, PNG, WebP or PPM files or remove the folder{instead(walk.left_out)}"
        )
    return Listing(
        location=base,
        classes=tuple(classes),
        names=walk.paths,
        targets=np.repeat(np.arange(len(classes), dtype=np.int64), counts),
        sizes=np.array(walk.sizes, np.int64),
        stamps=np.array(walk.mtimes, np.int64),
        left_out=walk.left_out,
        own_files=True,
        former_suffixes=FORMER_SUFFIXES,
    )


def order_classes(names: Iterable[str], class_order: ClassOrder) -> list[str]:
    """Class names in target order.

    Raises:
        InputError: the names contain numbers, so that their natural order differs from their byte order, and none of
            the two was chosen.
    """
    by_bytes = sorted(names)  # code points and UTF-8 bytes sort alike
    if class_order == "bytes":
        return by_bytes
    natural = sorted(by_bytes, key=natural_key)
    if class_order == "auto" and natural != by_bytes:
        first = next(i for i, (ours, theirs) in enumerate(zip(by_bytes, natural, strict=True)) if ours != theirs)
        start = max(first - 2, 0)
        raise InputError(
            f"class folders have numbers in their names that sort differently as text "
            f"({_part(by_bytes, start)}) and as numbers ({_part(natural, start)}); choose the order the teacher was "
            f"trained with: --class-order bytes (as torchvision's ImageFolder) or --class-order numeric"
        )
    return natural


def _part(names: list[str], start: int) -> str:
    """The names from ``start`` on, for messages."""
    return f"{'..., ' if start else ''}{named(names[start:])}"


def require_one_form(base: str, names: Iterable[str]) -> None:
    """Raise InputError for two class folders whose names differ only in their Unicode form."""
    seen: dict[str, str] = {}
    for name in sorted(names):
        other = seen.setdefault(same_form(name), name)
        if other != name:
            ours, theirs = told_apart(other, name)
            raise InputError(
                f"{printable(base)}: two class folders have one name in two Unicode forms, {ours} and {theirs}; "
                f"merge them or rename one"
            )


def instead(left_out: LeftOut) -> str:
    """The files that were found instead of images, for messages."""
    found = [*left_out.warnings, *filter(None, [left_out.line])]
    return f" ({'; '.join(found)})" if found else ""


def _shown(path: str | Path) -> str:
    """A path as one printable line, for messages."""
    return printable(str(path))


def named(names: Collection[str], limit: int = 5) -> str:
    """The first names of a list, for messages."""
    shown = ", ".join(repr(name) for name in list(names)[:limit])
    return f"{shown} and {len(names) - limit} more" if len(names) > limit else shown


class _Walk:
    """Collects the files below a folder, class by class."""

    def __init__(self, base: str, leave_out: frozenset[str]) -> None:
        self.base = base
        self.leave_out = leave_out
        # Paths that exist only in another Unicode form.
        moved = [path for path in leave_out if not path.isascii() and not os.path.lexists(f"{base}/{path}")]
        self.leave_out_forms = frozenset(map(same_form, moved))
        self.paths: list[str] = []
        self.sizes: list[int] = []
        self.mtimes: list[int] = []
        self.left_out = LeftOut()

    def class_names(self) -> tuple[list[str], int]:
        """Names of the class folders, and the number of images next to them."""
        names, loose = [], 0
        for entry in self._entries(""):
            if entry.name in RECORD_FILES:
                continue
            if entry.is_symlink():
                self._resolve(entry.path)
            if entry.is_dir():
                names.append(entry.name)
            elif self._is_image(entry, entry.name):
                loose += 1
                self.left_out.add_loose(entry.name)
        return names, loose

    def add_class(self, name: str) -> None:
        """Add the images of one class, folder by folder in byte order."""
        folders: dict[str, list[os.DirEntry[str]]] = {}
        pending = [(name, frozenset({self.base, self._resolve(f"{self.base}/{name}")}))]
        while pending:
            folder, above = pending.pop()
            files = folders[folder] = []
            for entry in self._entries(folder):
                if entry.is_symlink():
                    self._resolve(entry.path)
                if entry.is_dir():
                    real = self._resolve(entry.path)
                    if real in above:
                        raise InputError(
                            f"{_shown(entry.path)}: this symbolic link leads back to {_shown(real)}; remove it"
                        )
                    pending.append((f"{folder}/{entry.name}", above | {real}))
                elif not self._is_skipped(path := f"{folder}/{entry.name}") and self._is_image(entry, path):
                    files.append(entry)
        for folder in sorted(folders):
            self._add_files(folder, sorted(folders[folder], key=lambda entry: entry.name))

    def _is_skipped(self, path: str) -> bool:
        """Whether a file is to be left out; names are compared in any Unicode form."""
        if not self.leave_out:
            return False
        return path in self.leave_out or (not path.isascii() and same_form(path) in self.leave_out_forms)

    def _is_image(self, entry: os.DirEntry[str], path: str) -> bool:
        """Whether a file counts as an image, by its name or its first bytes; other files are counted."""
        if entry.name.lower().endswith(SUFFIXES):
            return True
        try:
            if not entry.is_file():  # reading a pipe would block
                self.left_out.add("no regular file", path)
                return False
            with open(entry.path, "rb", buffering=0) as file:  # noqa: PTH123  (a Path for each of millions is slow)
                head = file.read(HEAD_BYTES)
        except OSError:
            self.left_out.add("unreadable", path)
            return False
        if readable(head):
            return True
        self.left_out.add(other_kind(head, entry.name), path)
        return False

    def _add_files(self, folder: str, entries: list[os.DirEntry[str]]) -> None:
        """Add image files of one folder with their sizes in bytes and modification times in ns."""
        for entry in entries:
            try:
                status = entry.stat()
            except OSError as error:
                raise InputError(f"{_shown(entry.path)}: cannot be examined ({error.strerror})") from error
            if not stat.S_ISREG(status.st_mode):
                raise InputError(f"{_shown(entry.path)}: expected a regular file; remove it")
            self.paths.append(f"{folder}/{entry.name}")
            self.sizes.append(status.st_size)
            self.mtimes.append(status.st_mtime_ns)

    def _resolve(self, path: str) -> str:
        """The real path of a link, which must exist and lie inside the folder."""
        real = _real(path)
        if real != self.base and not real.startswith(self.base.rstrip("/") + "/"):
            raise InputError(
                f"{_shown(path)}: this symbolic link leads out of {_shown(self.base)}, to {_shown(real)}; "
                f"copy or hard-link the images into the folder"
            )
        return real

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        """The entries of a folder that are read; the others are counted."""
        entries = []
        path = f"{self.base}/{folder}" if folder else self.base
        try:
            with os.scandir(path) as scan:
                for entry in scan:
                    if kind := left_out_kind(entry.name):
                        self.left_out.add(kind, f"{folder}/{entry.name}" if folder else entry.name)
                    else:
                        entries.append(entry)
        except NotADirectoryError as error:
            raise InputError(
                f"{_shown(path)}: expected a folder with a subfolder for each class, or a container of images, found a "
                f"file of none of these kinds: {', '.join(list(SOURCES)[1:])}; give another path, or name the kind by "
                f"--images-format"
            ) from error
        except OSError as error:
            raise InputError(f"{_shown(path)}: expected a folder that can be listed ({error.strerror})") from error
        for entry in entries:
            if not entry.name.isascii():
                try:
                    entry.name.encode()
                except UnicodeEncodeError as error:
                    raise InputError(f"{entry.path!r}: expected a name in UTF-8; rename it") from error
        return entries


def _real(path: str | Path) -> str:
    """The path with all links resolved."""
    try:
        return os.path.realpath(path, strict=True)
    except OSError as error:
        raise InputError(f"{_shown(path)}: cannot be reached ({error.strerror}); check the path or the link") from error
