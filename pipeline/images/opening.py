"""The table of image sources: what opens the folder or file that is given as ``--images``.

Nothing that takes long to import is imported here: the names of the table are the choices of a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from labelstore.command.names import printable
from labelstore.errors import InputError
from labelstore.storage_table import scheme_of, without_credentials
from labelstore.tables import Table

if TYPE_CHECKING:
    from pipeline.images.options import ClassOrder, ImageOptions, Request
    from pipeline.images.source import ImageSource

CLASS_FOLDER = "class-folder"


class SourceKind(NamedTuple):
    """A kind of image source.

    Attributes:
        recognises: whether a path is one, from its name or a look at what is there; cheap, and never raises.
        open: called with a path and how it is to be opened; InputError where it is no source.
    """

    recognises: Callable[[Path], bool]
    open: Callable[[Path, Request], ImageSource]


SOURCES: Table[SourceKind] = Table(
    {
        CLASS_FOLDER: "pipeline.images.class_folder:KIND",
        "tar": "pipeline.images.tars:KIND",
        "zip": "pipeline.images.zips:KIND",
        "parquet": "pipeline.images.parquet:KIND",
        "cifar": "pipeline.images.cifar:KIND",
        "idx": "pipeline.images.idx:KIND",
        "tensors": "pipeline.importing.tensors:KIND",
    }
)
"""By name. What none of them recognises is taken for a class folder. A line names the `SourceKind` in the file of a
source."""


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
        path: of a folder, a file, a pattern of files, or a folder within an archive.
        class_order: order of classes that have names alone.
        leave_out: names of images that are not listed.
        options: what the images are, where it is not to be recognised, and what their classes are called.
        cache: the file that keeps what is read of the images; an index may be kept beside it.

    Raises:
        InputError: there is none, or it holds no classes of images; or it is of several kinds.
    """
    from pipeline.images.options import ImageOptions, Request

    options = options or ImageOptions()
    if scheme_of(path):
        raise InputError(
            f"--images {without_credentials(str(path))}: expected a path on this machine, found an address; download "
            f"the files and give their folder"
        )
    name = options.images_format or recognised(path)
    if name not in SOURCES:
        raise InputError(f"--images-format {name}: expected one of {', '.join(SOURCES)}")
    request = Request(class_order=class_order, leave_out=leave_out, class_names=options.class_names, cache=cache)
    return SOURCES[name].open(path, request)


def recognised(path: Path) -> str:
    """The kind of the images at a path.

    Raises:
        InputError: they could be of several kinds.
    """
    found = [name for name, kind in SOURCES.items() if kind.recognises(path)]
    if len(found) > 1:
        raise InputError(
            f"--images {printable(str(path))}: expected images of one kind, found what could be "
            f"{' or '.join(found)}; --images-format takes one of them"
        )
    return found[0] if found else CLASS_FOLDER
