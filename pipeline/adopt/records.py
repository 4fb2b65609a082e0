"""The files of SRe2L, G-VBSM and EDC: a list for each batch, written by torch.save; reading executes nothing."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError
from labelstore.writing.encoding import MAX_FLOAT16
from pipeline.adopt.labels import Int64Array, Mix, largest_of
from pipeline.networks.torch_files import OddTensor, load_torch, of_numpy, read_content

ADVICE = "take it from where the folder comes from again"


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """The values of one list.

    Attributes:
        name: name of the format.
        fields: number of values: the six of SRe2L, then others.
        index: place of the images' indexes; None if they are not stored.
        shuffled: place of the orders of shuffled patches; None if there are none.
        swapped: whether top and height are shares of the width, and left and width shares of the height.
    """

    name: str
    fields: int
    index: int | None = None
    shuffled: int | None = None
    swapped: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Batch:
    """The labels of one file.

    Attributes:
        place: path of the file, for messages.
        shares: boxes as shares of the images' sides, float32 ``[B, 4]``.
        flips: whether each crop is flipped left to right, bool ``[B]``.
        partners: place of each crop's partner in the batch, int64 ``[B]``; None without mixing.
        lam: weight of the crop itself in MixUp; otherwise 1.
        box: CutMix's box: first row and column, and those after its last; None unless CutMix.
        logits: float16 or float32 ``[B, C]``.
        index: image of each crop, int64 ``[B]``; None if it is not stored.
    """

    place: str
    shares: npt.NDArray[np.float32]
    flips: npt.NDArray[np.bool_]
    partners: Int64Array | None
    lam: float
    box: tuple[int, int, int, int] | None
    logits: npt.NDArray[Any]
    index: Int64Array | None

    def __len__(self) -> int:
        return len(self.flips)

    @property
    def mix(self) -> Mix:
        """The mixing of its crops."""
        if self.partners is None:
            return "none"
        return "mixup" if self.box is None else "cutmix"


def load(path: Path) -> object:
    """Load a file of torch.save; numbers of numpy become Python's, and arrays tensors.

    Only tensors, and numbers and arrays of numpy in lists, are allowed.

    Raises:
        InputError: names in one line what the file is instead.
    """
    with suppress(Exception):  # torch raises errors of any kind; `read_content` below determines the reason
        if path.is_file():  # reading a pipe would block
            return load_torch(path, allowed=of_numpy())
    return read_content(path, str(path), ADVICE, allowed=of_numpy())


def read_batch(path: Path, layout: Layout) -> Batch:
    """The labels in one file.

    Raises:
        InputError: names the file and the first field that does not have the form of the format.
    """
    value = load(path)
    if not isinstance(value, (list, tuple)) or len(value) != layout.fields:
        raise wrong(path, f"a list of {layout.fields}, as {layout.name} writes it", described(value))
    coordinates, flips, partners, lam, box, logits = value[:6]
    if not (_is(logits, 2) and logits.is_floating_point() and logits.shape[0] and logits.shape[1]):
        raise wrong(path, "logits, floating-point numbers [B, C]", described(logits))
    count = len(logits)
    if logits.dtype not in (torch.float16, torch.float32):
        logits = logits.float()
    half = logits.dtype == torch.float16
    if not (largest_of(logits.numpy()) if half else float(logits.abs().max())) <= MAX_FLOAT16:
        crop, column = (~(logits.abs() <= MAX_FLOAT16)).nonzero()[0].tolist()
        found = f"{float(logits[crop, column])} in column {column} of crop {crop}"
        raise wrong(path, f"numbers of at most {MAX_FLOAT16:.0f} as logits", found)
    if not (_is(coordinates, 2) and coordinates.is_floating_point() and coordinates.shape == (count, 4)):
        raise wrong(path, f"coordinates [{count}, 4]", described(coordinates))
    if not (is_whole(flips) and flips.shape == (count,)):
        raise wrong(path, f"flips [{count}], true or false", described(flips))
    return Batch(
        str(path),
        coordinates.float().numpy(),
        flips.bool().numpy(),
        _integers(path, "partners", partners, count, count) if partners is not None else None,
        _lam(path, lam) if partners is not None and box is None else 1.0,
        _box(path, box) if partners is not None and box is not None else None,
        logits.numpy(),
        _own_indexes(path, layout, value, count),
    )


def _own_indexes(path: Path, layout: Layout, value: Any, count: int) -> Int64Array | None:
    """The images' indexes, if they are stored; refuses crops with shuffled patches."""
    if layout.shuffled is not None:
        orders = value[layout.shuffled]
        if not isinstance(orders, Tensor) or orders.any():
            raise InputError(
                f"{path}: its crops were cut from images with shuffled patches, which a store of others' labels cannot "
                f"replay; label the images again: giftwrap build --augment patch-shuffle=2"
            )
    return None if layout.index is None else _integers(path, "indexes of images", value[layout.index], count)


def _integers(path: Path, name: str, value: Any, count: int, below: int = 2**32) -> Int64Array:
    """Integers ``[B]`` of 0 or more.

    Raises:
        InputError: they are no such integers, or one is not less than ``below``.
    """
    if not (is_whole(value) and value.shape == (count,)):
        raise wrong(path, f"{name}, integers [{count}]", described(value))
    numbers: Int64Array = value.long().numpy()
    if numbers.min() < 0 or numbers.max() >= below:
        raise wrong(
            path, f"{name} from 0 to {below - 1}", str(int(numbers.min() if numbers.min() < 0 else numbers.max()))
        )
    return numbers


def _lam(path: Path, value: object) -> float:
    """MixUp's weight of the crop itself."""
    if not (isinstance(value, (int, float)) and 0 <= value <= 1):
        raise wrong(path, "lam, a number from 0 to 1", repr(value) if isinstance(value, float) else described(value))
    return float(value)


def _box(path: Path, value: object) -> tuple[int, int, int, int]:
    """CutMix's box: its first row and column, and the row and column after its last."""
    if not (isinstance(value, (list, tuple)) and len(value) == 4 and all(isinstance(edge, int) for edge in value)):
        raise wrong(path, "a CutMix box of 4 integers", described(value))
    top, left, bottom, right = value
    if not (0 <= top <= bottom and 0 <= left <= right):
        raise wrong(path, "a CutMix box from its first row and column to its last", str(list(value)))
    return top, left, bottom, right


def _is(value: object, dimensions: int) -> bool:
    """Whether a value is a tensor with this number of dimensions."""
    return isinstance(value, Tensor) and value.ndim == dimensions


def is_whole(value: object) -> bool:
    """Whether a value is a tensor of integers or bools."""
    return isinstance(value, Tensor) and not value.is_floating_point() and not value.is_complex()


def wrong(path: Path | str, expected: str, found: str) -> InputError:
    """The error for a file with other content than expected."""
    return InputError(f"{path}: expected {expected}, found {found}; {ADVICE}")


def described(value: object) -> str:
    """A value of a file, in few words."""
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    if isinstance(value, (list, tuple)):
        return f"a list of {len(value)}"
    if isinstance(value, OddTensor):
        return repr(value)
    return "nothing" if value is None else type(value).__name__
