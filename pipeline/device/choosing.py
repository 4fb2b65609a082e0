"""The device that a flag names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from labelstore.errors import InputError

if TYPE_CHECKING:
    import torch


def choose_device(name: str) -> torch.device:
    """The device ``cpu``, ``cuda`` or ``cuda:N``; a CUDA device has an index.

    Raises:
        InputError: when it is another kind of device, or not there.
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
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if index >= found:
        raise InputError(f"device {name}: torch finds {found} usable CUDA devices; give --device cpu")
    return torch.device("cuda", index)
