"""The image source at a path or an address; what is there is recognised unless a flag names it."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from labelstore.command.names import printable
from labelstore.errors import InputError
from labelstore.storage_table import as_typed, scheme_of
from pipeline.images.addresses import kind_at
from pipeline.images.source import ImageSource
from pipeline.images.source_table import AT_ADDRESSES, CLASS_FOLDER, SOURCES, ClassOrder, ImageOptions, Request


def open_images(
    path: Path,
    class_order: ClassOrder = "auto",
    leave_out: Collection[str] = (),
    *,
    options: ImageOptions | None = None,
    cache: Path | None = None,
) -> ImageSource:
    """The image source at a path.

    Args:
        path: of a folder, a file, a pattern of files, or a folder within an archive; or an address.
        class_order: order of classes without numbers.
        leave_out: names of images that are not listed.
        options: what the images are, where it is not to be recognised, and what their classes are called.
        cache: the file that keeps what is read of the images; an index may be kept beside it.

    Raises:
        InputError: there is none, or it holds no classes of images; or it is of several kinds.
    """
    options = options or ImageOptions()
    name = options.images_format or recognised(path)
    if name not in SOURCES:
        raise InputError(f"--images-format {name}: expected one of {', '.join(SOURCES)}")
    if scheme_of(path) and name not in AT_ADDRESSES:
        raise InputError(
            f"--images {printable(str(as_typed(path)))}: expected {' or '.join(AT_ADDRESSES)} at an address, found "
            f"{name}; download it, and give its path"
        )
    request = Request(class_order=class_order, leave_out=leave_out, class_names=options.class_names, cache=cache)
    return (AT_ADDRESSES if scheme_of(path) else SOURCES)[name].open(path, request)


def recognised(path: Path) -> str:
    """The kind of the images at a path.

    Raises:
        InputError: they could be of several kinds.
        AddressError: an address cannot be read.
    """
    if scheme_of(path):
        return kind_at(path) or CLASS_FOLDER
    found = [name for name, kind in SOURCES.items() if kind.recognises(path)]
    if len(found) > 1:
        raise InputError(
            f"--images {printable(str(path))}: expected images of one kind, found what could be "
            f"{' or '.join(found)}; --images-format takes one of them"
        )
    return found[0] if found else CLASS_FOLDER
