"""Sources of crops: the `CropSource` protocol, crops replayed from a store, and fresh crops of a plan."""

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
from pipeline.replay.source import Replayer
from trainer.following import view_is_there, wait_for_view

Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Crops:
    """n crops of one view, in whole groups, not yet normalised.

    Attributes:
        view: the view.
        positions: their positions in it, int64 ``[n]``.
        rows: their rows.
        pixels: after mixing, uint8 ``[n, S, S, 3]``, on the device of the renderer.
    """

    view: int
    positions: Int64Array
    rows: CropRows
    pixels: Tensor


class CropSource(Protocol):
    """Crops by view and position. Subclasses inherit the default methods below.

    Methods are called by one thread at a time.

    Attributes:
        images: N, the number of positions in a view.
        group: consecutive positions that mix with each other; rows are requested in whole groups.
        views: number of views; None if any view can be made.
        size: side S of the pixels.
        drawn_size: side that the rows were drawn for; boxes of CutMix are in its pixels.
        mean: channel means of the normalisation, of pixels in [0, 1].
        std: channel standard deviations of the normalisation.
        targets: hard label of each image, as a column of the labels, int64 ``[N]``.
        identity: distinguishes these crops from others; part of a run's state, and compared when it is loaded.
        remark: a line about the crops, printed when a run starts; may be empty.
        growing: whether views may still be added while others are played.
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
        """The rows of some positions of a view, in whole groups."""
        ...

    def pixels(self, rows: CropRows) -> Tensor:
        """The crops of whole groups, after mixing, uint8 ``[n, S, S, 3]``.

        Alternatively the network's input itself, such as latents: floating-point, of any shape ``[n, ...]``.
        """
        ...

    def stream(self, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """The crops of each of ``parts``, equal to `pixels`; parts may be read ahead."""
        return map(self.pixels, parts)

    def has(self, view: int) -> bool:  # noqa: ARG002
        """Whether a view can be played now."""
        return True

    def wait_for(self, view: int) -> None:  # noqa: ARG002
        """Wait until a view can be played; raises if it never will be."""
        return

    def close(self) -> None:
        """Release the renderer."""
        return


class ReplayedCrops(CropSource):
    """The crops of a store, rendered again.

    Args:
        source: the store, its images and a renderer.
        views: how many of its views are played, from the first on.
        mean: channel means of the normalisation.
        std: channel standard deviations of the normalisation.
        remark: result of the check of the pixels (P2).
    """

    def __init__(
        self, source: Replayer, views: int, mean: tuple[float, ...], std: tuple[float, ...], remark: str = ""
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
        """The stored boxes, rendered at the size of this source."""
        return self.source.renderer.render(at_size(rows, self.drawn_size, self.size))

    def stream(self, parts: Iterable[CropRows]) -> Iterator[Tensor]:
        """The crops of each of ``parts``; rendered ahead if the renderer can, and the store is not growing."""
        sized = (at_size(rows, self.drawn_size, self.size) for rows in parts)
        return map(self.source.renderer.render, sized) if self.growing else render_each(self.source.renderer, sized)

    def has(self, view: int) -> bool:
        """Whether every block of the view is published."""
        return not self.growing or view_is_there(self.source.store, view)

    def wait_for(self, view: int) -> None:
        """Wait for the build to publish the view; NotStoredError if no build is running."""
        if self.growing:
            wait_for_view(self.source.store, view)

    def close(self) -> None:
        """Release the renderer."""
        self.source.close()


class FreshCrops(CropSource):
    """The crops that a build with the same plan would store, rendered as they are played.

    Args:
        manifest: the images.
        spec: the plan.
        renderer: renders ``spec`` from ``manifest``.
        mean: channel means of the normalisation.
        std: channel standard deviations of the normalisation.
        label_columns: the label column of each class.
        views: how many views of the plan are played; None for no limit.
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
