"""Image sources: a list of images, and the bytes of each.

The manifest, its cache, the decoders and the renderers use nothing else of a source. So an image needs no file of its
own: it may be a member of an archive, a row of a table, or an object in a store.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BufferedReader, BytesIO
from typing import Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from pipeline.images.left_out import LeftOut

ImageFile: TypeAlias = BufferedReader | BytesIO
Stamp: TypeAlias = tuple[int, int]
"""Size of an image in bytes, and a number that changes when its bytes do."""


@dataclass(frozen=True, eq=False)
class Listing:
    """The N images of a source, in its own order, which must be the same whenever the source is opened.

    Attributes:
        location: where the source is, for messages; the manifest's cache is valid only for this location.
        classes: class names in target order.
        names: a unique name of each image; of files, their path relative to ``location``, with ``/``.
        targets: index of each image's class, int64 ``[N]``.
        sizes: bytes of each image, int64 ``[N]``; 0 if they are not known before it is read.
        stamps: a number that changes when an image's bytes do, int64 ``[N]``: of files, the modification time in ns;
            0 where they cannot change.
        layout: numbers by which images follow each other where they are stored, int64 ``[N]``: in their order all
            images are read fastest. None if any order is as good.
        left_out: what of the source is not read, counted by kind.
        own_files: whether each image is a separate file, whose path is its place.
        remote: whether images are remote, so that many should be requested at a time.
        former_suffixes: in lower case, of the files that versions before 0.2 read; empty if they read no such
            source.
    """

    location: str
    classes: tuple[str, ...]
    names: Sequence[str]
    targets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    stamps: npt.NDArray[np.int64]
    layout: npt.NDArray[np.int64] | None = None
    left_out: LeftOut = field(default_factory=LeftOut)
    own_files: bool = False
    remote: bool = False
    former_suffixes: tuple[str, ...] = ()


class ImageSource(Protocol):
    """Images by their index in `listing`. All methods are called from several threads at once.

    An image that cannot be read raises OSError.
    """

    @property
    def listing(self) -> Listing:
        """The images; made when the source is opened."""

    def place(self, image: int) -> str:
        """The place of an image, for messages: the path of its file, or the container and the name in it."""

    def stamp(self, image: int) -> Stamp:
        """Current size and stamp of an image, cheaper than reading it."""

    def open(self, image: int) -> ImageFile:
        """An image as a seekable file, so that its header can be read without the rest."""

    def read(self, image: int) -> bytes:
        """The bytes of an image."""

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The bytes of each of these images, in their order; an error is raised in the place of its image."""
