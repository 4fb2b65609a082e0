"""Image files read and decoded; as many decoded images are kept as fit a budget."""

from __future__ import annotations

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from labelstore.command.names import printable
from labelstore.errors import InputError, reason
from pipeline.images.decodes import FORMATS
from pipeline.images.file_formats import JPEG_MAGIC
from pipeline.images.headers import Header, read_header
from pipeline.images.source import Stamp
from pipeline.quiet import quiet
from pipeline.render.bare import bare
from pipeline.render.jpeg_scans import Scans, scans_of
from pipeline.render.plain import is_plain

if TYPE_CHECKING:
    from pipeline.images.manifest import Manifest

_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


_NAMED = 10  # damaged files that are named
CACHE_BYTES = 2 << 30
"""Memory for decoded images on a CPU."""
KINDS = ("JPEG", "PNG", "WebP", "PPM")
READ_SPAN = 8  # files that a thread reads in one task


class DamagedImageWarning(UserWarning):
    """A file decodes although its data are damaged."""


Data: TypeAlias = bytes | memoryview
"""The bytes of a file."""
Indexes = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Encoded:
    """The bytes of an image file.

    Attributes:
        image: index of the image.
        data: its file's bytes.
        bare: the file without its metadata, for DALI; None where only Pillow decodes it to Pillow's pixels.
        header: what the file declares.
    """

    image: int
    data: Data
    bare: Data | None
    header: Header

    @property
    def plain(self) -> bool:
        """Whether DALI decodes the file to Pillow's pixels."""
        return self.bare is not None


@lru_cache(4096)
def _known(kind: int, height: int, width: int, orientation: int) -> Header:
    """One of the headers that many files have."""
    return Header(KINDS[kind], height, width, orientation)


class Room:
    """Which decoded images are kept: the first that are needed, until the memory is full.

    A view needs every image once, so that no image is needed sooner than another: recency gains nothing.

    Attributes:
        bytes: memory that the kept images take when all of them are decoded.
    """

    def __init__(self, sizes: Indexes, budget: int) -> None:
        """``sizes`` are the bytes of each decoded image, int64 ``[N]``; ``budget`` is the memory in bytes."""
        total = int(sizes.sum())
        self.bytes = min(total, budget)
        self._sizes, self._left = sizes, self.bytes
        self._kept: npt.NDArray[np.bool_] = np.zeros(len(sizes), np.bool_)
        if total <= budget:
            self._kept[:], self._left = True, 0

    def admit(self, images: Indexes) -> npt.NDArray[np.bool_]:
        """Whether each of these images ``[n]`` is kept; room is given to those that still fit, in their order."""
        if self._left:
            unknown, at = np.unique(images[~self._kept[images]], return_index=True)
            unknown = unknown[np.argsort(at)]
            fit = unknown[np.cumsum(self._sizes[unknown]) <= self._left]
            self._kept[fit] = True
            self._left -= int(self._sizes[fit].sum())
        kept: npt.NDArray[np.bool_] = self._kept[images]
        return kept

    def cleared_for(self, images: Indexes) -> bool:
        """Give the room of all kept images back if these ``[n]`` do not fit beside them; whether that was so."""
        unknown = np.unique(images[~self._kept[images]])
        if int(self._sizes[unknown].sum()) <= self._left:
            return False
        self._kept[:], self._left = False, self.bytes
        return True


def runs(costs: npt.NDArray[np.int64], most: int, count: int) -> Iterator[npt.NDArray[np.int64]]:
    """Indexes of ``costs``, int64 ``[b]`` a run: at most ``count`` that cost at most ``most``, or a single one."""
    ends = np.cumsum(costs)
    start = 0
    while start < len(costs):
        before = ends[start - 1] if start else 0
        fits = int(np.searchsorted(ends, before + most, "right"))
        stop = min(max(fits, start + 1), start + count)
        yield np.arange(start, stop)
        start = stop


