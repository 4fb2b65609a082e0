"""Arrays in .npy and .npz files, as tensors; nothing in them is executed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from labelstore.errors import InputError, reason

NUMPY = (".npy", ".npz")
_SPLITS = ("train", "val", "valid", "test")


def read_numpy(file: Path) -> object:
    """The array of an .npy, mapped; or those of an .npz by name: by split, where all images are named by one.

    ``x_train`` and ``y_train``, or ``train_images`` and ``train_labels``, are ``x`` and ``y`` of the split ``train``.

    Raises:
        InputError: the file is damaged, or holds something else than numbers.
    """
    try:
        if file.suffix.lower() == ".npy":
            return _tensor(np.load(file, mmap_mode="c", allow_pickle=False))
        with file.open("rb") as opened, np.load(opened, allow_pickle=False) as held:  # which leaves a bad file open
            return _by_split({name: _tensor(held[name]) for name in held.files})
    except Exception as error:  # whatever damaged bytes lead to
        raise InputError(
            f"{file}: expected arrays of numbers as numpy.save and numpy.savez write them ({reason(error)})"
        ) from error


def _tensor(array: np.ndarray) -> Tensor:
    """An array as a tensor of its memory; TypeError where torch has no such type."""
    return torch.from_numpy(array)


def _by_split(arrays: Mapping[str, Tensor]) -> Mapping[str, object]:
    """Arrays grouped by the split in their names; a single group if the name of an image array has no split."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, array in arrays.items():
        words = re.split(r"[_\-. ]+", name.lower())
        split = next((word for word in words if word in _SPLITS), None)
        if split is None:
            if array.ndim >= 3:
                return arrays
            continue
        found.setdefault(split, {})["_".join(word for word in words if word != split)] = array
    return found or arrays
