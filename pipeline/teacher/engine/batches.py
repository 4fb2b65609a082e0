"""The batch of a teacher: the largest that fits a fraction of memory, checked before memory is allocated."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from labelstore.command.console import byte_count
from labelstore.errors import InputError
from pipeline.device.faults import lacks_memory
from pipeline.device.memory import available_memory, free_device_memory
from pipeline.teacher.engine.device import DTYPES
from pipeline.teacher.engine.spec import TeacherSpec

CPU_BATCH = 128  # measured: ResNet-18 at 224 px gains nothing from more, and loses a few percent with 32
GPU_BATCHES = (32, 1024)  # what doubling begins with, and where no teacher gains from more
SHARE = 0.5  # of what is free; the rest is for decoded images and labels
MULTIPLE = 8  # tensor cores take so many rows at once


@dataclass(frozen=True, kw_only=True, slots=True)
class Workload:
    """The input of a teacher, for choosing its batch.

    Attributes:
        crop_columns: names of the columns of the crops' rows: augmentations of normalised images take memory too.
        block: crops of a full block of labels with so many columns; a batch never crosses a block. None: any number.
    """

    crop_columns: tuple[str, ...] = ()
    block: Callable[[int], int] | None = None


def require_weights_fit(spec: TeacherSpec, device: torch.device) -> None:
    """Refuse weights that cannot be held, by the sizes of their files, before they are read."""
    files = [Path(member.weights) for member in spec.members]
    sizes = [file.stat().st_size for file in files if file.is_file()]
    if not sizes:
        return
    # networks are loaded one by one: each file beside its network, all networks together
    need, free = sum(sizes) + max(sizes), available_memory()
    where = "this machine"
    if need <= free and device.type == "cuda":
        # a file has at most 4 bytes a number
        need, free = sum(sizes) * DTYPES[spec.dtype].itemsize // 4, free_device_memory(device)
        where = str(device)
    if need > free:
        raise InputError(
            f"weights {', '.join(map(str, files))}: expected at most the memory that {where} has free "
            f"({byte_count(free)}), the teacher takes {byte_count(need)}; take a smaller teacher or another machine"
        )


def find_batch(run: Callable[[int], object], device: torch.device, block: int | None = None) -> int:
    """The largest batch that fits ``SHARE`` of the free memory of the device; on a GPU, one that divides blocks evenly.

    Args:
        run: labels a number of crops, uncompiled, including their preparation.
        device: where.
        block: crops of a full block; None: any number.

    Raises:
        InputError: when not even one crop fits.
    """
    if device.type == "cpu":
        crop = peak_bytes(run)
        return largest_batch(lambda batch: crop * batch, int(SHARE * available_memory()), CPU_BATCH, CPU_BATCH)
    budget = int(SHARE * free_device_memory(device))
    try:
        batch = largest_batch(lambda batch: _gpu_bytes(run, batch, device), budget, *GPU_BATCHES)
    finally:
        torch.cuda.empty_cache()  # what the largest trial took: decoders take theirs from the driver
    return batch if block is None else even_batch(batch, block)


def even_batch(most: int, block: int) -> int:
    """The smallest batch that labels a block in as few batches as ``most`` does, so that little of the last is padding.

    Args:
        most: crops a batch at most.
        block: crops of a block.

    Returns:
        A multiple of `MULTIPLE` where ``most`` is one.
    """
    batches = -(-block // most)
    even = -(-block // batches)
    return min(-(-even // MULTIPLE) * MULTIPLE, most)


def largest_batch(bytes_of: Callable[[int], float], budget: int, first: int, last: int) -> int:
    """Doubling ``first`` up to ``last`` while it fits, halving it when it does not.

    Args:
        bytes_of: memory that a batch takes, in bytes.
        budget: memory that it may take, in bytes.
        first: the batch to begin with.
        last: the largest batch.
    """
    batch = first
    if bytes_of(batch) <= budget:
        while 2 * batch <= last and bytes_of(2 * batch) <= budget:
            batch *= 2
        return batch
    while batch > 1:
        batch //= 2
        if bytes_of(batch) <= budget:
            return batch
    raise InputError(
        f"batch: one crop takes {byte_count(bytes_of(1))} of memory, {byte_count(budget)} may be taken; "
        f"take a smaller --size or --teacher, or give --batch 1 to try nevertheless"
    )


def _gpu_bytes(run: Callable[[int], object], batch: int, device: torch.device) -> float:
    """Device memory that a batch takes beside the weights; infinite when it is not there."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    try:
        run(batch)
        torch.cuda.synchronize(device)
    except RuntimeError as error:
        if not lacks_memory(error):
            raise
        return float("inf")
    return torch.cuda.max_memory_allocated(device) - before


def peak_bytes(run: Callable[[int], object]) -> int:
    """Memory that the tensors of one crop's run take at most at one time, in bytes."""
    live = _Live()
    with live:
        run(1)
    return live.peak


class _Live(TorchDispatchMode):
    """Adds up the tensors that are alive."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.peak = 0
        self._users: dict[int, set[int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        self._add(leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor))
        return out

    def _add(self, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            storage = tensor.untyped_storage()
            key, size = storage._cdata, storage.nbytes()
            users = self._users.setdefault(key, set())
            if not users:
                self.now += size
                self.peak = max(self.peak, self.now)
            if id(tensor) not in users:
                users.add(id(tensor))
                weakref.finalize(tensor, self._drop, key, id(tensor), size)

    def _drop(self, key: int, user: int, size: int) -> None:
        users = self._users[key]
        users.discard(user)
        if not users:
            self.now -= size
