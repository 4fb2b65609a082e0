"""Image sources as a user could write them: a dict of bytes, and a ZIP archive of a class folder."""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

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


class ZipImages:
    """A class folder in a ZIP archive, whose directory is the index."""

    def __init__(self, path: Path, class_order: str = "auto", leave_out: Collection[str] = ()) -> None:
        assert class_order in ("auto", "bytes")
        self.archive, self.lock = ZipFile(path), threading.Lock()
        members = [info for info in self.archive.infolist() if not info.is_dir() and info.filename not in leave_out]
        self.members = sorted(members, key=lambda info: info.filename.rpartition("/")[::2])
        names = [info.filename for info in self.members]
        classes = sorted({name.split("/")[0] for name in names})
        self.listing = Listing(
            location=str(path),
            classes=tuple(classes),
            names=names,
            targets=np.array([classes.index(name.split("/")[0]) for name in names], np.int64),
            sizes=np.array([info.file_size for info in self.members], np.int64),
            stamps=np.array([info.CRC for info in self.members], np.int64),
        )

    def place(self, image: int) -> str:
        return f"{self.listing.location}: {self.listing.names[image]}"

    def stamp(self, image: int) -> Stamp:
        return self.members[image].file_size, self.members[image].CRC

    def open(self, image: int) -> BytesIO:
        return BytesIO(self.read(image))

    def read(self, image: int) -> bytes:
        with self.lock:
            return self.archive.read(self.members[image])

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        return map(self.read, images)
