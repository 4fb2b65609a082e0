"""An image source as a user could write it: a dict of bytes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO

import numpy as np

from pipeline.images.source import Listing, Stamp


class MemoryImages:
    """Images in memory, by ``class/name``."""

    def __init__(self, contents: Mapping[str, bytes]) -> None:
        names = sorted(contents)
        classes = sorted({name.split("/")[0] for name in names})
        self.listing = Listing(
            location="memory",
            classes=tuple(classes),
            names=names,
            targets=np.array([classes.index(name.split("/")[0]) for name in names], np.int64),
            sizes=np.array([len(contents[name]) for name in names], np.int64),
            stamps=np.zeros(len(names), np.int64),
        )
        self.contents = contents
        self.asked: list[list[int]] = []

    def place(self, image: int) -> str:
        return f"{self.listing.location}: {self.listing.names[image]}"

    def stamp(self, image: int) -> Stamp:
        return int(self.listing.sizes[image]), 0

    def open(self, image: int) -> BytesIO:
        return BytesIO(self.read(image))

    def read(self, image: int) -> bytes:
        return self.contents[self.listing.names[image]]

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        self.asked.append(list(images))
        return iter([self.read(image) for image in images])
