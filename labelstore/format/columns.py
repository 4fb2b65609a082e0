"""The rows of crops: everything that made each crop, as columns of uint16.

A column is known by its name. Three sets are fixed by the format; an augmentation adds its own names.

========================================= ==============================================================
``image_low``, ``image_high``              the image index, ``image_low + 65536 * image_high``
``top``, ``left``, ``height``, ``width``   the crop box in source pixels; top and left count from the
                                           corner of the image padded by the plan's ``pad``
``bits``                                   bit 0: flipped left to right
========================================= ==============================================================

Mixing adds ``partner`` (offset of the other crop within the group) and either ``share`` (MixUp: the crop's
own weight times 65536) or ``mix_top``, ``mix_left``, ``mix_height``, ``mix_width`` (CutMix: the box, in
pixels of the finished crop, that is filled from the partner).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError

UInt16Array = npt.NDArray[np.uint16]
Int64Array = npt.NDArray[np.int64]

IMAGE_COLUMNS = ("image_low", "image_high")
BOX_COLUMNS = ("top", "left", "height", "width")
MIX_BOX_COLUMNS = ("mix_top", "mix_left", "mix_height", "mix_width")
CROP_COLUMNS = (*IMAGE_COLUMNS, *BOX_COLUMNS, "bits")
MIXUP_COLUMNS = ("partner", "share")
CUTMIX_COLUMNS = ("partner", *MIX_BOX_COLUMNS)
FLIP_BIT = 1


@dataclass(frozen=True, slots=True, repr=False)
class CropRows:
    """Rows of n consecutive or chosen crops.

    Attributes:
        names: the K column names, in stored order.
        values: uint16 ``[K, n]``.
    """

    names: tuple[str, ...]
    values: UInt16Array

    def __post_init__(self) -> None:
        """Check that names and values belong together."""
        if self.values.dtype != np.uint16 or self.values.ndim != 2 or len(self.names) != len(self.values):
            raise InputError(
                f"crop rows: expected uint16 [{len(self.names)}, n] for the columns {self.names}, "
                f"found {self.values.dtype} {list(self.values.shape)}"
            )

    def __len__(self) -> int:
        return int(self.values.shape[1])

    def __repr__(self) -> str:
        return f"CropRows({len(self)} crops, {', '.join(self.names)})"

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def column(self, name: str) -> UInt16Array:
        """One column, uint16 ``[n]``."""
        column: UInt16Array = self.values[self.names.index(name)]
        return column

    def take(self, index: slice | Int64Array) -> CropRows:
        """The rows at ``index``."""
        return CropRows(self.names, self.values[:, index])

    def join(self, others: CropRows) -> CropRows:
        """These rows, then others with the same columns."""
        return CropRows(self.names, np.concatenate([self.values, others.values], axis=1))

    @property
    def image(self) -> npt.NDArray[np.uint32]:
        """Image index of each row, uint32 ``[n]``."""
        return self.column("image_low") + (self.column("image_high").astype(np.uint32) << np.uint32(16))

    @property
    def flip(self) -> npt.NDArray[np.bool_]:
        """Whether each crop is flipped left to right, bool ``[n]``."""
        return (self.column("bits") & FLIP_BIT).astype(bool)

    @property
    def mixed(self) -> bool:
        """Whether the crops are mixed with partners."""
        return "partner" in self.names

    def boxes(self, pad: int = 0) -> npt.NDArray[np.int32]:
        """Crop boxes (top, left, height, width) in source pixels, int32 ``[n, 4]``; < 0 in the padding."""
        boxes = np.stack([self.column(name) for name in BOX_COLUMNS], axis=1).astype(np.int32)
        boxes[:, :2] -= pad
        return boxes

    def mix_boxes(self) -> npt.NDArray[np.int32]:
        """CutMix boxes (top, left, height, width) in pixels of the finished crop, int32 ``[n, 4]``."""
        return np.stack([self.column(name) for name in MIX_BOX_COLUMNS], axis=1).astype(np.int32)

    def partners(self, group: int) -> Int64Array:
        """Index, within these rows, of each row's partner, int64 ``[n]``; the rows must be whole groups."""
        start = np.arange(len(self)) // group * group
        partners = start + self.column("partner")
        if len(self) and partners.max() >= len(self):
            raise InputError(f"crop rows: {len(self)} rows are not whole groups of {group}")
        return partners

    def weights(self, size: int) -> npt.NDArray[np.float32]:
        """Weight of each crop's own target, its share of the pixels, float32 ``[n]``; 1 where not mixed."""
        if "share" in self.names:
            return (self.column("share") / 65536).astype(np.float32)
        if self.mixed:
            boxes = self.mix_boxes()
            return (1 - boxes[:, 2] * boxes[:, 3] / size**2).astype(np.float32)
        return np.ones(len(self), np.float32)
