"""The flags that say what ``--images`` is, where its name and a look at it do not."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeAlias

from labelstore.command.flags import Choices
from pipeline.images.opening import SOURCES

ClassOrder: TypeAlias = Literal["auto", "bytes", "numeric"]


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageOptions:
    """What a set of images is, and what its classes are called."""

    images_format: Annotated[str | None, Choices(SOURCES)] = None
    """What the images are: left out, it is recognised."""
    class_names: str | None = None
    """Names of the classes 0, 1, ... of images whose classes are numbers: comma-separated, or a file with one a line
    or of JSON."""


def options_of(known: Mapping[str, str | None]) -> ImageOptions:
    """The options among the flags of a command line, as they are typed."""
    return ImageOptions(images_format=known["--images-format"], class_names=known["--class-names"])


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """How a source is to be opened.

    Attributes:
        class_order: order of classes that have names alone; a source whose classes are numbered keeps their order.
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
