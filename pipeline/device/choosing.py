"""The device that a flag names."""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING

from labelstore.errors import InputError, reason

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:N``; a CUDA device has an index.

    Raises:
        InputError: when it is another kind of device, or not available; with torch's reason, such as an old driver.
    """
    import torch

    try:
        device = torch.device(name)
    except RuntimeError:
        device = None
    if device is None or device.type not in ("cpu", "cuda"):
        raise InputError(f"device: expected cpu, cuda or cuda:N, found {name!r}")
    if device.type == "cpu":
        return torch.device("cpu")
    index = device.index or 0
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= found:
        why, others = _why(found, [each.message for each in caught]), f"--device cuda:{found - 1}, or " if found else ""
        raise InputError(f"device {name}: torch finds {found} usable CUDA devices{why}; give {others}--device cpu")
    return torch.device("cuda", index)


def _why(found: int, caught: list[Warning | str]) -> str:
    """The reason why there are no more devices, in brackets; empty if unknown."""
    import torch

    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.version.cuda is None:
        why = "this torch is built without CUDA"
    elif visible is not None:
        why = f"CUDA_VISIBLE_DEVICES is {visible!r}"
    elif not found and caught:
        why = reason(RuntimeError(str(caught[0])))
    else:
        return ""
    return f" ({why})"
