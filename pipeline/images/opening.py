"""The table of image sources: what opens the folder or file that is given as ``--images``."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import NamedTuple

from labelstore.errors import InputError
from labelstore.tables import Table
from pipeline.images.class_folder import ClassFolder, ClassOrder
from pipeline.images.source import ImageSource


class SourceKind(NamedTuple):
    """A kind of image source.

    Attributes:
        recognises: whether a path is one, from its name or a look at what is there; cheap, and never raises.
        open: called with a path, the order of the classes, and names of images to leave out; InputError where it is no
            source.
    """

    recognises: Callable[[Path], bool]
    open: Callable[[Path, ClassOrder, Collection[str]], ImageSource]


SOURCES: Table[SourceKind] = Table({})
"""By name: those that look at a path before it is taken for a class folder, which anything else is. A line names the
`SourceKind` in the file of a source: ``"tar": "pipeline.images.tar:KIND"``."""


def open_images(path: Path, class_order: ClassOrder = "auto", leave_out: Collection[str] = ()) -> ImageSource:
    """The image source at a path.

    Raises:
        InputError: there is none, or it holds no classes of images; or it is of several kinds.
    """
    found = [name for name, kind in SOURCES.items() if kind.recognises(path)]
    if len(found) > 1:
        raise InputError(
            f"--images {path}: expected images of one kind, found what could be {' or '.join(found)}; move what "
            f"belongs to one of them to another place"
        )
    return (SOURCES[found[0]].open if found else ClassFolder)(path, class_order, leave_out)
