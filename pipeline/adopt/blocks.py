"""Blocks of existing labels in the form of a store; only the crops that the store keeps are rendered."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from torch import Tensor

from labelstore.encodings import Encoding
from labelstore.errors import InputError
from labelstore.format.arrays import AUDIT_BLOCK
from labelstore.format.blocks import BlockIndex
from labelstore.format.columns import CropRows
from labelstore.store import AuditRows, BlockData
from pipeline.adopt.labels import Crops, Labels, largest_of
from pipeline.build.filling import AUDIT_CROPS
from pipeline.render import Renderer
from pipeline.render.audit import DIGEST_POSITIONS, pixels_digest


class Blocks:
    """Makes the data of blocks.

    Args:
        labels: the existing labels.
        renderer: renders their crops.
        encoding: label encoding of the store.
        group: consecutive positions that mix with each other; 1 without mixing.
    """

    def __init__(self, labels: Labels, renderer: Renderer, encoding: Encoding, group: int) -> None:
        self._labels, self._renderer, self._encoding, self._group = labels, renderer, encoding, group

    def data(self, block: BlockIndex, views: range, positions: tuple[int, int]) -> BlockData:
        """The data of one block.

        Args:
            block: its index.
            views: its views.
            positions: its first position, and the one after the last.

        Raises:
            InputError: names the file that does not have the form of its format.
        """
        each = [self._labels.crops(view, *positions) for view in views]
        first, audited = each[0], block == AUDIT_BLOCK
        count = min(AUDIT_CROPS if audited else DIGEST_POSITIONS, len(first.rows))
        pixels = first_crops(self._renderer, first.rows, self._group, count)
        rows = np.stack([crops.rows.values for crops in each])
        digest = pixels_digest(pixels)
        if self._are_codes(each) and not audited:
            labels = first.logits[None] if len(each) == 1 else np.stack([crops.logits for crops in each])
            empty = np.empty((0, 0, self._labels.columns), np.float32)
            return BlockData(
                logits=empty, rows=rows, pixels_digest=digest, codes={"labels": labels}, largest=largest_of(labels)
            )
        logits = np.stack([crops.logits.astype(np.float32) for crops in each])
        audit = None
        if audited:
            audit = AuditRows(crops=pixels.cpu().numpy(), logits=as_float16(logits[0, :count]))
        return BlockData(logits=logits, rows=rows, pixels_digest=digest, audit=audit)

    def _are_codes(self, each: list[Crops]) -> bool:
        """Whether the labels are the codes of the encoding already."""
        return self._encoding.name == "float16" and all(crops.logits.dtype == np.float16 for crops in each)


def as_float16(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float16]:
    """Logits of audit rows in float16.

    Raises:
        InputError: one is too large for float16, or NaN.
    """
    largest = float(np.abs(logits).max())
    if not largest <= np.finfo(np.float16).max:
        raise InputError(f"labels: expected logits of at most 65504, found {largest}")
    return logits.astype(np.float16)


def first_crops(renderer: Renderer, rows: CropRows, group: int, count: int) -> Tensor:
    """The first crops of rows of whole groups, uint8 ``[count, S, S, 3]``; renders only them and their partners."""
    if not rows.mixed:
        return renderer.render(rows.take(slice(count)))
    if 2 * count > group:
        return renderer.render(rows.take(slice(-(-count // group) * group)))[:count]
    partners = rows.partners(group)[:count]
    values = np.concatenate([rows.values[:, :count], rows.values[:, partners]], axis=1)
    values[rows.names.index("partner")] = [*range(count, 2 * count)] * 2  # the partners' own mixes do not matter
    return renderer.render(CropRows(rows.names, values))[:count]
