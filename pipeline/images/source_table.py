"""The table of image sources: what opens the folder or file that is given as ``--images``.

Nothing that takes long to import is imported here: the names of the table are the choices of a flag.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple, TypeAlias

from labelstore.command.flags import Choices
from labelstore.tables import Table

if TYPE_CHECKING:
    from pipeline.images.source import ImageSource

CLASS_FOLDER = "class-folder"
ClassOrder: TypeAlias = Literal["auto", "bytes", "numeric"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """Options for opening a source.

    Attributes:
        class_order: order of classes without numbers; a source with numbered classes keeps their order.
        leave_out: names of images that are not listed.
        class_names: of the classes 0, 1, ..., as the flag is typed.
        cache: the file that keeps what is read of the images. What a source wants to keep beside it, an index of a
            large archive, is named after it; None keeps nothing.
    """

    class_order: ClassOrder = "auto"
    leave_out: Collection[str] = ()
    class_names: str | None = None
    cache: Path | None = None

    def kept(self, word: str) -> Path | None:
        """The file beside the cache that is named after it: ``labels.images.tar.npz`` for ``tar``."""
        return self.cache.with_name(f"{self.cache.name.removesuffix('.npz')}.{word}.npz") if self.cache else None


class SourceKind(NamedTuple):
    """A kind of image source.

    Attributes:
        recognises: whether a path is one, from its name or a look at what is there; cheap, and never raises.
        open: called with a path and how it is to be opened; InputError if it is no source.
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

AT_ADDRESSES: Table[SourceKind] = Table(
    {
        CLASS_FOLDER: "pipeline.images.remote:FOLDER_KIND",
        "tar": "pipeline.images.tars:KIND",
        "zip": "pipeline.images.zips:KIND",
        "parquet": "pipeline.images.parquet:KIND",
    }
)
"""Sources that can also be at an address: in a bucket, on a hub, at a web server."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions:
    """The kind of an image source, and its class names."""

    images_format: Annotated[str, Choices(SOURCES)] | None = None
    """Container of the images; recognised when left out."""
    class_names: str | None = None
    """Names of the classes 0, 1, ..., for containers whose classes are numbers: comma-separated, or a file, with one
    name a line or in JSON."""


def options_of(known: Mapping[str, str | None]) -> ImageOptions:
    """The options among the flags of a command line, as typed."""
    return ImageOptions(images_format=known["--images-format"], class_names=known["--class-names"])
