"""Files decoded by DALI, whole or a region of each, on a CPU or (whole) with the help of a GPU.

DALI sees no metadata: it decodes what is stored, and images are turned here, by the orientation in their headers.
"""

from __future__ import annotations

import io
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from labelstore.errors import GiftwrapError, InputError, reason
from labelstore.spec import Json
from pipeline.images.headers import Header
from pipeline.render.cache import Data
from pipeline.render.complaints import DamagedDataError, Listener
from pipeline.render.dali_errors import RefusedFileError, explained

_FLIPS = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
"""Axes (rows, columns) flipped by each orientation, after rows and columns were exchanged from 5 on."""
DEPTH = 2  # batches in flight in a pipeline: while one is used, the next is decoded


@cache
def load() -> Any:  # its own type stubs leave most of it out
    """DALI; None if it cannot be imported: Pillow then decodes what a CPU decodes, to the same pixels."""
    try:
        return import_module("nvidia.dali")
    except (ImportError, OSError):
        return None


def require_dali() -> None:
    """Raise InputError if a GPU is to decode and DALI cannot be imported; names the reason."""
    if load() is not None:
        return
    why = "cannot be imported"
    try:
        import_module("nvidia.dali")
    except ModuleNotFoundError:
        why = "is not installed"
    except (ImportError, OSError) as error:
        why = f"cannot be imported ({reason(error)})"
    raise InputError(
        f"decoding on a GPU: DALI {why}; install the one of the driver's CUDA version (nvidia-dali-cuda130 or "
        f"nvidia-dali-cuda120), or give --decoder cpu, which decodes to a CPU's pixels"
    )


class DaliDecoder:
    """Decodes batches of at most ``batch`` files to uint8 RGB, turned upright by their orientation.

    Files are given without their metadata, as `pipeline.render.bare` leaves them. `DEPTH` batches of whole images, and
    as many of regions, may be in flight at a time; they finish in the order in which they were started.
    """

    def __init__(
        self, device: torch.device, threads: int, batch: int, options: Mapping[str, Json] | None = None
    ) -> None:
        """Decode to ``device`` with ``threads`` CPU threads; on a CPU, pipelines are made when they are first needed.

        Args:
            device: where decoded images go; a GPU helps to decode them.
            threads: of the CPU.
            batch: most files at a time.
            options: of the GPU's decoder.

        Raises:
            InputError: when a GPU is to decode and DALI is not there, or cannot work on it.
        """
        self.there = load() is not None
        where: dict[str, Any] = {"device": "cpu"}
        if device.type != "cpu":
            require_dali()
            where = {"device": "mixed", **(options or {})}
        settings = {"batch_size": batch, "num_threads": threads, "device_id": device.index}
        first = {"files": [np.frombuffer(known_jpeg(), np.uint8)] * (batch if device.type == "cuda" else 1)}
        box = {name: np.array([value], np.int32) for name, value in (("anchor", [0, 0]), ("shape", [8, 8]))}
        self._whole, self._single = (_Runner(lambda: _whole(settings, where), device, first) for _ in range(2))
        self._region = _Runner(lambda: _region(settings), device, first | box)
        self._begun: deque[tuple[Sequence[Data], list[int]]] = deque()  # files, and the orientations of their images
        self._regions_begun: deque[list[int]] = deque()  # orientations
        if device.type != "cpu":
            self._whole.make()

    def whole(self, files: Sequence[Data], headers: Sequence[Header]) -> list[Tensor | None]:
        """Decoded images, uint8 ``[H, W, 3]`` on the device; None for a file that DALI refuses or finds damaged.

        Args:
            files: b files without metadata.
            headers: their headers.

        Raises:
            GiftwrapError: DALI fails for another reason than a file.
        """
        images: list[Tensor | None] = []
        self.start(files, headers)
        self.finish(lambda decoded: images.extend(None if image is None else image.clone() for image in decoded))
        return images

    def start(self, files: Sequence[Data], headers: Sequence[Header]) -> None:
        """Begin what `whole` does; `finish` waits for it."""
        self._begun.append((files, [header.orientation for header in headers]))
        if files:
            self._whole.start(files=[np.frombuffer(file, np.uint8) for file in files])

    def finish(self, take: Callable[[list[Tensor | None]], None]) -> None:
        """Wait for the images that were started first and pass them to ``take``; they are invalid after it returns."""
        files, turns = self._begun.popleft()
        if not files:
            take([])
            return
        try:
            self._whole.wait()
        except (DamagedDataError, RefusedFileError):  # of one file at least
            take([self._alone(file, turn) for file, turn in zip(files, turns, strict=True)])
        else:
            self._whole.take(lambda decoded: take(list(map(upright, decoded, turns))))

    def _alone(self, file: Data, turn: int) -> Tensor | None:
        """The image of one file; None if DALI refuses it or finds it damaged."""
        images: list[Tensor] = []
        self._single.start(files=[np.frombuffer(file, np.uint8)])
        try:
            self._single.wait()
        except (DamagedDataError, RefusedFileError):
            return None
        self._single.take(lambda decoded: images.extend(image.clone() for image in decoded))
        return upright(images[0], turn)

    def start_regions(self, files: Sequence[Data], boxes: npt.NDArray[np.int32], headers: Sequence[Header]) -> None:
        """Begin to decode the box (top, left, height, width) of each file; CPU only.

        Args:
            files: b files without metadata.
            boxes: int32 ``[b, 4]``, within the upright images.
            headers: of the files.
        """
        self._regions_begun.append([header.orientation for header in headers])
        inside = np.array([stored_box(box, header) for box, header in zip(boxes, headers, strict=True)], np.int32)
        anchor, shape = (np.ascontiguousarray(part) for part in (inside[:, :2], inside[:, 2:]))
        self._region.start(files=[np.frombuffer(file, np.uint8) for file in files], anchor=anchor, shape=shape)

    def finish_regions(self, take: Callable[[list[Tensor]], None]) -> bool:
        """Wait for the regions that were started first and pass them to ``take``; they are invalid after it returns.

        Returns:
            False, without calling ``take``, if DALI refuses one of the files or finds it damaged.
        """
        turns = self._regions_begun.popleft()
        try:
            self._region.wait()
        except (DamagedDataError, RefusedFileError):
            return False
        self._region.take(lambda regions: take(list(map(upright, regions, turns))))
        return True

    def drop(self) -> None:
        """Release threads and memory, and forget what is being decoded."""
        self._begun.clear()
        self._regions_begun.clear()
        for runner in (self._whole, self._single, self._region):
            runner.drop()


