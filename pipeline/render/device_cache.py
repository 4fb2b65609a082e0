"""Decoded images in the memory of a GPU: how much of it, taken at once, and which image is where."""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.command.console import byte_count
from labelstore.errors import InputError
from pipeline.device.moving import to_device
from pipeline.render.cache import CACHE_BYTES, Images

CACHE_SHARE = 0.5  # of a GPU's free memory for all caches by default; a teacher's batch is chosen for the other half
HEADROOM_BYTES = 2 << 30
"""Memory that the cache of a GPU leaves free: for DALI's buffers, copies of a chunk of images, and crops in flight.

Without memory nvImageCodec silently decodes an image on the CPU, to other pixels.
"""

Indexes = npt.NDArray[np.int64]


def cache_budget(device: torch.device, wanted: int | None) -> int:
    """Bytes for decoded images: those wanted; when None, a share of what a GPU has free, and less on a CPU."""
    if wanted is not None:
        return wanted
    if device.type != "cuda":
        return CACHE_BYTES
    taken = sum(kept.data.numel() for kept in _caches if kept.data.device == device)
    return max(int(CACHE_SHARE * (_free_bytes(device) + taken)) - HEADROOM_BYTES - taken, 0)


class Kept:
    """The images of a set that fit, decoded when they are first needed, in one tensor that is taken at once.

    Attributes:
        data: bytes of images, uint8 ``[B]`` on the device.
        starts: where each image of the set begins in them, int64 ``[N]``; -1 while it is not there.
    """

    def __init__(self, images: Images, device: torch.device) -> None:
        """Take the memory for the images of ``images.room``.

        Raises:
            InputError: the device does not have that much to spare.
        """
        self.starts: Indexes = np.full(len(images.sizes), -1, np.int64)
        self._filled = 0
        need = images.room.bytes
        if need and device.type == "cuda":
            free = _free_bytes(device)
            if need > free - HEADROOM_BYTES:
                raise _too_large(need, device, free)
        try:
            self.data: Tensor = torch.empty(need, dtype=torch.uint8, device=device)
            _caches.add(self)
        except torch.OutOfMemoryError as error:  # another process has taken it meanwhile
            raise _too_large(need, device, _free_bytes(device)) from error

    def missing(self, images: Indexes) -> Indexes:
        """Those of some images that are not there yet, each once, int64 ``[m]``."""
        return np.unique(images[self.starts[images] < 0])

    def put(self, images: Indexes, data: Tensor, starts: Indexes) -> None:
        """Keep decoded images, as `flatten` gives them."""
        self.data[self._filled : self._filled + len(data)] = data
        self.starts[images] = self._filled + starts
        self._filled += len(data)

    def clear(self) -> None:
        """Keep none of the images; their memory takes others."""
        self.starts[:], self._filled = -1, 0

    def forget(self) -> None:
        """Release the memory."""
        self.clear()
        self.data = self.data[:0].clone()


_caches: WeakSet[Kept] = WeakSet()  # of this process; training has two, of its images and of its test images


def _free_bytes(device: torch.device) -> int:
    """Free memory of a GPU, including torch's pool in this process."""
    torch.cuda.empty_cache()
    return torch.cuda.mem_get_info(device)[0]


def _too_large(need: int, device: torch.device, free: int) -> InputError:
    most = max(free - HEADROOM_BYTES, 0)
    return InputError(
        f"--cache-gib: expected at most {byte_count(most)} for decoded images on {device} ({byte_count(free)} free, "
        f"{byte_count(HEADROOM_BYTES)} of them for decoding), found {byte_count(need)}; give a lower --cache-gib, or a "
        f"GPU that nothing else uses"
    )


def flatten(images: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Indexes]:
    """Images one after the other on a device, uint8 ``[B]``, and where each begins, int64 ``[n]``."""
    ends = np.cumsum([image.numel() for image in images])
    starts = ends - np.diff(ends, prepend=0)
    if device.type != "cuda" or any(image.is_cuda for image in images):
        return torch.cat([to_device(image, device).flatten() for image in images]), starts
    there = torch.empty(int(ends[-1]), dtype=torch.uint8, pin_memory=True)  # so that one transfer copies all
    return torch.cat([image.flatten() for image in images], out=there).to(device, non_blocking=True), starts
