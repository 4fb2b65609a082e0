"""The renderer of crops on a GPU: decoded images that fit are kept there, and crops are made in batches.

Its crops are those of the renderer on a CPU, bit for bit, where a CPU decodes the files. Images that do not fit are
decoded as they are needed: while one chunk is decoded, the next is read, and the crops of the last are made.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import GiftwrapError
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.device.moving import to_device
from pipeline.plan.augment import arranges, strips_of
from pipeline.render.batched import resize_all
from pipeline.render.cache import Encoded, Images, runs
from pipeline.render.crops import CHUNK_BYTES, CHUNK_CROPS, LEAST_SIDE, finish
from pipeline.render.dali import DaliDecoder
from pipeline.render.device_cache import Kept, cache_budget, flatten
from pipeline.render.identity import DECODERS, renderer_id
from pipeline.render.jobs import Boxes

if TYPE_CHECKING:
    from pipeline.images.manifest import Manifest
    from pipeline.plan.plan import PlanSpec

LINE_BYTES = 64 << 20  # between the passes of the resize
MAX_CROPS = 4096  # at a time
SAMPLE = 8  # images that are decoded in two ways when a GPU decodes

Indexes = npt.NDArray[np.int64]
S = TypeVar("S")
T = TypeVar("T")


class DeviceRenderer:
    """Renders crops of a manifest's images; see `pipeline.render.make_renderer`.

    Works on a separate CUDA stream, for which the caller's stream waits.

    Attributes:
        id: all that the pixels depend on besides images and rows.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: PlanSpec,
        device: torch.device,
        decoder: str,
        threads: int,
        cache_bytes: int | None,
    ) -> None:
        """Render on ``device`` with ``threads`` CPU threads and ``cache_bytes`` of its memory for decoded images.

        Raises:
            InputError: the device has less memory than that, or DALI cannot work on it.
            GiftwrapError: a decoder's pixels depend on what it decodes with them.
        """
        self.id: dict[str, Json] = renderer_id(device, decoder, spec.columns)
        self._spec, self._device, self._manifest = spec, device, manifest
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._chunk = max(CHUNK_CROPS, 8 * threads)
        self._pool = ThreadPoolExecutor(threads, "giftwrap-render")
        where = torch.device("cpu") if decoder == "cpu" else device
        self._decoder = DaliDecoder(where, threads, self._chunk, DECODERS[decoder])
        decode = self._decoder.whole if self._decoder.there else None
        self._images = Images(manifest, decode, self._pool, cache_budget(device, cache_bytes))
        whole = bool(spec.effective_pad) or arranges(spec.columns)
        self._regions = decoder == "cpu" and self._decoder.there and not whole
        self._lock = threading.Lock()
        with self._on_stream():
            self._kept = Kept(self._images, device)
            if decoder != "cpu":
                self._require_steady(decoder)

    def render(self, rows: CropRows) -> Tensor:
        """The crops of n rows, after mixing.

        Args:
            rows: n rows; whole groups where they are mixed.

        Returns:
            uint8 ``[n, S, S, 3]`` on the renderer's device.

        Raises:
            InputError: an image is gone, has changed or does not decode (the file is named), or a row is not of
                these images.
            GiftwrapError: DALI fails for another reason.
        """
        spec, images, boxes = self._spec, rows.image.astype(np.int64), rows.boxes(self._spec.effective_pad)
        self._images.require_inside(images, boxes, spec.effective_pad)
        if not len(rows):
            return torch.empty((0, spec.size, spec.size, 3), dtype=torch.uint8, device=self._device)
        sides = np.stack([self._manifest.heights[images], self._manifest.widths[images]], axis=1).astype(np.int64)
        work = _Work(images, sides, boxes, rows.flip, strips_of(rows, sides))
        with self._lock, self._on_stream() as made:
            try:
                crops = self._crops(work)
            except BaseException:  # Ctrl-C too: a batch in flight must not reach the next call
                self._decoder.drop()
                raise
            made.append(finish(crops, rows, spec, self._pool))
        return made[0]

    def make_room(self, images: Indexes) -> None:
        """Release the decoded images that are kept, if these ``[n]`` do not fit beside them."""
        with self._lock:
            if self._images.room.cleared_for(images):
                self._kept.clear()

    def close(self) -> None:
        """Release threads and memory; the renderer cannot be used any more."""
        with self._lock:
            self._pool.shutdown()
            self._decoder.drop()
            self._kept.forget()

    @contextmanager
    def _on_stream(self) -> Iterator[list[Tensor]]:
        """Work on the renderer's stream; what is put into the list may be used on the caller's afterwards."""
        made: list[Tensor] = []
        if self._stream is None:
            yield made
            return
        callers = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            yield made
        callers.wait_stream(self._stream)
        for tensor in made:
            tensor.record_stream(callers)

    def _crops(self, work: _Work) -> Tensor:
        """The crops before mixing: of images that are kept, and of the others."""
        kept = self._images.room.admit(work.images)
        inside, outside = np.flatnonzero(kept), np.flatnonzero(~kept)
        parts = [*self._of_kept(work, inside)]
        parts += self._of_regions(work, outside) if self._regions else self._of_files(work, outside)
        crops = parts[0] if len(parts) == 1 else torch.cat(parts)
        if len(inside) and len(outside):
            order = np.argsort(np.concatenate([inside, outside]))
            crops = crops[to_device(torch.from_numpy(order), self._device)]
        return crops

    def _of_kept(self, work: _Work, rows: Indexes) -> Iterator[Tensor]:
        """The crops of some rows, cut from the images that are kept."""
        missing = self._kept.missing(work.images[rows])
        for data, starts, images in self._decoded([missing[at] for at in self._runs(missing, self._images.sizes)]):
            self._kept.put(images, data, starts)
        costs = 3 * self._spec.size * work.boxes[rows, 2:].max(axis=1, initial=0).astype(np.int64)
        for run in runs(costs, LINE_BYTES, MAX_CROPS):
            at = rows[run]
            yield self._resize(work, at, self._kept.data, self._kept.starts[work.images[at]])

    def _of_files(self, work: _Work, rows: Indexes) -> Iterator[Tensor]:
        """The crops of some rows, of images that are decoded for them, each once a chunk."""
        chunks = [rows[run] for run in self._runs(work.images[rows], self._images.sizes)]
        unique = [np.unique(work.images[at], return_inverse=True) for at in chunks]
        decoded = self._decoded([images for images, _ in unique])
        for at, (_, inverse), (data, starts, _) in zip(chunks, unique, decoded, strict=True):
            yield self._resize(work, at, data, starts[inverse])

    def _of_regions(self, work: _Work, rows: Indexes) -> Iterator[Tensor]:
        """The crops of some rows, of regions that a CPU decodes; of whole images where one of a chunk needs that."""
        chunks = [rows[run] for run in self._runs(work.images[rows], self._images.sizes)]
        reading = self._images.read_ahead([work.images[at].tolist() for at in chunks])
        started = (
            (at, files, self._start_regions(files, work.boxes[at])) for at, files in zip(chunks, reading, strict=True)
        )
        boxes = in_flight(started, lambda begun: self._finish_regions(work, *begun))
        return (resize_all(some, self._spec.size, self._spec.interpolation) for some in boxes)

    def _start_regions(self, files: Sequence[Encoded], boxes: npt.NDArray[np.int32]) -> bool:
        """Begin to decode a region of each file, if all can be decoded so."""
        stored = [file.bare for file in files if file.bare is not None]
        if len(stored) < len(files) or (boxes[:, 2:] < LEAST_SIDE).any():
            return False
        self._decoder.start_regions(stored, boxes, [file.header for file in files])
        return True

    def _finish_regions(self, work: _Work, at: Indexes, files: Sequence[Encoded], started: bool) -> Boxes:
        """The started regions, or whole images if DALI did not get these files, or refuses one."""
        made: list[tuple[Tensor, Indexes]] = []
        if started and self._decoder.finish_regions(lambda regions: made.append(flatten(regions, self._device))):
            sides = work.boxes[at, 2:].astype(np.int64)
            inside = np.concatenate([np.zeros_like(sides), sides], axis=1)
            return Boxes(*made[0], sides, inside, work.flips[at])
        unique = {file.image: file for file in files}
        data, starts = flatten(self._images.decode([*unique.values()]), self._device)
        places = dict(zip(unique, starts.tolist(), strict=True))
        return work.cut(at, data, np.array([places[file.image] for file in files]))

    def _decoded(self, chunks: Sequence[Indexes]) -> Iterator[tuple[Tensor, Indexes, Indexes]]:
        """The images of each chunk, whole: as `flatten` gives them, and which; the next chunk is decoded meanwhile."""
        reading = self._images.read_ahead([chunk.tolist() for chunk in chunks])
        started = ((files, self._start(files)) for files in reading)
        found = in_flight(started, lambda begun: self._finish(*begun))
        return ((*images, chunk) for images, chunk in zip(found, chunks, strict=True))

    def _start(self, files: Sequence[Encoded]) -> list[Encoded]:
        """Begin to decode those that DALI decodes; which they are."""
        plain = [file for file in files if file.bare is not None] if self._decoder.there else []
        self._decoder.start(
            [stored for file in plain if (stored := file.bare) is not None], [file.header for file in plain]
        )
        return plain

    def _finish(self, files: Sequence[Encoded], plain: Sequence[Encoded]) -> tuple[Tensor, Indexes]:
        """Decode all files; the plain ones were started already."""
        made: list[tuple[Tensor, Indexes]] = []

        def take(by_dali: Sequence[Tensor | None]) -> None:
            made.append(flatten(self._images.complete(files, plain, by_dali), self._device))

        self._decoder.finish(take)
        return made[0]

    def _runs(self, images: Indexes, sizes: Indexes) -> Iterator[Indexes]:
        """Images in runs that are decoded at a time."""
        return runs(sizes[images], CHUNK_BYTES, self._chunk)

    def _resize(self, work: _Work, at: Indexes, data: Tensor, starts: Indexes) -> Tensor:
        """The crops of some rows, of images that begin at ``starts``."""
        return resize_all(work.cut(at, data, starts), self._spec.size, self._spec.interpolation)

    def _require_steady(self, decoder: str) -> None:
        """Decode a few images together and one by one, and require the same pixels.

        They are not where the decoder gives a part of a batch to other hardware, or where nvImageCodec, which reports
        nothing, takes a CPU for what a GPU fails to decode.
        """
        count = len(self._manifest)
        some = np.unique(np.linspace(0, count - 1, min(SAMPLE, count)).astype(np.int64))
        files = self._images.read(some.tolist())
        together = self._images.decode(files)
        for file, image in zip(reversed(files), reversed(together), strict=True):
            if not torch.equal(self._images.decode([file])[0], image):
                raise GiftwrapError(
                    f"decoder {decoder}: expected the same pixels of {self._manifest.place(file.image)} alone and with "
                    f"other images, found others; give --decoder cpu, or a GPU that nothing else uses"
                )