def upright(image: Tensor, orientation: int) -> Tensor:
    """A stored image or region ``[h, w, 3]`` turned upright, contiguous; unchanged if it is upright already."""
    exchanged = image.transpose(0, 1) if orientation >= 5 else image
    flips = _FLIPS[orientation]
    return (exchanged.flip(flips) if flips else exchanged).contiguous()


def stored_pixels(box: Tensor, orientation: int) -> Tensor:
    """A box ``[h, w, 3]`` of an upright image in stored orientation, contiguous: the inverse of `upright`."""
    flips = _FLIPS[orientation]
    flipped = box.flip(flips) if flips else box
    return (flipped.transpose(0, 1) if orientation >= 5 else flipped).contiguous()


def stored_box(box: npt.NDArray[np.int32], header: Header) -> tuple[int, int, int, int]:
    """Where the box (top, left, height, width) of the upright image is in the stored one."""
    top, left, height, width = box.tolist()
    flips = _FLIPS[header.orientation]
    top = header.height - top - height if 0 in flips else top
    left = header.width - left - width if 1 in flips else left
    return (left, top, width, height) if header.orientation >= 5 else (top, left, height, width)


class _Runner:
    """A pipeline with at most `DEPTH` batches in flight; made again after `drop` and after a file it cannot decode."""

    def __init__(self, make: Callable[[], Any], device: torch.device, first: Mapping[str, Any]) -> None:
        """Nothing is made yet.

        Args:
            make: the pipeline.
            device: where it decodes.
            first: inputs of its first batches, whose images nobody takes. DALI runs `DEPTH` batches when it is first
                started. nvImageCodec fixes how many files go to the JPEG hardware by the number of files in its first
                call: with a full batch, all that it can take.
        """
        self._make, self._device, self._first = make, device, first
        self._pipeline: Any = None
        self._begun: deque[tuple[dict[str, Any], Listener]] = deque()  # inputs of batches that were not waited for
        self._outputs: Any = None
        self._inputs: dict[str, Any] = {}  # of the batch whose outputs are there

    @property
    def begun(self) -> int:
        """Number of batches that were started and not waited for."""
        return len(self._begun)

    def make(self) -> None:
        """Make the pipeline and run its first batches.

        Raises:
            InputError: DALI cannot start on the device.
        """
        with explained(self._device, InputError):
            pipeline = self._make()
            pipeline.build()
            for _ in range(DEPTH):
                for name, values in self._first.items():
                    pipeline.feed_input(name, values)
            pipeline.schedule_run()
            for _ in range(DEPTH):
                pipeline.share_outputs()
                pipeline.release_outputs()
        self._pipeline = pipeline

    def start(self, **inputs: Any) -> None:
        """Begin a batch; files are not copied and are kept until it is finished."""
        if self._pipeline is None:
            self.make()
        listener = Listener()
        listener.start()
        try:
            with explained(self._device):
                for name, values in inputs.items():
                    self._pipeline.feed_input(name, values)
                self._pipeline.schedule_run()
        except BaseException:
            listener.stop()
            raise
        self._begun.append((inputs, listener))

    def wait(self) -> None:
        """Wait for the batch that was begun first.

        Raises:
            DamagedDataError: when it, or another batch in flight, has damaged data; it must not be used.
            RefusedFileError: when a file cannot be decoded. Later batches have been started again.
            GiftwrapError: DALI failed for another reason.
        """
        try:
            damaged = self._wait()
        except RefusedFileError:
            rest = [inputs for inputs, _ in self._begun]
            self.drop()
            for inputs in rest:
                self.start(**inputs)
            raise
        if damaged:
            self._release()
            raise DamagedDataError("a decoder found damaged data")

    def _wait(self) -> bool:
        """Wait for the batch that was started first; returns whether a decoder found damaged data meanwhile."""
        self._inputs, listener = self._begun.popleft()
        try:
            with explained(self._device, of_files=True):
                self._outputs = self._pipeline.share_outputs()
        finally:
            damaged = listener.stop()
        return damaged

    def take(self, take: Callable[[list[Tensor]], None]) -> None:
        """Pass the batch that was waited for to ``take`` in DALI's own memory, which is reused afterwards."""
        take([from_dlpack(image) for image in self._outputs[0]])
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # and not what other streams are doing
        self._release()

    def _release(self) -> None:
        """Give the batch's memory back to DALI."""
        if self._outputs is not None:
            self._outputs, self._inputs = None, {}
            self._pipeline.release_outputs()

    def drop(self) -> None:
        """Forget the pipeline; what it is doing must end first, for it reads the inputs."""
        with suppress(RuntimeError, GiftwrapError):
            self._release()
        while self._begun:
            with suppress(RuntimeError, GiftwrapError):
                self._wait()
                self._release()
        self._pipeline, self._outputs, self._inputs = None, None, {}


