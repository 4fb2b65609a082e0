"""Copies between a CPU and a GPU that neither side waits for longer than it must."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """``values`` on ``device``; to a GPU through pinned memory, in the order of its current stream, without waiting."""
    if device.type != "cuda" or values.is_cuda:
        return values.to(device)
    return values.pin_memory().to(device, non_blocking=True)  # torch keeps the pinned copy until it was read


def numbers_to_device(columns: Sequence[npt.NDArray[np.integer[Any]]], device: torch.device) -> tuple[Tensor, ...]:
    """Columns of whole numbers, of any lengths ``[n]``, on ``device`` as int64: one copy for all of them."""
    together = torch.from_numpy(np.concatenate(columns, dtype=np.int64))
    found: tuple[Tensor, ...] = torch.split(to_device(together, device), [len(column) for column in columns])
    return found


def to_host(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """``values`` in memory, several at once; waits for the work that makes them, and for no other stream's."""
    copies = {name: value if value.device.type == "cpu" else begin_copy(value) for name, value in values.items()}
    for device in {value.device for value in values.values() if value.is_cuda}:
        torch.cuda.current_stream(device).record_event().synchronize()
    return copies


def begin_copy(value: Tensor) -> Tensor:
    """A copy of a GPU's tensor in pinned memory, under way: complete when its current stream has come so far."""
    return torch.empty(value.shape, dtype=value.dtype, pin_memory=True).copy_(value, non_blocking=True)
