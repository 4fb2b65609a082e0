"""The table of image sources: what opens the folder or file that is given as ``--images``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TypeAlias

from pipeline.images.class_folder import ClassFolder, ClassOrder
from pipeline.images.source import ImageSource

FOLDER = ""

Opener: TypeAlias = Callable[[Path, ClassOrder, Collection[str]], ImageSource]
"""Called with a path, the order of the classes, and names of images to leave out; InputError where it is no source."""

SOURCES: dict[str, Opener] = {FOLDER: ClassFolder}
"""By the suffix of a file, in lower case; `FOLDER` for folders, and for all that has no suffix of the table."""


def open_images(path: Path, class_order: ClassOrder = "auto", leave_out: Collection[str] = ()) -> ImageSource:
    """The image source at a path.

    Raises:
        InputError: there is none, or it holds no classes of images.
    """
    suffix = FOLDER if path.is_dir() else path.suffix.lower()
    return SOURCES.get(suffix, SOURCES[FOLDER])(path, class_order, leave_out)
