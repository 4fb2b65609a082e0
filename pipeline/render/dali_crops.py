"""The renderer of ``--augmenter dali``: DALI decodes, cuts, resizes and flips, and nothing is kept.

It is for sets that no memory holds. Files are read ahead by threads, and DALI works on two batches while the crops of
the one before are used. A crop is a function of its file and its row: what DALI must not decode, or refuses, and boxes
that it cannot cut, are decoded whole by Pillow, and resized and flipped by the same operators.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import GiftwrapError, InputError
from labelstore.format.columns import CROP_COLUMNS, CropRows
from labelstore.spec import Json
from pipeline.plan.augment import arrange, arranges
from pipeline.render.cache import Encoded, Images, runs
from pipeline.render.complaints import DamagedDataError
from pipeline.render.crops import CHUNK_BYTES, CHUNK_CROPS, LEAST_SIDE, finish
from pipeline.render.dali import DaliDecoder, load, stored_box, stored_pixels, upright
from pipeline.render.dali_errors import RefusedFileError
from pipeline.render.dali_pipelines import (
    DEPTH,
    Making,
    Running,
    first_files,
    first_pixels,
    of_files,
    of_pixels,
)
from pipeline.render.dali_reading import FileReader
from pipeline.render.identity import DECODERS, renderer_id
from pipeline.render.resize import cut

if TYPE_CHECKING:
    from pipeline.images.manifest import Manifest
    from pipeline.plan.plan import PlanSpec

SAMPLE = 16  # images that a GPU decodes together and one by one, as a check
READ_AHEAD = 2  # chunks, besides those that DALI works on

Indexes = npt.NDArray[np.int64]
Boxes = npt.NDArray[np.int32]


def decodes_whole(spec: PlanSpec) -> bool:
    """Whether the crops of a plan are cut from whole images, which Pillow decodes."""
    return bool(spec.effective_pad) or arranges(spec.columns)


class DaliRenderer:
    """Renders crops of a manifest's images; see `pipeline.render.make_renderer`.

    Attributes:
        id: all that the pixels depend on besides images and rows.
    """

    def __init__(self, manifest: Manifest, spec: PlanSpec, device: torch.device, decoder: str, threads: int) -> None:
        """Render on ``device`` with ``threads`` CPU threads.

        Args:
            manifest: the images.
            spec: the plan.
            device: where crops are made.
            decoder: one of `pipeline.render.identity.DECODERS`; ``cpu`` where `decodes_whole`.
            threads: of the CPU, for reading and for each pipeline. Has no effect on pixels.

        Raises:
            InputError: DALI is not installed.
            GiftwrapError: the decoder's pixels depend on the other images of a batch.
        """
        if load() is None:
            raise InputError(
                "--augmenter dali: expected DALI, found that it cannot be imported here; install nvidia-dali-cuda130, "
                "or take --augmenter pillow"
            )
        self.id: dict[str, Json] = renderer_id(device, decoder, spec.columns, "dali")
        self._spec, self._device, self._whole = spec, device, decodes_whole(spec)
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._threads, self._chunk = threads, max(CHUNK_CROPS, 8 * threads)
        self._pool = ThreadPoolExecutor(threads, "giftwrap-render")
        self._making = Making(
            device, spec.size, spec.interpolation, threads, self._chunk, decoder != "cpu", DECODERS[decoder]
        )
        self._sound = DaliDecoder(torch.device("cpu"), threads, self._chunk)
        self._reader = FileReader(threads, self._chunk)
        self._images = Images(manifest, None, self._pool, 0, self._reader.read)
        self._pixels = Running(of_pixels, first_pixels, self._making, self._stream)
        self._left: set[int] = set()  # images that DALI refuses, or finds damaged
        self._lock = threading.Lock()  # of what is decoded whole
        self._idle: list[Running] = []
        if self._making.on_gpu:
            self._require_steady(manifest, decoder)

    def render(self, rows: CropRows) -> Tensor:
        """The crops of n rows, after mixing.

        Args:
            rows: n rows; whole groups where they are mixed.

        Returns:
            uint8 ``[n, S, S, 3]`` on the renderer's device.

        Raises:
            InputError: an image is gone, has changed or does not decode (the file is named), or a row is not of
                these images.
            GiftwrapError: DALI failed, and not because of a file.
        """
        (crops,) = self.render_all([rows])
        return crops

    def render_all(self, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """The crops of each of ``parts``, equal to `render`; the next ones are made while one is used.

        Parts are taken ahead: as many as fill the chunks that are read and decoded ahead, and one.
        """
        files = self._idle.pop() if self._idle else Running(of_files, first_files, self._making, self._stream)
        try:
            yield from self._stream_parts(files, parts)
        finally:
            if files.under_way:  # also on Ctrl-C: a batch in flight must not reach the next call
                files.drop()
            self._idle.append(files)

    def close(self) -> None:
        """Release threads and memory; the renderer cannot be used any more."""
        self._pool.shutdown()
        for each in (*self._idle, self._pixels):
            each.drop()
        self._sound.drop()
        self._reader.close()
        self._idle.clear()

    def _stream_parts(self, files: Running, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """Start chunks while earlier ones are in flight; yields finished parts in order."""
        under_way: deque[_Chunk] = deque()
        for chunk in self._reading(parts):
            done = self._finish(files, under_way) if len(under_way) == DEPTH else None
            self._start(files, chunk)
            under_way.append(chunk)
            if done is not None:
                yield self._given(done)
        while under_way:
            done = self._finish(files, under_way)
            if done is not None:
                yield self._given(done)

    def _reading(self, parts: Iterable[CropRows]) -> Iterator[_Chunk]:
        """The chunks of all parts; the files of the next ones are being read."""
        ahead: deque[_Chunk] = deque()
        for chunk in self._chunks(parts):
            chunk.read = self._images.begin(chunk.part.images[chunk.rows].tolist())
            ahead.append(chunk)
            if len(ahead) > READ_AHEAD:
                yield ahead.popleft()
        yield from ahead

    def _chunks(self, parts: Iterable[CropRows]) -> Iterator[_Chunk]:
        """What is made at a time: rows of one part, within the limits."""
        for rows in parts:
            part = self._part(rows)
            chunks = list(runs(self._images.sizes[part.images], CHUNK_BYTES, self._chunk)) or [np.arange(0)]
            for number, at in enumerate(chunks, start=1):
                yield _Chunk(part, at, number == len(chunks))

    def _part(self, rows: CropRows) -> _Part:
        """The rows of a call, checked, and memory for their crops."""
        spec = self._spec
        images, boxes = rows.image.astype(np.int64), rows.boxes(spec.effective_pad)
        self._images.require_inside(images, boxes, spec.effective_pad)
        with torch.cuda.stream(self._stream):
            crops = torch.empty((len(rows), spec.size, spec.size, 3), dtype=torch.uint8, device=self._device)
        return _Part(rows, images, boxes, rows.flip, crops)

    def _start(self, files: Running, chunk: _Chunk) -> None:
        """Begin to make what DALI cuts from files; the other rows of the chunk are made when it is finished."""
        chunk.files = chunk.read()
        small = chunk.part.boxes[chunk.rows, 2:].min(axis=1, initial=LEAST_SIDE) < LEAST_SIDE
        for place, file in enumerate(chunk.files):
            left = self._whole or file.bare is None or small[place] or file.image in self._left
            (chunk.others if left else chunk.regions).append(place)
        if chunk.regions:
            self._start_regions(files, chunk, chunk.regions)

    def _start_regions(self, files: Running, chunk: _Chunk, places: Sequence[int]) -> None:
        """Begin to make the crops at ``places`` of a chunk."""
        chosen = [chunk.files[place] for place in places]
        inside = chunk.part.boxes[chunk.rows[places]]
        for place, file in enumerate(chosen):
            if file.header.orientation != 1:
                inside[place] = stored_box(inside[place], file.header)
        files.start(
            files=[np.frombuffer(file.bare, np.uint8) for file in chosen if file.bare is not None],
            anchor=np.ascontiguousarray(inside[:, :2]),
            shape=np.ascontiguousarray(inside[:, 2:]),
            flips=chunk.flips(places),
        )

    def _finish(self, files: Running, under_way: deque[_Chunk]) -> _Part | None:
        """Finish the first chunk in flight; returns its part if that is now complete."""
        chunk = under_way.popleft()
        with torch.cuda.stream(self._stream):
            if chunk.regions:
                try:
                    files.take(chunk.part.crops, chunk.rows[chunk.regions])
                except (RefusedFileError, DamagedDataError):
                    self._one_by_one(files, chunk)
                    for later in under_way:
                        if later.regions:
                            self._start_regions(files, later, later.regions)
            for at in runs(self._images.sizes[chunk.part.images[chunk.rows[chunk.others]]], CHUNK_BYTES, self._chunk):
                self._make_whole(chunk, [chunk.others[index] for index in at.tolist()])
            self._turn(chunk)
        return chunk.part if chunk.last else None

    def _one_by_one(self, files: Running, chunk: _Chunk) -> None:
        """Make the crops of a batch again, one by one; a file that fails is decoded by the CPU from then on."""
        files.drop()
        for place in chunk.regions:
            try:
                self._start_regions(files, chunk, [place])
                files.take(chunk.part.crops, chunk.rows[[place]])
            except (RefusedFileError, DamagedDataError) as error:
                files.drop()
                self._require_bad(chunk.files[place], error)
                self._left.add(chunk.files[place].image)
                chunk.others.append(place)

    def _require_bad(self, file: Encoded, error: RuntimeError) -> None:
        """Raise GiftwrapError if a GPU fails on a file that a CPU decodes: pixels would depend on the GPU's state."""
        if self._making.on_gpu:
            with self._lock:
                sound = file.bare is not None and self._sound.whole([file.bare], [file.header])[0] is not None
            if sound:
                raise GiftwrapError(
                    f"--augmenter dali: the GPU fails to decode a sound image (index {file.image}): "
                    f"{error.__cause__ or error}; free memory of the GPU, or add --decoder cpu"
                ) from error

    def _require_steady(self, manifest: Manifest, decoder: str) -> None:
        """Make crops of a few images together and one by one; GiftwrapError if pixels differ."""
        some = np.unique(np.linspace(0, len(manifest) - 1, min(SAMPLE, len(manifest))).astype(np.int64))
        sides = np.stack([manifest.heights[some], manifest.widths[some]])
        values = [some & 0xFFFF, some >> 16, *np.zeros_like(sides), *sides, np.zeros_like(some)]
        rows = CropRows(CROP_COLUMNS, np.stack(values).astype(np.uint16))
        together = self.render(rows)
        for at in reversed(range(len(rows))):
            if not torch.equal(self.render(rows.take(np.array([at])))[0], together[at]):
                raise GiftwrapError(
                    f"--augmenter dali, decoder {decoder}: expected the same pixels of {manifest.place(int(some[at]))} "
                    f"alone and with other images, found others; give --decoder cpu, or a GPU that nothing else uses"
                )

    def _make_whole(self, chunk: _Chunk, places: Sequence[int]) -> None:
        """Make crops from whole images that Pillow decodes, with boxes in stored orientation, as DALI cuts them."""
        part, rows = chunk.part, chunk.rows[list(places)]
        files = [chunk.files[place] for place in places]
        self._images.name_damaged([file for file in files if file.bare is None or file.image in self._left])
        boxes = []
        for image, file, row in zip(self._images.decode(files), files, rows.tolist(), strict=True):
            box = cut(arrange(image, part.rows, row), part.boxes[row].tolist())
            boxes.append(stored_pixels(box, file.header.orientation).numpy())
        with self._lock:
            try:
                self._pixels.start(boxes=boxes, flips=chunk.flips(places))
                self._pixels.take(part.crops, rows)
            except BaseException:  # Ctrl-C too
                self._pixels.drop()
                raise

    def _turn(self, chunk: _Chunk) -> None:
        """Turn crops upright whose files are stored turned, and flip them then."""
        crops = chunk.part.crops
        for row, file in zip(chunk.rows.tolist(), chunk.files, strict=True):
            if file.header.orientation != 1:
                turned = upright(crops[row], file.header.orientation)
                crops[row] = turned.flip(1) if chunk.part.flips[row] else turned

    def _given(self, part: _Part) -> Tensor:
        """The finished crops of a part, for the caller's stream."""
        with torch.cuda.stream(self._stream):
            crops = finish(part.crops, part.rows, self._spec, self._pool)
        if self._stream is not None:
            callers = torch.cuda.current_stream(self._device)
            callers.wait_stream(self._stream)
            crops.record_stream(callers)
        return crops


