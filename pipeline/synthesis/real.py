"""Real images as `sre2l` uses them: where images begin, and crops on which the statistics of a class are measured."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
from torch import Tensor

from pipeline.plan.plan import Plan
from pipeline.plan.spec import PlanSpec
from pipeline.render import make_renderer
from pipeline.synthesis.method import Setting
from pipeline.synthesis.random import draw_order

Indexes = npt.NDArray[np.int64]


class RealImages:
    """The images of a manifest, rendered when they are needed: none is rendered twice, and none is kept.

    Attributes:
        renderer: cuts the crops.
    """

    def __init__(self, setting: Setting, size: int, scale: tuple[float, float]) -> None:
        """Render at a side, crops of a range of scales."""
        manifest, options = setting.manifest, setting.config.render
        center = PlanSpec(size=size, crop="center", flip=0.0)
        resized = PlanSpec(size=size, seed=setting.config.seed, scale=scale)
        self._setting = setting
        self._center, self._resized = (Plan(spec, manifest.heights, manifest.widths) for spec in (center, resized))
        self.renderer = make_renderer(
            manifest,
            resized,  # whose rows have the same columns
            device=options.device,
            decoder=options.decoder,
            augmenter=options.augmenter,
            threads=options.threads,
            cache_bytes=0,
        )

    def drawn(self, name: str, target: int, number: int) -> int:
        """The image of a class that has a number in the order in which `random` takes them."""
        images = self._setting.images_of(target)
        return int(images[draw_order(name, self._setting.config.seed, len(images))[number]])

    def fitted(self, images: Indexes) -> tuple[Tensor, Indexes]:
        """Images, fitted centrally, uint8 ``[n, S, S, 3]``, and the boxes of them that these show, int64 ``[n, 4]``."""
        rows = self._center.unmixed(0, images)
        return self.renderer.render(rows), rows.boxes().astype(np.int64)

    def crops(self, target: int, batch: int) -> Iterator[Tensor]:
        """A random crop of each image of a class, in batches, uint8 ``[b, S, S, 3]``."""
        images = self._setting.images_of(target)
        for start in range(0, len(images), batch):
            yield self.renderer.render(self._resized.unmixed(0, images[start : start + batch]))
