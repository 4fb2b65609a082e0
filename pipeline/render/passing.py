"""Crops that come image after image: what was decoded for the ones before makes room for the next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.render import KeepingRenderer, Renderer


def in_passing(renderer: Renderer) -> Renderer:
    """The renderer for rows that have all crops of an image one after the other, and no image again much later.

    Each call's images are kept, however many came before them, so that a file is decoded once within the calls whose
    images fit the renderer's memory together. Closing it closes the renderer.
    """
    return _InPassing(renderer) if isinstance(renderer, KeepingRenderer) else renderer


@dataclass(frozen=True, slots=True)
class _InPassing:
    """A renderer, and before each call room in its memory."""

    renderer: KeepingRenderer

    @property
    def id(self) -> dict[str, Json]:
        """The renderer's."""
        return self.renderer.id

    def render(self, rows: CropRows) -> Tensor:
        """The renderer's crops."""
        self.renderer.make_room(rows.image.astype(np.int64))
        return self.renderer.render(rows)

    def close(self) -> None:
        """Close the renderer."""
        self.renderer.close()
