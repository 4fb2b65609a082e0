"""A manifest of classes without images, for what makes images of nothing but their classes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.images.manifest import Manifest
from pipeline.images.source import ImageFile, Listing, Stamp


class NoImages:
    """A source with classes and no images."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        empty = np.zeros(0, np.int64)
        self.listing = Listing("no images", classes, (), empty, empty, empty)

    def place(self, image: int) -> str:
        """There is none."""
        raise IndexError(image)

    def stamp(self, image: int) -> Stamp:
        """There is none."""
        raise IndexError(image)

    def open(self, image: int) -> ImageFile:
        """There is none."""
        raise IndexError(image)

    def read(self, image: int) -> bytes:
        """There is none."""
        raise IndexError(image)

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """Nothing."""
        return map(self.read, images)


def without_images(classes: tuple[str, ...]) -> Manifest:
    """The manifest of some classes, in this order, and no images."""
    empty, sides = np.zeros(0, np.int64), np.zeros(0, np.int32)
    return Manifest(NoImages(classes), empty, (), classes, empty, sides, sides, np.zeros((0, 32), np.uint8))
