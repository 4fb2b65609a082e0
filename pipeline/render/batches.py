"""Batches of exactly so many crops, rendered in whole groups, with bounded memory (P5, P7)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import tee

import numpy as np
import torch
from torch import Tensor

from labelstore.format.columns import CropRows
from pipeline.render import Renderer, StreamRenderer


def render_batches(
    renderer: Renderer, rows: Iterable[CropRows], batch: int, group: int
) -> Iterator[tuple[Tensor, CropRows]]:
    """Render rows in order, in batches of a fixed size, whatever the groups and the lengths of the runs of rows.

    Args:
        renderer: renders whole groups.
        rows: rows of consecutive positions, each from the start of a group.
        batch: crops in a batch.
        group: positions that mix with each other.

    Yields:
        The crops of a batch, uint8 ``[batch, S, S, 3]``, and their rows; the last batch is shorter. At most a batch and
        ``max(batch, group)`` crops more are held.
    """
    step = max(batch // group, 1) * group
    rest: tuple[Tensor, CropRows] | None = None
    parts, ahead = tee(some.take(slice(start, start + step)) for some in rows for start in range(0, len(some), step))
    for crops, part in zip(render_each(renderer, ahead), parts, strict=True):
        if rest is not None:
            part = CropRows(part.names, np.concatenate([rest[1].values, part.values], axis=1))
            crops = torch.cat([rest[0], crops])
        whole = len(crops) // batch * batch
        for at in range(0, whole, batch):
            yield crops[at : at + batch], part.take(slice(at, at + batch))
        rest = (crops[whole:].clone(), part.take(slice(whole, None))) if whole < len(crops) else None
    if rest is not None:
        yield rest


def render_each(renderer: Renderer, parts: Iterable[CropRows]) -> Iterator[Tensor]:
    """The crops of each of ``parts``; where the renderer works ahead, parts are taken ahead of their crops."""
    return renderer.render_all(parts) if isinstance(renderer, StreamRenderer) else map(renderer.render, parts)