@cache
def known_jpeg() -> bytes:
    """A small image in the coding that JPEG hardware takes: baseline, 4:2:0."""
    file = io.BytesIO()
    Image.fromarray((np.arange(3 * 64 * 64) % 251).astype(np.uint8).reshape(64, 64, 3)).save(
        file, "JPEG", subsampling=2
    )
    return file.getvalue()


def _whole(settings: dict[str, Any], where: dict[str, Any]) -> Any:
    """Files to images."""
    dali = load()
    fn, types = dali.fn, dali.types
    pipeline = dali.Pipeline(**settings, prefetch_queue_depth=DEPTH)
    with pipeline:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
        pipeline.set_outputs(fn.decoders.image(files, output_type=types.RGB, adjust_orientation=False, **where))
    return pipeline


def _region(settings: dict[str, Any]) -> Any:
    """Files and boxes to regions of images."""
    dali = load()
    fn, types = dali.fn, dali.types
    pipeline = dali.Pipeline(**settings, prefetch_queue_depth=DEPTH)
    with pipeline:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
        anchor, shape = (fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("anchor", "shape"))
        regions = fn.decoders.image_slice(
            files, anchor, shape, axis_names="HW", output_type=types.RGB, adjust_orientation=False
        )
        pipeline.set_outputs(regions)
    return pipeline
