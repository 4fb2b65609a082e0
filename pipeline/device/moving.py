"""Asynchronous copies between a CPU and a GPU."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``; to a GPU asynchronously through pinned memory, in its current CUDA stream."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it is read


def numbers_to_device(columns: Sequence[npt.NDArray[np.integer[Any]]], device: torch.device) -> tuple[Tensor, ...]:
    """Arrays of integers, of any lengths ``[n]``, on ``device`` as int64, with a single copy."""
    together = torch.from_numpy(np.concatenate(columns, dtype=np.int64))
    found: tuple[Tensor, ...] = torch.split(to_device(together, device), [len(column) for column in columns])
    return found


def to_host(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``values`` in host memory, with overlapping copies; waits only for the current CUDA stream."""
    copies = {name: value if value.device.type == "cpu" else begin_copy(value) for name, value in values.items()}
    for device in {value.device for value in values.values() if value.is_cuda}:
        torch.cuda.current_stream(device).record_event().synchronize()
    return copies


def begin_copy(value: Tensor) -> Tensor:
    """Start a copy of a GPU tensor to pinned memory; complete when the current CUDA stream has reached it."""
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
