"""Images in arrays of pixels, without files; each is read as a canonical PPM file."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from io import BytesIO

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.errors import InputError
from pipeline.images.class_folder import named
from pipeline.images.class_names import read_class_names, require_named
from pipeline.images.file_formats import ppm_file, ppm_head
from pipeline.images.source import Listing, Stamp
from pipeline.images.source_table import Request

Int64Array = npt.NDArray[np.int64]
Pixels = npt.NDArray[np.uint8]


class ArrayImages:
    """Images of one size, in memory or in a mapped file: an `ImageSource`.

    Attributes:
        listing: the images, by class, then by index in the array, which is their name.
    """

    def __init__(
        self,
        location: str,
        classes: Sequence[str],
        targets: Int64Array,
        pixels: Callable[[int], Pixels],
        shape: tuple[int, int, int],
        stamp: Callable[[], int],
        request: Request,
    ) -> None:
        """List the images.

        Args:
            location: of the arrays, for messages.
            classes: names, in target order.
            targets: of each image of the array, int64 ``[M]``.
            pixels: returns an image of the array, ``[H, W, C]``.
            shape: of an image: height, width, channels.
            stamp: a number that changes when the arrays do.
            request: options for opening.

        Raises:
            InputError: a class has no images.
        """
        self._pixels, self._stamp = pixels, stamp
        digits = len(str(max(len(targets) - 1, 1)))
        order = np.argsort(targets, kind="stable")
        names = [f"{classes[targets[image]]}/{image:0{digits}d}.ppm" for image in order.tolist()]
        gone = frozenset(request.leave_out)
        kept = [place for place, name in enumerate(names) if name not in gone]
        self._images = order[kept]
        counts = np.bincount(targets[self._images], minlength=len(classes))
        if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
            raise InputError(f"{printable(location)}: expected images of every class, found none of {named(empty)}")
        size = len(ppm_head(*shape)) + int(np.prod(shape))
        self.listing = Listing(
            location=location,
            classes=tuple(classes),
            names=[names[place] for place in kept],
            targets=targets[self._images],
            sizes=np.full(len(kept), size, np.int64),
            stamps=np.full(len(kept), stamp(), np.int64),
            layout=self._images,
        )

    def place(self, image: int) -> str:
        """The file of the array, and the image's number in it."""
        return f"{self.listing.location}: image {self._images[image]}"

    def stamp(self, image: int) -> Stamp:
        """The size of the PPM, and the stamp of the arrays."""
        return int(self.listing.sizes[image]), self._stamp()

    def open(self, image: int) -> BytesIO:
        """The PPM in memory."""
        return BytesIO(self.read(image))

    def read(self, image: int) -> bytes:
        """The PPM of an image."""
        return ppm_file(self._pixels(int(self._images[image])))

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The PPM of each of some images."""
        return map(self.read, images)


def named_classes(place: str, labels: Int64Array, class_names: str | None) -> tuple[tuple[str, ...], Int64Array]:
    """Class names and targets of class indexes.

    Without names, the indexes that occur are the names, padded so that byte order is numeric order.

    Args:
        place: of the labels, for messages.
        labels: class index of each image, int64 ``[M]``.
        class_names: of the indexes 0, 1, ..., as the flag is typed.

    Raises:
        InputError: an index has no name.
    """
    if not len(labels):
        raise InputError(f"{place}: expected images, found none")
    if class_names is not None:
        names = read_class_names(class_names)
        require_named(place, int(labels.max()), names)
        return names, labels
    used, targets = np.unique(labels, return_inverse=True)
    digits = max(2, len(str(int(used[-1]))))
    return tuple(f"{index:0{digits}d}" for index in used.tolist()), targets.astype(np.int64)
