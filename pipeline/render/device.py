"""The renderer of crops on a GPU: images that fit stay there decoded, and crops are made of them many at a time.

Its crops are those of the renderer on a CPU, bit for bit, where a CPU decodes the files.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.command.console import byte_count
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.device.moving import to_device
from pipeline.plan.augment import arrange, arranges
from pipeline.render.batched import resize_all
from pipeline.render.cache import Images, runs
from pipeline.render.crops import CHUNK_BYTES, CHUNK_CROPS, LEAST_SIDE, finish
from pipeline.render.dali import DaliDecoder
from pipeline.render.identity import DECODERS, renderer_id
from pipeline.render.jobs import Boxes

if TYPE_CHECKING:
    from pipeline.images.manifest import Manifest
    from pipeline.plan.plan import PlanSpec

LINE_BYTES = 64 << 20  # between the passes of the resize
MAX_CROPS = 4096  # at a time

Indexes = npt.NDArray[np.int64]


class DeviceRenderer:
    """Renders crops of a manifest's images; see `pipeline.render.make_renderer`.

    Works on a stream of its own, in whose order the caller's stream waits for the crops.

    Attributes:
        id: all that the pixels depend on besides images and rows.
    """

    def __init__(
        self, manifest: Manifest, spec: PlanSpec, device: torch.device, decoder: str, threads: int, cache_bytes: int
    ) -> None:
        """Render on ``device`` with ``threads`` CPU threads and ``cache_bytes`` of its memory for decoded images."""
        self.id: dict[str, Json] = renderer_id(device, decoder, spec.columns)
        self._spec, self._device, self._manifest = spec, device, manifest
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._chunk = max(CHUNK_CROPS, 8 * threads)
        self._pool = ThreadPoolExecutor(threads, "giftwrap-render")
        where = torch.device("cpu") if decoder == "cpu" else device
        self._decoder = DaliDecoder(where, threads, self._chunk, DECODERS[decoder])
        decode = self._decoder.whole if self._decoder.there else None
        self._images = Images(manifest, decode, self._pool, cache_bytes)
        self._kept = Kept(self._images, device, self._chunk) if self._images.kept_all else None
        whole = bool(spec.effective_pad) or arranges(spec.columns)
        self._regions = decoder == "cpu" and self._decoder.there and not self._kept and not whole
        self._lock = threading.Lock()

    def render(self, rows: CropRows) -> Tensor:
        """The crops of n rows, after mixing.

        Args:
            rows: n rows; whole groups where they are mixed.

        Returns:
            uint8 ``[n, S, S, 3]`` on the renderer's device.

        Raises:
            InputError: an image is gone, has changed or does not decode (the file is named), or a row is not of
                these images.
        """
        spec, images, boxes = self._spec, rows.image.astype(np.int64), rows.boxes(self._spec.effective_pad)
        self._images.require_inside(images, boxes, spec.effective_pad)
        if self._kept:
            costs, most, count = (
                3 * spec.size * boxes[:, 2:].max(axis=1, initial=0).astype(np.int64),
                LINE_BYTES,
                MAX_CROPS,
            )
        else:
            costs, most, count = self._images.sizes[images], CHUNK_BYTES, self._chunk
        with self._lock, self._on_stream() as made:
            try:
                parts = [
                    resize_all(self._boxes(rows.take(at), images[at], boxes[at]), spec.size, spec.interpolation)
                    for at in runs(costs, most, count)
                ]
            except BaseException:  # Ctrl-C too: a batch in flight must not reach the next call
                self._decoder.drop()
                raise
            if not parts:
                return torch.empty((0, spec.size, spec.size, 3), dtype=torch.uint8, device=self._device)
            made.append(finish(parts[0] if len(parts) == 1 else torch.cat(parts), rows, spec, self._pool))
        return made[0]

    def close(self) -> None:
        """Release threads and memory; the renderer cannot be used any more."""
        with self._lock:
            self._pool.shutdown()
            self._decoder.drop()
            self._kept = None

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

    def _boxes(self, rows: CropRows, images: Indexes, boxes: npt.NDArray[np.int32]) -> Boxes:
        """Some crops' pixels on the device, as few as can be decoded, and where in them the boxes are."""
        flips = rows.flip
        regions = self._decode_regions(images, boxes) if self._regions else None
        if regions:
            sides = boxes[:, 2:].astype(np.int64)
            return Boxes(*regions, sides, np.concatenate([np.zeros_like(sides), sides], axis=1), flips)
        if self._kept:
            data, starts = self._kept.find(images)
        else:
            unique, inverse = np.unique(images, return_inverse=True)
            data, each = flatten(self._images.decode(unique.tolist()), self._device)
            starts = each[inverse]
        sides = np.stack([self._manifest.heights[images], self._manifest.widths[images]], axis=1).astype(np.int64)
        if arranges(rows.names):
            places = zip(starts.tolist(), sides.tolist(), strict=True)
            found = (data[start : start + 3 * high * wide].view(high, wide, 3) for start, (high, wide) in places)
            data, starts = flatten([arrange(image, rows, row) for row, image in enumerate(found)], self._device)
        return Boxes(data, starts, sides, boxes.astype(np.int64), flips)

    def _decode_regions(self, images: Indexes, boxes: npt.NDArray[np.int32]) -> tuple[Tensor, Indexes] | None:
        """The regions of all boxes as `flatten` gives them; None when a file is left to Pillow, or does not decode."""
        files = self._images.read(images.tolist())
        if not all(file.plain for file in files) or (boxes[:, 2:] < LEAST_SIDE).any():
            return None
        made: list[tuple[Tensor, Indexes]] = []
        self._decoder.start_regions([file.data for file in files], boxes, [file.header for file in files])
        whole = self._decoder.finish_regions(lambda regions: made.append(flatten(regions, self._device)))
        return made[0] if whole else None