def in_flight(started: Iterable[S], finish: Callable[[S], T]) -> Iterator[T]:
    """The results of ``finish`` for each item; each is finished after the next has been started.

    So while the caller works on one, the two after it are being made.
    """
    waiting: deque[S] = deque()
    done: deque[T] = deque()
    for item in started:
        waiting.append(item)
        if done:
            yield done.popleft()
        if len(waiting) > 1:
            done.append(finish(waiting.popleft()))
    yield from done
    yield from map(finish, waiting)


@dataclass(frozen=True, slots=True)
class _Work:
    """The rows of one call.

    Attributes:
        images: int64 ``[n]``.
        sides: height and width of each row's image, int64 ``[n, 2]``.
        boxes: int32 ``[n, 4]``.
        flips: bool ``[n]``.
        strips: as in `Boxes`.
    """

    images: Indexes
    sides: Indexes
    boxes: npt.NDArray[np.int32]
    flips: npt.NDArray[np.bool_]
    strips: tuple[Indexes, Indexes] | None

    def cut(self, at: Indexes, data: Tensor, starts: Indexes) -> Boxes:
        """What to cut for some rows, whose whole images begin at ``starts`` in ``data``."""
        strips = (self.strips[0][at], self.strips[1][at]) if self.strips else None
        return Boxes(data, starts, self.sides[at], self.boxes[at].astype(np.int64), self.flips[at], strips)
