"""Files decoded by DALI, whole or a region of each, on a CPU or (whole) with the help of a GPU.

DALI sees no metadata: it decodes what is stored, and images are turned here, by the orientation in their headers.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.images.headers import Header, read_header
from pipeline.render.bare import bare
from pipeline.render.complaints import DamagedDataError, Listener

_FLIPS = {1: (), 2: (1,), 3: (0, 1), 4: (0,), 5: (), 6: (1,), 7: (0, 1), 8: (0,)}
"""Axes (rows, columns) flipped by each orientation, after rows and columns were exchanged from 5 on."""


@cache
def load() -> Any:  # its own type stubs leave most of it out
    """DALI; None where it cannot be imported: Pillow then decodes what a CPU decodes, to the same pixels."""
    try:
        return import_module("nvidia.dali")
    except (ImportError, OSError):
        return None


class DaliDecoder:
    """Decodes batches of at most ``batch`` files to uint8 RGB, turned upright by their orientation."""

    def __init__(
        self, device: torch.device, threads: int, batch: int, options: Mapping[str, Json] | None = None
    ) -> None:
        """Decode to ``device`` with ``threads`` CPU threads; pipelines are made when they are first needed.

        Args:
            device: where decoded images go; a GPU helps to decode them.
            threads: of the CPU.
            batch: most files at a time.
            options: of the GPU's decoder.

        Raises:
            InputError: when a GPU is to decode and DALI is not there.
        """
        self.there = load() is not None
        if not self.there and device.type != "cpu":
            raise InputError("decoding on a GPU: DALI cannot be imported here; install it, or take --decoder cpu")
        where: dict[str, Any] = {"device": "cpu"} if device.type == "cpu" else {"device": "mixed", **(options or {})}
        settings = {"batch_size": batch, "num_threads": threads, "device_id": device.index, "prefetch_queue_depth": 1}
        self._whole = _Runner(lambda: _whole(settings, where), device)
        self._region = _Runner(lambda: _region(settings), device)
        self._turns: list[int] = []  # of the regions that are being decoded
        self._all_there = True  # whether they are: DALI is given all or none

    def whole(self, files: Sequence[bytes], headers: Sequence[Header] | None = None) -> list[Tensor | None]:
        """Decoded images, uint8 ``[H, W, 3]`` on the device; None for a file that DALI refuses or finds damaged.

        Args:
            files: encoded images.
            headers: their headers, read here when None.
        """
        headers = _headers(files) if headers is None else headers
        stored = [bare(header.kind, file) for file, header in zip(files, headers, strict=True)]
        given = [place for place, file in enumerate(stored) if file is not None] if self.there else []
        images: list[Tensor | None] = [None] * len(files)
        decoded = self._stored([stored[place] or b"" for place in given])
        for place, image in zip(given, decoded, strict=True):
            images[place] = None if image is None else upright(image, headers[place].orientation)
        return images

    def _stored(self, files: Sequence[bytes]) -> list[Tensor | None]:
        """Images as they are stored; None for a file that DALI refuses or finds damaged."""
        if not files:
            return []
        images: list[Tensor | None] = []
        try:
            self._whole.start(files=[np.frombuffer(file, np.uint8) for file in files])
            self._whole.finish(lambda decoded: images.extend(image.clone() for image in decoded))
        except RuntimeError as error:  # of one file at least
            if not isinstance(error, DamagedDataError):
                self._whole.drop()
            return [None] if len(files) == 1 else [self._stored([file])[0] for file in files]
        return images

    def start_regions(
        self, files: Sequence[bytes], boxes: npt.NDArray[np.int32], headers: Sequence[Header] | None = None
    ) -> None:
        """Begin to decode the box (top, left, height, width) of each file; CPU only.

        Args:
            files: b encoded images.
            boxes: int32 ``[b, 4]``, within the upright images.
            headers: of the files, read here when None.
        """
        headers = _headers(files) if headers is None else headers
        self._turns = [header.orientation for header in headers]
        stored = [file for file in map(bare, (header.kind for header in headers), files) if file is not None]
        self._all_there = len(stored) == len(files)
        if self._all_there:
            inside = np.array([stored_box(box, header) for box, header in zip(boxes, headers, strict=True)], np.int32)
            anchor, shape = (np.ascontiguousarray(part) for part in (inside[:, :2], inside[:, 2:]))
            self._region.start(files=[np.frombuffer(file, np.uint8) for file in stored], anchor=anchor, shape=shape)

    def finish_regions(self, take: Callable[[list[Tensor]], None]) -> bool:
        """Wait for the regions and pass them to ``take``; they are invalid after it returns.

        Returns:
            False, without calling ``take``, if DALI refuses one of the files, finds it damaged, or must not decode it.
        """
        if not self._all_there:
            return False
        try:
            self._region.wait()
        except DamagedDataError:
            return False
        except RuntimeError:
            self._region.drop()
            return False
        self._region.finish(lambda regions: take(list(map(upright, regions, self._turns))))
        return True

    def drop(self) -> None:
        """Release threads and memory, and forget what is being decoded."""
        self._whole.drop()
        self._region.drop()


def upright(image: Tensor, orientation: int) -> Tensor:
    """A stored image or region ``[h, w, 3]`` as it is seen, contiguous; itself where nothing is turned."""
    exchanged = image.transpose(0, 1) if orientation >= 5 else image
    flips = _FLIPS[orientation]
    return (exchanged.flip(flips) if flips else exchanged).contiguous()


def stored_pixels(box: Tensor, orientation: int) -> Tensor:
    """A box ``[h, w, 3]`` of an upright image as it is stored, contiguous: `upright` undone."""
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


def _headers(files: Sequence[bytes]) -> list[Header]:
    """The headers of files that have been read before."""
    return [read_header(io.BytesIO(file)) for file in files]


class _Runner:
    """A pipeline that runs one batch at a time, without prefetching; made anew after `drop`."""

    def __init__(self, make: Callable[[], Any], device: torch.device) -> None:
        self._make, self._device = make, device
        self._pipeline: Any = None
        self._inputs: dict[str, Any] = {}
        self._running = False
        self._outputs: Any = None
        self._listener = Listener()

    def start(self, **inputs: Any) -> None:
        """Begin a batch; files are not copied and are kept until it is finished."""
        if self._pipeline is None:
            self._pipeline = self._make()
            self._pipeline.build()
        self._inputs = inputs
        for name, values in inputs.items():
            self._pipeline.feed_input(name, values)
        self._listener.start()
        try:
            self._pipeline.schedule_run()
        except BaseException:
            self._listener.stop()
            raise
        self._running = True

    def wait(self) -> None:
        """Wait for the batch; RuntimeError when it failed, DamagedDataError when it is done but not to be used."""
        self._running = False
        try:
            self._outputs = self._pipeline.share_outputs()
        finally:
            damaged = self._listener.stop()
        if damaged:
            self._release()
            raise DamagedDataError("a decoder found damaged data")

    def finish(self, take: Callable[[list[Tensor]], None]) -> None:
        """Wait for the batch and pass it to ``take`` in DALI's own memory, which is reused afterwards."""
        if self._running:
            self.wait()
        take([from_dlpack(image) for image in self._outputs[0]])
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # and not what other streams are doing
        self._release()

    def _release(self) -> None:
        """Give the batch's memory back to DALI."""
        self._outputs = None
        self._pipeline.release_outputs()
        self._inputs = {}

    def drop(self) -> None:
        """Forget the pipeline; what it is doing must end first, for it reads the inputs."""
        if self._running:
            with suppress(RuntimeError):
                self.wait()
        self._pipeline, self._outputs, self._inputs = None, None, {}


def _whole(settings: dict[str, Any], where: dict[str, Any]) -> Any:
    """Files to images."""
    dali = load()
    fn, types = dali.fn, dali.types
    pipeline = dali.Pipeline(**settings)
    with pipeline:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
        pipeline.set_outputs(fn.decoders.image(files, output_type=types.RGB, adjust_orientation=False, **where))
    return pipeline


def _region(settings: dict[str, Any]) -> Any:
    """Files and boxes to regions of images."""
    dali = load()
    fn, types = dali.fn, dali.types
    pipeline = dali.Pipeline(**settings)
    with pipeline:
        files = fn.external_source(name="files", dtype=types.UINT8, ndim=1, no_copy=True)
        anchor, shape = (fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("anchor", "shape"))
        regions = fn.decoders.image_slice(
            files, anchor, shape, axis_names="HW", output_type=types.RGB, adjust_orientation=False
        )
        pipeline.set_outputs(regions)
    return pipeline
