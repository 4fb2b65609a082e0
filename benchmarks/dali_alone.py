"""Only decoding by DALI: the upper limit of every renderer that decodes each crop's file."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from labelstore.format.columns import CropRows
from pipeline.images.manifest import Manifest
from pipeline.render import dali
from pipeline.render.cache import Images
from pipeline.render.dali import stored_box
from pipeline.render.dali_pipelines import DEPTH, Making, Running, first_files, of_files
from pipeline.render.identity import DECODERS

BATCH = 128  # files that DALI decodes at a time


def stored(manifest: Manifest, rows: CropRows) -> tuple[list[bytes], npt.NDArray[np.int32]]:
    """The files of the rows, without metadata, and their boxes in stored orientation; without files left to Pillow.

    Returns:
        Up to n files, and int32 ``[n, 4]``.
    """
    with ThreadPoolExecutor(1) as pool:
        files = Images(manifest, None, pool, 0).read(rows.image.tolist())
    both = [
        (bytes(file.bare), stored_box(box, file.header))
        for file, box in zip(files, rows.boxes().astype(np.int32), strict=True)
        if file.bare is not None
    ]
    return [file for file, _ in both], np.array([box for _, box in both], np.int32)


def alone(
    files: Sequence[bytes],
    boxes: npt.NDArray[np.int32] | None,
    device: torch.device,
    threads: int,
    *,
    size: int | None = None,
) -> Callable[[], None]:
    """DALI as its own examples use it, files in memory, two batches ahead; each call decodes every file once.

    Args:
        files: n image files.
        boxes: of each what is decoded, (top, left, height, width), int32 ``[n, 4]``; all of it when None.
        device: a GPU helps to decode, by its default decoder here.
        threads: of the CPU.
        size: side of the crops that boxes are resized to; decoded only when None.
    """
    fn, types = dali.load().fn, dali.load().types
    arrays = [np.frombuffer(file, np.uint8) for file in files]
    batches: list[tuple[Any, ...]] = [
        (arrays[at : at + BATCH],)
        if boxes is None
        else (
            arrays[at : at + BATCH],
            np.ascontiguousarray(boxes[at : at + BATCH, :2]),
            np.ascontiguousarray(boxes[at : at + BATCH, 2:]),
        )
        for at in range(0, len(arrays), BATCH)
    ]
    where: dict[str, Any] = {"device": "mixed", **DECODERS["gpu"]} if device.type == "cuda" else {"device": "cpu"}
    options = {"output_type": types.RGB, "adjust_orientation": False, **where}
    inputs = [types.UINT8] if boxes is None else [types.UINT8, types.INT32, types.INT32]
    pipeline = dali.load().Pipeline(
        batch_size=BATCH, num_threads=threads, device_id=device.index, prefetch_queue_depth=2
    )
    with pipeline:
        given = fn.external_source(source=batches, cycle="raise", num_outputs=len(inputs), dtype=inputs, ndim=1)
        if boxes is None:
            images = fn.decoders.image(given[0], **options)
        else:
            images = fn.decoders.image_slice(*given, axis_names="HW", **options)
        if size:
            images = images.gpu() if device.type == "cuda" else images
            images = fn.resize(images, size=[size, size], interp_type=types.INTERP_LINEAR, antialias=True)
        pipeline.set_outputs(images)
    pipeline.build()

    def decode() -> None:
        with suppress(StopIteration):
            while True:
                pipeline.run()
        pipeline.reset()  # nothing is decoded ahead between two calls

    return decode


def all_steps(
    files: Sequence[bytes], boxes: npt.NDArray[np.int32], device: torch.device, threads: int, *, size: int
) -> Callable[[], None]:
    """The pipeline of ``--augmenter dali``, from files in memory: what its operators leave of DALI's rate.

    Args:
        files: n image files.
        boxes: of each what is cut, (top, left, height, width), int32 ``[n, 4]``.
        device: as for `alone`.
        threads: of the CPU.
        size: side of the crops.
    """
    making = Making(device, size, "bilinear", threads, BATCH, device.type == "cuda", DECODERS["gpu"])
    running = Running(of_files, first_files, making)
    starts = range(0, len(files), BATCH)
    batches: list[dict[str, Any]] = [
        {
            "files": [np.frombuffer(file, np.uint8) for file in files[at : at + BATCH]],
            "anchor": np.ascontiguousarray(boxes[at : at + BATCH, :2]),
            "shape": np.ascontiguousarray(boxes[at : at + BATCH, 2:]),
            "flips": np.zeros(len(files[at : at + BATCH]), np.int32),
        }
        for at in starts
    ]
    crops = torch.empty((BATCH, size, size, 3), dtype=torch.uint8, device=device)

    def take() -> None:
        running.take(crops, np.arange(under_way.popleft()))

    def make() -> None:
        for batch in batches:
            if len(under_way) == DEPTH:
                take()
            running.start(**batch)
            under_way.append(len(batch["files"]))
        while under_way:
            take()

    under_way: deque[int] = deque()
    return make


def regions_apart(
    files: Sequence[bytes], boxes: npt.NDArray[np.int32], device: torch.device, threads: int
) -> tuple[float, int]:
    """How far decoded boxes are from boxes cut out of whole images: mean and largest difference, in levels.

    Args:
        files: at most `BATCH` image files.
        boxes: one of each, (top, left, height, width), int32 ``[n, 4]``.
        device: as for `alone`.
        threads: of the CPU.
    """
    fn, types = dali.load().fn, dali.load().types
    where: dict[str, Any] = {"device": "mixed", **DECODERS["gpu"]} if device.type == "cuda" else {"device": "cpu"}
    options = {"output_type": types.RGB, "adjust_orientation": False, **where}
    pipeline = dali.load().Pipeline(
        batch_size=len(files), num_threads=threads, device_id=device.index, prefetch_queue_depth=1
    )
    with pipeline:
        given = fn.external_source(name="files", dtype=types.UINT8, ndim=1)
        anchor, shape = (fn.external_source(name=name, dtype=types.INT32, ndim=1) for name in ("anchor", "shape"))
        alone = fn.decoders.image_slice(given, anchor, shape, axis_names="HW", **options)
        pipeline.set_outputs(alone, fn.decoders.image(given, **options))
    pipeline.build()
    pipeline.feed_input("files", [np.frombuffer(file, np.uint8) for file in files])
    pipeline.feed_input("anchor", np.ascontiguousarray(boxes[:, :2]))
    pipeline.feed_input("shape", np.ascontiguousarray(boxes[:, 2:]))
    regions, images = (output.as_cpu() for output in pipeline.run())
    total = most = values = 0
    for at, (top, left, height, width) in enumerate(boxes.tolist()):
        cut = np.asarray(images[at])[top : top + height, left : left + width].astype(np.int16)
        apart = np.abs(cut - np.asarray(regions[at]))
        total, most, values = total + int(apart.sum()), max(most, int(apart.max())), values + apart.size
    return total / values, most
