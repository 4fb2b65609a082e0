"""DALI pipelines that make whole crops, and how they are run: two batches ahead of what is taken.

`pipeline.render.dali_crops` makes crops with them.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from labelstore.spec import Json
from pipeline.render import dali
from pipeline.render.complaints import DamagedDataError, Listener
from pipeline.render.dali_errors import RefusedFileError, explained

DEPTH = 2  # batches that DALI works on at a time


@dataclass(frozen=True, slots=True)
class Making:
    """How crops are made.

    Attributes:
        device: where they are made.
        size: their side S.
        interpolation: ``bilinear`` or ``bicubic``; antialiased.
        threads: of the CPU, for each pipeline.
        batch: most crops at a time.
        on_gpu: whether files are decoded with the help of a GPU.
        decoder: options of that.
    """

    device: torch.device
    size: int
    interpolation: str
    threads: int
    batch: int
    on_gpu: bool
    decoder: Mapping[str, Json]


def of_files(making: Making) -> Any:
    """Inputs ``files`` (bytes), ``anchor``, ``shape`` (int32 ``[b, 2]``), ``flips`` (int32 ``[b]``) to crops."""
    fn, types = dali.load().fn, dali.load().types
    pipeline = _empty(making)
    with pipeline:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
        anchor, shape = (fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("anchor", "shape"))
        options = {"output_type": types.RGB, "adjust_orientation": False}
        if making.on_gpu:
            # A whole image: its box alone took 2.4 times as long (H200, 16 cores).
            images = fn.decoders.image(files, device="mixed", **options, **making.decoder)
            boxes = fn.slice(images, anchor, shape, axis_names="HW", normalized_anchor=False, normalized_shape=False)
        else:
            boxes = fn.decoders.image_slice(files, anchor, shape, axis_names="HW", **options)
        pipeline.set_outputs(_crops(making, boxes))
    return pipeline


def of_pixels(making: Making) -> Any:
    """Inputs ``boxes`` (uint8 ``[h, w, 3]`` each, on the CPU), ``flips`` (int32 ``[b]``) to crops."""
    fn, types = dali.load().fn, dali.load().types
    pipeline = _empty(making)
    with pipeline:
        boxes = fn.external_source(name="boxes", dtype=types.UINT8, ndim=3, layout="HWC", no_copy=True)
        pipeline.set_outputs(_crops(making, boxes))
    return pipeline


def _empty(making: Making) -> Any:
    """A pipeline without operators."""
    return dali.load().Pipeline(
        batch_size=making.batch,
        num_threads=making.threads,
        device_id=making.device.index,
        prefetch_queue_depth=DEPTH,
    )


def _crops(making: Making, boxes: Any) -> Any:
    """Boxes resized and flipped on the device, in the operators that both pipelines share."""
    fn, types = dali.load().fn, dali.load().types
    flips = fn.external_source(name="flips", dtype=types.INT32, ndim=0)
    filters = {"bilinear": types.INTERP_LINEAR, "bicubic": types.INTERP_CUBIC}
    if making.device.type == "cuda":
        boxes = boxes.gpu()
    resized = fn.resize(boxes, size=[making.size] * 2, interp_type=filters[making.interpolation], antialias=True)
    return fn.flip(resized, horizontal=flips)


def first_files(batch: int) -> dict[str, Any]:
    """A batch for `of_files` that decodes."""
    file = io.BytesIO()
    Image.new("RGB", (16, 16), (90, 120, 150)).save(file, "JPEG")
    place = np.zeros((batch, 2), np.int32)
    files = [np.frombuffer(file.getvalue(), np.uint8)] * batch
    return {"files": files, "anchor": place, "shape": place + 16, "flips": np.zeros(batch, np.int32)}


def first_pixels(batch: int) -> dict[str, Any]:
    """A batch for `of_pixels`."""
    return {"boxes": [np.zeros((16, 16, 3), np.uint8)] * batch, "flips": np.zeros(batch, np.int32)}


class Running:
    """A pipeline with at most `DEPTH` batches that are started and not yet taken; made again after `drop`."""

    def __init__(
        self, make: Callable[[Making], Any], first: Callable[[int], dict[str, Any]], making: Making, stream: Any = None
    ) -> None:
        """Nothing is made yet.

        Args:
            make: `of_files` or `of_pixels`.
            first: makes the batch, a full one, that a new pipeline runs before any other: DALI needs `DEPTH` of them,
                what its decoder finds out at its first batch is the same in every run, and what fails here fails for no
                file.
            making: how.
            stream: of a GPU, in whose order crops are taken; None on a CPU.
        """
        self._make, self._first, self._making, self._stream = make, first, making, stream
        self._decodes = make is of_files
        self._pipeline: Any = None
        self._under_way: deque[Listener] = deque()
        self._taken: object = None
        # Read in place, and on a GPU a little after their batch is taken.
        self._inputs: deque[object] = deque(maxlen=2 * DEPTH)

    def start(self, **inputs: Any) -> None:
        """Begin a batch; the inputs are not copied."""
        if self._pipeline is None:
            self._pipeline = self._made()
        self._inputs.append(inputs)
        with explained(self._making.device):
            for name, values in inputs.items():
                self._pipeline.feed_input(name, values)
        listener = Listener()
        if self._decodes:
            listener.start()
        self._under_way.append(listener)
        # A file's failure, if any, is one of a batch before this one: `take` finds it out.
        with suppress(RefusedFileError), explained(self._making.device, of_files=len(self._under_way) > 1):
            self._pipeline.schedule_run()

    def take(self, crops: Tensor, at: npt.NDArray[np.int64]) -> None:
        """Wait for the batch that was started first, and copy it to the rows ``at``, ``[b]``, of ``crops``.

        Args:
            crops: uint8 ``[n, S, S, 3]`` on the device.
            at: ascending where it can be: rows that follow each other are copied at once.

        Raises:
            RefusedFileError: DALI does not decode a file of it; `drop` before anything else is started.
            DamagedDataError: a file of it, or of another batch under way, is damaged; likewise.
            GiftwrapError: DALI failed for another reason.
        """
        try:
            with explained(self._making.device, of_files=self._decodes):
                made = self._pipeline.share_outputs(self._stream)[0]
        finally:
            damaged = self._under_way.popleft().stop()
        if damaged:
            raise DamagedDataError("a decoder found damaged data")
        batch, start = _tensor(made), 0
        for rows in np.split(at, np.flatnonzero(np.diff(at) != 1) + 1):
            crops[rows[0] : rows[-1] + 1].copy_(batch[start : start + len(rows)])
            start += len(rows)
        # Their memory is DALI's again when they are gone, in the order of the stream; they stay until the next batch.
        self._taken = (made, batch)
        self._pipeline.release_outputs()

    def drop(self) -> None:
        """Discard the pipeline and batches in flight, after they have ended, since they read the inputs."""
        while self._under_way:
            with suppress(Exception):  # whatever failed, the batch is not needed
                self._pipeline.share_outputs()
                self._pipeline.release_outputs()
            self._under_way.popleft().stop()
        self._pipeline, self._taken = None, None
        self._inputs.clear()

    @property
    def under_way(self) -> int:
        """Batches started and not yet taken."""
        return len(self._under_way)

    def _made(self) -> Any:
        """A new pipeline that has run `DEPTH` batches."""
        first = self._first(self._making.batch)  # read in place
        with explained(self._making.device):
            pipeline = self._make(self._making)
            pipeline.build()
            for _ in range(DEPTH):
                for name, values in first.items():
                    pipeline.feed_input(name, values)
            pipeline.schedule_run()  # the first time, `DEPTH` batches
            for _ in range(DEPTH):
                pipeline.share_outputs()
                pipeline.release_outputs()
        return pipeline


def _tensor(made: Any) -> Tensor:
    """A batch of crops, uint8 ``[b, S, S, 3]``, in DALI's own memory where it lies in one run."""
    if made.is_dense_tensor():
        return from_dlpack(made.as_tensor())
    return torch.stack([from_dlpack(each) for each in made])
