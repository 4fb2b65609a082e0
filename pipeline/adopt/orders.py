"""Which images the batches of an epoch hold, where the files have no indexes: rebuilt from a seed, or listed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from labelstore.errors import InputError, reason
from pipeline.adopt.labels import Int64Array

SIDECAR = "sampler_indices_epoch.json"  # that LPLD writes beside the epochs


class ImageOrder(Protocol):
    """The images of each epoch.

    Attributes:
        text: where they are from, in words.
    """

    @property
    def text(self) -> str: ...  # noqa: D102

    def images(self, epoch: int) -> Int64Array:
        """The image of each crop of an epoch, a permutation, int64 ``[N]``."""


class SamplerOrder:
    """The order of torch's RandomSampler with a generator of its own, which lives through all epochs.

    Args:
        images: N.
        seed: of the generator.
        draws: permutations that the sampler draws an epoch: torch draws a second one, of which it takes nothing, and
            older versions did not.
    """

    def __init__(self, images: int, seed: int, draws: int) -> None:
        self._images, self._draws = images, draws
        self._generator = torch.Generator().manual_seed(seed)
        self._states = [self._generator.get_state()]  # before each epoch
        self.text = (
            f"rebuilt from the sampler's seed {seed}, {('one permutation', 'two permutations')[draws - 1]} an epoch"
        )

    def images(self, epoch: int) -> Int64Array:
        """The image of each crop of an epoch, int64 ``[N]``."""
        while len(self._states) <= epoch:
            self._generator.set_state(self._states[-1])
            for _ in range(self._draws):
                torch.randperm(self._images, generator=self._generator)
            self._states.append(self._generator.get_state())
        self._generator.set_state(self._states[epoch])
        order: Int64Array = torch.randperm(self._images, generator=self._generator).numpy()
        return order


class ListedOrder:
    """The order that a file lists.

    Args:
        path: of JSON: the images of each epoch by its number, or a list of them; or .npy, integers [V, N].
        images: N.
        epochs: that are wanted.

    Raises:
        InputError: when the file is another, or an epoch is no permutation of the images.
    """

    def __init__(self, path: Path, images: int, epochs: int) -> None:
        self._listed = [
            _permutation(path, epoch, listed, images) for epoch, listed in enumerate(_read(path, epochs)[:epochs])
        ]
        self.text = f"listed in {path}"

    def images(self, epoch: int) -> Int64Array:
        """The image of each crop of an epoch, int64 ``[N]``."""
        return self._listed[epoch]


def _read(path: Path, epochs: int) -> list[Any]:
    """What the file lists for each epoch."""
    try:
        if path.suffix == ".npy":
            listed = list(np.load(path, mmap_mode="r", allow_pickle=False))  # mapped: a header may claim any shape
        else:
            value = json.loads(path.read_bytes())
            listed = [value[str(epoch)] for epoch in range(epochs)] if isinstance(value, Mapping) else list(value)
    except KeyError as error:
        raise InputError(f"{path}: expected the images of epochs 0 to {epochs - 1}, found none of {error}") from error
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InputError(
            f"{path}: expected the images of each epoch by their numbers, a JSON object or list, or .npy [V, N]; found "
            f"something else ({reason(error)})"
        ) from error
    if len(listed) < epochs:
        raise InputError(f"{path}: expected the images of {epochs} epochs, found {len(listed)}")
    return listed


def _permutation(path: Path, epoch: int, listed: Any, images: int) -> Int64Array:
    """The images of one epoch, each once."""
    try:
        order = np.asarray(listed)
    except ValueError:
        order = np.empty(0)
    if order.ndim != 1 or order.dtype.kind not in "iu":
        raise InputError(
            f"{path}: epoch {epoch}: expected a list of {images:,} indexes of images, found something else"
        )
    inside = order[(order >= 0) & (order < images)].astype(np.int64)
    counts = np.bincount(inside, minlength=images)
    if len(order) != images or (counts != 1).any():
        raise InputError(
            f"{path}: epoch {epoch} holds {len(order):,} labels of {int((counts > 0).sum()):,} of the {images:,} "
            "images: a "
            f"view of a store shows every image once; labels that were pruned to a pool of batches, as LPLD does, "
            "form no "
            f"views and cannot be adopted"
        )
    return order.astype(np.int64)
