"""Crops of the same boxes at another side than their rows were drawn for."""

from __future__ import annotations

import numpy as np

from labelstore.format.columns import MIX_BOX_COLUMNS, CropRows


def at_size(rows: CropRows, size: int, other: int) -> CropRows:
    """Rows of crops of side ``size`` for rendering at side ``other``: boxes in the finished crop are scaled."""
    if size == other or MIX_BOX_COLUMNS[0] not in rows:
        return rows
    boxes = rows.mix_boxes().astype(np.int64)
    start, stop = ((2 * other * edge + size) // (2 * size) for edge in (boxes[:, :2], boxes[:, :2] + boxes[:, 2:]))
    values = rows.values.copy()
    values[[rows.names.index(name) for name in MIX_BOX_COLUMNS]] = np.concatenate([start, stop - start], axis=1).T
    return CropRows(rows.names, values)