class Images:
    """The images of a manifest, read and decoded when they are needed.

    Attributes:
        sizes: bytes of each decoded image, int64 ``[N]``.
        room: which of them are kept.
    """

    def __init__(
        self,
        manifest: Manifest,
        decode: Callable[[Sequence[Data], Sequence[Header]], Sequence[Tensor | None]] | None,
        pool: Executor,
        cache_bytes: int,
        read_files: Callable[[Sequence[str]], Sequence[Data] | None] | None = None,
    ) -> None:
        """Nothing is read yet.

        Args:
            manifest: the images.
            decode: decodes plain files, without their metadata, to uint8 ``[H, W, 3]``, by their headers; None for a
                file that it refuses or finds damaged. None if DALI is absent.
            pool: where files are read, and where Pillow decodes what ``decode`` does not.
            cache_bytes: memory for decoded images: as many are kept as fit.
            read_files: reads files by their paths, faster together than one by one; None if it fails. Left out, or
                where images are not files of their own, the source reads them.
        """
        self._manifest, self._decode, self._pool = manifest, decode, pool
        self._read_files = read_files if manifest.source.listing.own_files else None
        self.sizes: Indexes = 3 * manifest.heights.astype(np.int64) * manifest.widths
        self.room = Room(self.sizes, cache_bytes)
        self._kept: dict[int, Tensor] = {}
        self._seen: npt.NDArray[np.int64] = np.full((len(manifest), 2), -1, np.int64)  # files' sizes and times
        # Of the files seen:
        self._headers: npt.NDArray[np.uint8] = np.zeros((len(manifest), 2), np.uint8)  # kinds, orientations
        self._plain: npt.NDArray[np.bool_] = np.zeros(len(manifest), np.bool_)
        self._stripped: npt.NDArray[np.bool_] = np.zeros(len(manifest), np.bool_)  # whether metadata are taken out
        self._damaged: set[int] = set()

    def read(self, images: Sequence[int]) -> list[Encoded]:
        """The files of some images.

        Raises:
            InputError: one is gone, is no image any more, or is not the one of the manifest.
        """
        return self.begin(images)()

    def begin(self, images: Sequence[int]) -> Callable[[], list[Encoded]]:
        """Begin to read the files of some images; the function returned waits for what `read` returns."""
        if self._read_files:
            return self._pool.submit(self._read, images, self._read_files).result
        if self._manifest.source.listing.remote:
            return self._pool.submit(self._read, images).result
        spans = (images[start : start + READ_SPAN] for start in range(0, len(images), READ_SPAN))
        reading = [self._pool.submit(self._read, span) for span in spans]
        return lambda: [file for span in reading for file in span.result()]

    def _read(
        self, images: Sequence[int], read_files: Callable[[Sequence[str]], Sequence[Data] | None] | None = None
    ) -> list[Encoded]:
        """The files of some images, read by one thread, or by all of ``read_files``."""
        places, stamps = np.array(images, np.int64), list[Stamp]()
        with self._naming(images) as named:
            for image in named:  # before reading: an image that changes afterwards is compared again
                stamps.append(self._manifest.stamp(image))
        together = read_files([self._manifest.place(image) for image in images]) if read_files else None
        contents = self._manifest.read_many(images) if together is None else iter(together)
        seen = (np.array(stamps, np.int64).reshape(-1, 2) == self._seen[places]).all(axis=1)
        known = zip(stamps, seen.tolist(), self._known_headers(places), strict=True)
        headers, files = list[Header](), list[Data]()
        with self._naming(images) as named:
            for image, (stamp, same, header) in zip(named, known, strict=True):
                data = next(contents)
                if not same:
                    header = read_header(io.BytesIO(data))
                    self._see(image, stamp, data, header)
                files.append(data)
                headers.append(header)
        plain, stripped = self._plain[places].tolist(), self._stripped[places].tolist()
        return [
            Encoded(image, data, self._stored(header, data, stripped=cut) if whole else None, header)
            for image, data, header, whole, cut in zip(images, files, headers, plain, stripped, strict=True)
        ]

    def _stored(self, header: Header, data: Data, *, stripped: bool) -> Data | None:
        """A plain file without its metadata; itself if it has none."""
        return bare(header.kind, bytes(data)) if stripped else data

    def _known_headers(self, images: Indexes) -> list[Header]:
        """The headers of files that have not changed since they were seen; of no meaning for others."""
        sides = self._manifest.heights[images].tolist(), self._manifest.widths[images].tolist()
        kinds, orientations = self._headers[images].T.tolist()
        return list(map(_known, kinds, *sides, orientations))

    def _see(self, image: int, stamp: Stamp, data: Data, header: Header) -> None:
        """Compare a new file with the manifest, and note what is true of it until its stamp changes."""
        self._require_sides(image, (header.height, header.width))
        self._require_digest(image, data)
        whole = bytes(data)
        stored = bare(header.kind, whole) if is_plain(header.kind, whole) else None
        self._plain[image], self._stripped[image] = stored is not None, stored is not whole
        self._headers[image] = KINDS.index(header.kind), header.orientation
        self._seen[image] = stamp

    @contextmanager
    def _naming(self, images: Sequence[int]) -> Iterator[Iterator[int]]:
        """Iterate over images; errors of reading one become one that names it."""
        now: list[int] = []

        def each() -> Iterator[int]:
            for image in images:
                now[:] = [image]
                yield image

        try:
            yield each()
        except (OSError, InputError) as error:
            found = error.strerror if isinstance(error, OSError) else error
            raise InputError(
                f"{self._place(now[0])}: expected the image that was there when the folder was scanned; {found}"
            ) from error

    def _place(self, image: int) -> str:
        """Where an image is, for a message."""
        return printable(self._manifest.place(image))

    def whole(self, images: Sequence[int]) -> list[Tensor]:
        """Decoded images, uint8 ``[H, W, 3]`` each, one for each index.

        Raises:
            InputError: a file is gone, has changed or does not decode; names it.
        """
        missing = [image for image in dict.fromkeys(images) if image not in self._kept]
        decoded = dict(zip(missing, self.decode(self.read(missing)), strict=True))
        kept = self.room.admit(np.array(missing, np.int64)).tolist()
        self._kept.update({image: decoded[image] for image, stays in zip(missing, kept, strict=True) if stays})
        return [decoded[image] if image in decoded else self._kept[image] for image in images]

    def decode(self, files: Sequence[Encoded]) -> list[Tensor]:
        """The images of files, each once; nothing is kept."""
        plain = [file for file in files if file.bare is not None] if self._decode else []
        data, headers = [stored for file in plain if (stored := file.bare) is not None], [file.header for file in plain]
        by_dali = self._decode(data, headers) if self._decode and plain else []
        return self.complete(files, plain, by_dali)

    def complete(
        self, files: Sequence[Encoded], plain: Sequence[Encoded], by_dali: Sequence[Tensor | None]
    ) -> list[Tensor]:
        """The images of files, each once, when those that are ``plain`` have been decoded, as far as they could be."""
        decoded = {file.image: image for file, image in zip(plain, by_dali, strict=True) if image is not None}
        others = [file for file in files if file.image not in decoded]
        refused = [file.image for file in plain if file.image not in decoded]
        with quiet():  # warnings of broken metadata, and of sizes, which the manifest has checked
            decoded |= zip((file.image for file in others), self._pool.map(self._by_pillow, others), strict=True)
        self._plain[refused] = False  # not to be tried again
        self.name_damaged([file for file in others if self._decode])
        for image, pixels in decoded.items():
            self._require_sides(image, tuple(pixels.shape[:2]))
        return [decoded[file.image] for file in files]

    def read_ahead(self, chunks: Iterable[Sequence[int]]) -> Iterator[list[Encoded]]:
        """The files of each chunk of images; while the caller works on some, the next are read."""
        waiting: Callable[[], list[Encoded]] | None = None
        for chunk in chunks:
            begun = self.begin(chunk)
            if waiting:
                yield waiting()
            waiting = begun
        if waiting:
            yield waiting()

    def forget(self) -> None:
        """Release the decoded images."""
        self._kept.clear()

    def require_inside(self, images: npt.NDArray[np.int64], boxes: npt.NDArray[np.int32], pad: int) -> None:
        """Raise InputError for rows of images that do not exist, or boxes outside their image and its padding."""
        if len(images) and images.max() >= len(self._manifest):
            raise InputError(f"crop rows: expected images below {len(self._manifest)}, found {images.max()}")
        sides = np.stack([self._manifest.heights[images], self._manifest.widths[images]], axis=1)
        wrong = (boxes[:, :2] < -pad) | (boxes[:, 2:] < 1) | (boxes[:, :2] + boxes[:, 2:] > sides + pad)
        if wrong.any():
            row = int(np.flatnonzero(wrong.any(axis=1))[0])
            raise InputError(
                f"{self._place(int(images[row]))}: the box (top, left, height, width) = {boxes[row].tolist()} "
                f"is not within its {sides[row, 0]} x {sides[row, 1]} pixels padded by {pad}; these rows are of "
                f"other images"
            )

    def name_damaged(self, files: Sequence[Encoded]) -> None:
        """Warn once of each JPEG with damaged data that libjpeg filled in; ``files`` are those that Pillow decoded."""
        for file in files:
            data = bytes(file.data)
            damaged = file.plain or scans_of(data) is Scans.DAMAGED
            if not damaged or file.image in self._damaged or not data.startswith(JPEG_MAGIC):
                continue
            self._damaged.add(file.image)
            if len(self._damaged) <= _NAMED:
                more = "; further such files are not named" if len(self._damaged) == _NAMED else ""
                warnings.warn(
                    f"{self._place(file.image)}: its JPEG data are damaged; it is used as Pillow decodes it{more}",
                    DamagedImageWarning,
                    stacklevel=2,
                )

    def _by_pillow(self, file: Encoded) -> Tensor:
        """One image as Pillow sees it, upright."""
        try:
            image = Image.open(io.BytesIO(file.data), formats=FORMATS)
            turn = _UPRIGHT.get(file.header.orientation)
            pixels = np.array((image if turn is None else image.transpose(turn)).convert("RGB"))
        except Exception as error:  # whatever its plugins raise: OSError, SyntaxError, ValueError, struct.error, ...
            raise InputError(
                f"{self._place(file.image)}: expected an image that decodes, as when the folder was scanned, "
                f"found: {reason(error)}; put the old file back"
            ) from error
        return torch.from_numpy(pixels)

    def _require_sides(self, image: int, found: tuple[int, ...]) -> None:
        """Raise InputError if the image has other sides than in the manifest."""
        expected = int(self._manifest.heights[image]), int(self._manifest.widths[image])
        if found != expected:
            raise InputError(
                f"{self._place(image)}: expected {expected[0]} x {expected[1]} pixels, as when the folder was "
                f"scanned, found {found[0]} x {found[1]}; put the old file back, or scan again with --rehash"
            )

    def _require_digest(self, image: int, data: Data) -> None:
        """Raise InputError if the bytes are not those of the manifest's digest, if it has one."""
        expected = self._manifest.digests[image]
        if not expected.any():
            return
        found = hashlib.sha256(data)
        if found.digest() != expected.tobytes():
            raise InputError(
                f"{self._place(image)}: expected the file that was there when the folder was scanned (SHA-256 "
                f"{expected.tobytes().hex()[:16]}...), found another one ({found.hexdigest()[:16]}...); put the old "
                f"file back, or make another store of the new ones"
            )
