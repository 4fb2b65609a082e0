"""Where the crops of a run come from: `CropSource`, the crops of a store rendered again, and fresh ones of a plan."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor

from labelstore.format.columns import CropRows
from pipeline.images.manifest import Manifest
from pipeline.plan.augment.sides import at_size
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import Renderer
from pipeline.render.batches import render_each
from pipeline.replay.source import Source
from trainer.following import view_is_there, wait_for_view

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Crops:
    """n crops of one view, in whole groups, before the normalisation.

    Attributes:
        view: the view.
        positions: their positions in it, int64 ``[n]``.
        rows: what made each crop.
        pixels: after mixing, uint8 ``[n, S, S, 3]``, on the device of the renderer.
    """

    view: int
    positions: Int64Array
    rows: CropRows
    pixels: Tensor


class CropSource(Protocol):
    """Crops by view and position; what a class that names this one as its base leaves out, it gets from here.

    Called by one thread at a time.

    Attributes:
        images: N, the positions of a view.
        group: consecutive positions that mix with each other; rows are asked for in whole groups.
        views: how many views there are; None where any view can be made.
        size: side S of the pixels.
        drawn_size: side that the rows were drawn for, in whose pixels they give the boxes of CutMix.
        mean: channel means of the normalisation, of pixels in [0, 1].
        std: channel standard deviations of the normalisation.
        targets: hard label of each image, as a column of the labels, int64 ``[N]``.
        identity: what tells these crops from others; kept in the state of a run, and compared when it is loaded.
        remark: a line about them for the start of a run; may be empty.
        growing: whether views are still being made while others are played.
    """

    images: int
    group: int
    views: int | None
    size: int
    drawn_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    targets: Int64Array
    identity: Mapping[str, int | str]
    remark: str = ""
    growing: bool = False

    def rows(self, view: int, positions: Int64Array) -> CropRows:
        """What makes the crops at some positions of a view, whole groups of them."""
        ...

    def pixels(self, rows: CropRows) -> Tensor:
        """The crops of whole groups, after mixing, uint8 ``[n, S, S, 3]``.

        Or what a network gets as it is, in floating-point numbers of any shape ``[n, ...]``, such as latents.
        """
        ...

    def stream(self, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """The crops of each of ``parts`` as by `pixels`; parts may be taken ahead of their crops."""
        return map(self.pixels, parts)

    def has(self, view: int) -> bool:  # noqa: ARG002
        """Whether a view can be played now."""
        return True

    def wait_for(self, view: int) -> None:  # noqa: ARG002
        """Wait until a view can be played; raises when it never will."""
        return

    def close(self) -> None:
        """Release what renders."""
        return


class ReplayedCrops(CropSource):
    """The crops of a store, rendered again.

    Args:
        source: the store with its images.
        views: how many of its views are played, the first ones.
        mean: channel means of the normalisation.
        std: channel standard deviations of the normalisation.
        remark: what P2's check of the pixels found.
    """

    def __init__(
        self, source: Source, views: int, mean: tuple[float, ...], std: tuple[float, ...], remark: str = ""
    ) -> None:
        identity = source.store.identity
        self.source = source
        self.images, self.group, self.views = identity.images, identity.group, views
        self.size, self.drawn_size = source.spec.size, identity.size
        self.mean, self.std, self.remark = mean, std, remark
        self.targets = np.array(identity.label_columns, np.int64)[source.store.targets]
        drawn = {} if identity.seed is None else {"plan_seed": identity.seed}
        self.identity = {"manifest": identity.manifest, **drawn}
        self.growing = source.store.follow

    def rows(self, view: int, positions: Int64Array) -> CropRows:
        """The stored rows."""
        return self.source.store.rows(view, positions)

    def pixels(self, rows: CropRows) -> Tensor:
        """The same boxes, at the side of these crops."""
        return self.source.renderer.render(at_size(rows, self.drawn_size, self.size))

    def stream(self, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """The crops of each of ``parts``; taken ahead where the renderer works ahead and no view must be waited for."""
        sized = (at_size(rows, self.drawn_size, self.size) for rows in parts)
        return map(self.source.renderer.render, sized) if self.growing else render_each(self.source.renderer, sized)

    def has(self, view: int) -> bool:
        """Whether every block of the view is published."""
        return not self.growing or view_is_there(self.source.store, view)

    def wait_for(self, view: int) -> None:
        """Wait for the build that makes the view; NotStoredError when there is none."""
        if self.growing:
            wait_for_view(self.source.store, view)

    def close(self) -> None:
        """Release the renderer."""
        self.source.close()


class FreshCrops(CropSource):
    """The crops that a build of the same plan would store, made as they are played.

    Args:
        manifest: the images.
        spec: the plan.
        renderer: made of both.
        mean: channel means of the normalisation.
        std: channel standard deviations of the normalisation.
        label_columns: the column of each class in the labels.
        views: how many views of the plan are played; None does not bound them.
    """

    def __init__(
        self,
        manifest: Manifest,
        spec: PlanSpec,
        renderer: Renderer,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        label_columns: Sequence[int],
        views: int | None = None,
    ) -> None:
        self._plan = Plan(spec, manifest.heights, manifest.widths)
        self._renderer = renderer
        self.images, self.group, self.views = len(manifest), spec.group, views
        self.size = self.drawn_size = spec.size
        self.mean, self.std = mean, std
        self.targets = np.array(label_columns, np.int64)[manifest.targets]
        self.identity = {"manifest": manifest.digest, "plan": json.dumps(spec.to_json())}
        self.remark = f"crops: fresh, of {self.images:,} images at {spec.size} px, by plan seed {spec.seed}"

    def rows(self, view: int, positions: Int64Array) -> CropRows:
        """The rows of the plan."""
        return self._plan.rows_at(view, positions)

    def pixels(self, rows: CropRows) -> Tensor:
        """Rendered as a build renders them."""
        return self._renderer.render(rows)

    def stream(self, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """Rendered as a build renders them."""
        return render_each(self._renderer, parts)

    def close(self) -> None:
        """Release the renderer."""
        self._renderer.close()
