"""What DALI decodes alone: the ceiling of every renderer that decodes each crop's file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from labelstore.format.columns import CropRows
from pipeline.images.manifest import Manifest
from pipeline.render import dali
from pipeline.render.cache import Images
from pipeline.render.dali import stored_box
from pipeline.render.identity import DECODERS

BATCH = 128  # files that DALI decodes at a time


def stored(manifest: Manifest, rows: CropRows) -> tuple[list[bytes], npt.NDArray[np.int32]]:
    """The files of the rows, without metadata, and their boxes as they are stored; without files left to Pillow.

    Returns:
        Up to n files, and int32 ``[n, 4]``.
    """
    with ThreadPoolExecutor(1) as pool:
        files = Images(manifest, None, pool, 0).read(rows.image.tolist())
    both = [
        (file.bare, stored_box(box, file.header))
        for file, box in zip(files, rows.boxes().astype(np.int32), strict=True)
        if file.bare is not None
    ]
    return [file for file, _ in both], np.array([box for _, box in both], np.int32)


def decoding(
    files: Sequence[bytes], boxes: npt.NDArray[np.int32] | None, device: torch.device, threads: int
) -> Callable[[], None]:
    """DALI as its own examples use it, files in memory, two batches ahead; each call decodes every file once.

    Args:
        files: n image files.
        boxes: of each what is decoded, (top, left, height, width), int32 ``[n, 4]``; all of it when None.
        device: a GPU helps to decode, by its default decoder here.
        threads: of the CPU.
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
        given = fn.external_source(source=cycle(batches), num_outputs=len(inputs), dtype=inputs, ndim=1)
        if boxes is None:
            images = fn.decoders.image(given[0], **options)
        else:
            images = fn.decoders.image_slice(*given, axis_names="HW", **options)
        pipeline.set_outputs(images)
    pipeline.build()

    def decode() -> None:
        for _ in batches:
            pipeline.run()

    return decode