class Kept:
    """All images of a set, decoded when they are first needed, in one tensor on the device.

    Raises:
        InputError: when the device has less memory than they take.
    """

    def __init__(self, images: Images, device: torch.device, chunk: int) -> None:
        self._images, self._device, self._chunk = images, device, chunk
        self._bytes, self._filled = int(images.sizes.sum()), 0
        self._starts: Indexes = np.full(len(images.sizes), -1, np.int64)
        self._data: Tensor | None = None
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else self._bytes
        if self._bytes > free:
            raise InputError(
                f"--cache-gib: the images take {byte_count(self._bytes)} decoded, {device} has {byte_count(free)} "
                f"free; give a --cache-gib below that, and they are decoded as they are needed"
            )

    def find(self, images: Indexes) -> tuple[Tensor, Indexes]:
        """The bytes of all images, uint8 ``[B]``, and where ``images`` begin, int64 ``[n]``."""
        if self._data is None:
            self._data = torch.empty(self._bytes, dtype=torch.uint8, device=self._device)
        missing = np.unique(images[self._starts[images] < 0])
        for at in runs(self._images.sizes[missing], CHUNK_BYTES, self._chunk):
            data, starts = flatten(self._images.decode(missing[at].tolist()), self._device)
            self._data[self._filled : self._filled + len(data)] = data
            self._starts[missing[at]] = self._filled + starts
            self._filled += len(data)
        return self._data, self._starts[images]


def flatten(images: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Indexes]:
    """Images one after the other on a device, uint8 ``[B]``, and where each begins, int64 ``[n]``."""
    ends = np.cumsum([image.numel() for image in images])
    if not any(image.is_cuda for image in images):  # copied in one transfer
        return to_device(torch.cat([image.flatten() for image in images]), device), ends - np.diff(ends, prepend=0)
    parts = [to_device(image, device).flatten() for image in images]
    return torch.cat(parts), ends - np.diff(ends, prepend=0)
