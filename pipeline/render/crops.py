"""The renderer of crops on a CPU: files decoded, boxes cut, resized and flipped, crops mixed.

As many images as fit the cache are decoded once, and crops cut from memory. Of the others only the region that a crop
needs is decoded: it has the pixels of the whole image cut afterwards.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.plan.augment import MIXES, arrange, arranges, pixels_of
from pipeline.render.cache import Images, runs
from pipeline.render.dali import DaliDecoder
from pipeline.render.identity import renderer_id
from pipeline.render.resize import cut, resize_into

if TYPE_CHECKING:
    from pipeline.images.manifest import Manifest
    from pipeline.plan.plan import PlanSpec

CHUNK_CROPS = 64  # crops at a time (8 a thread if that is more) ...
CHUNK_BYTES = 256 << 20  # ... of at most so many bytes of decoded images, or of one image
SPAN = 8  # crops that a thread resizes in one task
LEAST_SIDE = 2  # least side of regions: a single column of JPEG 4:2:0 at the left border would decode to other chroma

Indexes = npt.NDArray[np.int64]


class CropRenderer:
    """Renders crops of a manifest's images; see `pipeline.render.make_renderer`.

    Attributes:
        id: all that the pixels depend on besides images and rows.
    """

    def __init__(self, manifest: Manifest, spec: PlanSpec, threads: int, cache_bytes: int) -> None:
        """Render with ``threads`` CPU threads and ``cache_bytes`` for decoded images."""
        device = torch.device("cpu")
        self.id: dict[str, Json] = renderer_id(device, "cpu", spec.columns)
        self._spec = spec
        self._chunk = max(CHUNK_CROPS, 8 * threads)
        self._pool = ThreadPoolExecutor(threads, "giftwrap-render")
        self._decoder = DaliDecoder(device, threads, self._chunk)
        decode = self._decoder.whole if self._decoder.there else None
        self._images = Images(manifest, decode, self._pool, cache_bytes)
        whole = bool(spec.effective_pad) or arranges(spec.columns)
        self._regions = self._decoder.there and not whole
        self._lock = threading.Lock()

    def render(self, rows: CropRows) -> Tensor:
        """The crops of n rows, after mixing.

        Args:
            rows: n rows; whole groups where they are mixed.

        Returns:
            uint8 ``[n, S, S, 3]``.

        Raises:
            InputError: an image is gone, has changed or does not decode (the file is named), or a row is not of
                these images.
        """
        spec, size = self._spec, self._spec.size
        images, boxes = rows.image.astype(np.int64), rows.boxes(spec.effective_pad)
        self._images.require_inside(images, boxes, spec.effective_pad)
        crops = torch.empty((len(rows), size, size, 3), dtype=torch.uint8)
        work = _Work(crops, rows, images, boxes, rows.flip)
        with self._lock:
            try:
                kept = self._images.room.admit(images) | (not self._regions)
                for at in self._chunks(images, np.flatnonzero(kept)):
                    self._render_whole(work, at)
                self._render_regions(work, np.flatnonzero(~kept))
            except BaseException:  # Ctrl-C too: a batch in flight must not reach the next call
                self._decoder.drop()
                raise
        return finish(crops, rows, spec, self._pool)

    def make_room(self, images: Indexes) -> None:
        """Release the decoded images that are kept, if these ``[n]`` do not fit beside them."""
        with self._lock:
            if self._images.room.cleared_for(images):
                self._images.forget()

    def close(self) -> None:
        """Release threads and memory; the renderer cannot be used any more."""
        with self._lock:
            self._pool.shutdown()
            self._decoder.drop()
            self._images.forget()

    def _chunks(self, images: Indexes, at: Indexes) -> list[Indexes]:
        """Some rows of ``images`` in runs that fit the limits, int64 ``[b]`` each."""
        return [at[run] for run in runs(self._images.sizes[images[at]], CHUNK_BYTES, self._chunk)]

    def _render_regions(self, work: _Work, rows: Indexes) -> None:
        """Render some rows from regions of files; while DALI decodes some, the next files are read."""
        chunks = self._chunks(work.images, rows)
        reading = self._images.read_ahead([work.images[at].tolist() for at in chunks])
        for at, files in zip(chunks, reading, strict=True):
            by_region = np.array([file.plain for file in files]) & (work.boxes[at, 2:].min(axis=1) >= LEAST_SIDE)
            regions, others = at[by_region], at[~by_region]
            if len(regions):
                chosen = [file for file, region in zip(files, by_region.tolist(), strict=True) if region]
                data, headers = (
                    [stored for file in chosen if (stored := file.bare) is not None],
                    [file.header for file in chosen],
                )
                self._decoder.start_regions(data, work.boxes[regions], headers)
                if not self._decoder.finish_regions(partial(self._resize, work, regions)):
                    others = at  # whole and one by one, the file that does not decode gets its name
            if len(others):
                self._render_whole(work, others)

    def _render_whole(self, work: _Work, at: Indexes) -> None:
        """Render from decoded images."""
        images = zip(self._images.whole(work.images[at].tolist()), at.tolist(), strict=True)
        arranged = (arrange(image, work.rows, row) for image, row in images)
        cuts = [cut(image, box) for image, box in zip(arranged, work.boxes[at].tolist(), strict=True)]
        self._resize(work, at, cuts)

    def _resize(self, work: _Work, at: Indexes, pixels: Sequence[Tensor]) -> None:
        """Finish the crops ``at`` from the pixels of their boxes, uint8 ``[h, w, 3]`` each."""
        rows = list(zip(at.tolist(), pixels, work.flips[at].tolist(), strict=True))

        def some(start: int) -> None:
            for row, box, flip in rows[start : start + SPAN]:
                resize_into(work.crops[row], box, flip, self._spec.interpolation)

        list(self._pool.map(some, range(0, len(rows), SPAN)))  # raises the threads' errors


@dataclass(frozen=True, slots=True)
class _Work:
    """The rows of one call, and the crops that are being made of them.

    Attributes:
        crops: uint8 ``[n, S, S, 3]``.
        rows: their n rows.
        images: int64 ``[n]``.
        boxes: int32 ``[n, 4]``.
        flips: bool ``[n]``.
    """

    crops: Tensor
    rows: CropRows
    images: Indexes
    boxes: npt.NDArray[np.int32]
    flips: npt.NDArray[np.bool_]


def finish(crops: Tensor, rows: CropRows, spec: PlanSpec, pool: Executor) -> Tensor:
    """Crops as the plan has them, from crops that are cut, resized and flipped; on their device."""
    changed = change_pixels(crops, rows, pool)
    return MIXES[spec.mix].mix(changed, rows, spec.group) if rows.mixed else changed


def change_pixels(crops: Tensor, rows: CropRows, pool: Executor) -> Tensor:
    """Crops ``[n, S, S, 3]`` after the augmentations of their pixels, on their device; made by Pillow, on a CPU."""
    augmentations = pixels_of(rows.names)
    if not augmentations:
        return crops
    pixels = crops.cpu().numpy()
    values = [(each, np.stack([rows.column(name) for name in own], 1).tolist()) for each, own in augmentations]
    changed = np.empty_like(pixels)

    def some(start: int) -> None:
        for row in range(start, min(start + SPAN, len(pixels))):
            crop = pixels[row]
            for each, of_rows in values:
                crop = each.change(crop, tuple(of_rows[row]))
            changed[row] = crop

    list(pool.map(some, range(0, len(pixels), SPAN)))  # raises the threads' errors
    return torch.from_numpy(changed).to(crops.device)