@dataclass(frozen=True, slots=True)
class _Part:
    """The rows of one call, and the crops that are being made of them.

    Attributes:
        rows: n rows.
        images: int64 ``[n]``.
        boxes: int32 ``[n, 4]``, within the upright images.
        flips: bool ``[n]``.
        crops: uint8 ``[n, S, S, 3]`` on the device.
    """

    rows: CropRows
    images: Indexes
    boxes: Boxes
    flips: npt.NDArray[np.bool_]
    crops: Tensor


@dataclass(slots=True)
class _Chunk:
    """Rows that are made at a time; a place is an index into them.

    Attributes:
        part: theirs.
        rows: of the part, int64 ``[b]``.
        last: whether the part ends with them.
        read: waits for their files.
        files: one for each row, when they have been read.
        regions: places of the crops that DALI cuts from files.
        others: places of the crops that are cut from whole images.
    """

    part: _Part
    rows: Indexes
    last: bool
    read: Callable[[], list[Encoded]] = list
    files: list[Encoded] = field(default_factory=list)
    regions: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)

    def flips(self, places: Sequence[int]) -> npt.NDArray[np.int32]:
        """Which of the crops at ``places`` DALI flips, int32 ``[b]``: those of turned files are turned first."""
        upright = np.array([self.files[place].header.orientation == 1 for place in places])
        flips: npt.NDArray[np.int32] = (self.part.flips[self.rows[list(places)]] & upright).astype(np.int32)
        return flips
