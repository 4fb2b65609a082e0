"""A store of drawn labels whose crops are those of a plan, so that it is verified and replayed like any other."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore import AuditRows, BlockData, BlockIndex, LabelStore
from labelstore.encodings import Codes, Pairs
from labelstore.encodings.components import Calibration
from labelstore.encodings.fitting import Fit, Sample, fit
from labelstore.encodings.transform import Transform
from labelstore.format.arrays import AUDIT_BLOCK
from pipeline.build.build import make_identity
from pipeline.build.calibrate import rows_to_fit
from pipeline.images.manifest import Manifest
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import Renderer, make_renderer
from pipeline.render.audit import DIGEST_POSITIONS, pixels_digest

# Standard deviations of the components of real labels, a MobileNetV2's for 224 px crops of 1,000 photographs of
# ImageNet, over that of the first: of what crops add to the mean labels of their images, and of the means.
CHANGES = {0: 1.0, 1: 0.81, 3: 0.71, 10: 0.54, 30: 0.42, 100: 0.29, 200: 0.19, 400: 0.07, 700: 0.032, 999: 0.01}
MEANS = {0: 1.0, 1: 0.83, 3: 0.70, 10: 0.51, 30: 0.34, 100: 0.20, 200: 0.11, 400: 0.032, 700: 0.009, 999: 0.001}
SPREAD = 0.86  # length of a change over that of a mean
MEAN_RANK = 128  # components of means that are drawn
STEP = 0.9  # of the transform: what a fidelity of 0.98 takes for those labels
AUDIT_CROPS = 64
FIT_IMAGES = 20_000
AT_ONCE = 4_096  # images whose means are coded together

Float32Array = npt.NDArray[np.float32]
Int64Array = npt.NDArray[np.int64]


class DrawnLabels:
    """Labels with the spectrum of a classifier's: a mean of each image, and for each crop a change.

    Args:
        targets: class of each image ``[N]``.
        columns: C.
    """

    def __init__(self, targets: Int64Array, columns: int) -> None:
        self.columns = columns
        self._targets = targets
        self._rng = np.random.default_rng(0)
        rotation = np.linalg.qr(self._rng.standard_normal((columns, columns)))[0]
        self._basis = _scaled(rotation, CHANGES)
        self._mean_basis = _scaled(rotation[: min(MEAN_RANK, columns)], MEANS)
        rank = len(self._mean_basis)
        self._parts = self._rng.standard_normal((len(targets), rank), np.float32).astype(np.float16)

    def means(self, images: Int64Array) -> Float32Array:
        """Mean labels of some images, float32 ``[n, C]``."""
        means: Float32Array = self._parts[images].astype(np.float32) @ self._mean_basis
        means[np.arange(len(images)), self._targets[images]] += np.float32(np.sqrt(self.columns) / 4)
        return means

    def changes(self, count: int) -> Float32Array:
        """What crops add to the means of their images, float32 ``[count, C]``; others at each call."""
        drawn: Float32Array = self._rng.standard_normal((count, self.columns), np.float32) @ self._basis
        return drawn * np.float32(SPREAD)

    def calibration(self, encoding: Transform) -> Calibration:
        """Fit an encoding to these labels, as a build does."""
        images = np.unique(np.linspace(0, len(self._targets) - 1, FIT_IMAGES).astype(np.int64))
        fitted, searched = rows_to_fit(len(images), self.columns)
        shown, means = np.arange(fitted + searched) % len(images), self.means(images)
        logits = means[shown] + self.changes(len(shown))
        head, tail = slice(0, fitted), slice(fitted, None)
        learnt, search = (Sample(logits[part], Pairs.unmixed(shown[part])) for part in (head, tail))
        found = fit(encoding, means, learnt, search, self._targets[images])
        return found.with_means(self._coded(found))

    def _coded(self, found: Fit) -> npt.NDArray[np.int16]:
        """Codes of the means of all images, int16 ``[N, r]``."""
        codes = np.empty((len(self._targets), found.calibration.components), np.int16)
        for start in range(0, len(codes), AT_ONCE):
            part = np.arange(start, min(start + AT_ONCE, len(codes)))
            codes[part] = found.code(self.means(part))
        return codes


def _scaled(rotation: npt.NDArray[np.float64], deviations: Mapping[int, float]) -> Float32Array:
    """Orthonormal rows ``[r, C]`` by the deviations of components, whose labels have a mean square of 1 a column."""
    columns = rotation.shape[1]
    places = np.array([*deviations]) * (columns - 1) / max(deviations)
    scales = np.exp(np.interp(np.arange(len(rotation)), places, np.log([*deviations.values()])))
    scales *= np.sqrt(columns / np.square(scales).sum())
    return (rotation * scales[:, None]).astype(np.float32)


@dataclass(eq=False)
class Writing:
    """The data from which blocks are made.

    Attributes:
        store: to be written.
        plan: of its crops.
        renderer: of its crops.
        labels: drawn.
        codes: of the first block's crops, once they are known: further blocks take them again, in another order.
    """

    store: LabelStore
    plan: Plan
    renderer: Renderer
    labels: DrawnLabels
    codes: Codes | None = None

    def block(self, block: BlockIndex) -> BlockData:
        """The crops of a block with their labels."""
        views, (start, stop) = range(*self.store.block_views(block)), self.store.positions(block)
        rows = [self.plan.rows(view, start, stop) for view in views]
        kept = AUDIT_CROPS if block == AUDIT_BLOCK else DIGEST_POSITIONS
        crops = self.renderer.render(rows[0].take(slice(min(kept, len(rows[0]), self.plan.images))))
        values = np.stack([each.values for each in rows])
        digest = pixels_digest(crops[:DIGEST_POSITIONS])
        if self.codes is not None:
            return BlockData(
                logits=np.empty((0, 0, self.labels.columns), np.float32),
                rows=values,
                pixels_digest=digest,
                codes=self._again(self.codes, len(views), stop - start, block),
                largest=1.0,
            )
        images = np.stack([each.image.astype(np.int64) for each in rows])
        logits = self.labels.means(images.ravel()) + self.labels.changes(images.size)
        logits = logits.reshape(*images.shape, self.labels.columns)
        self.codes = self.store.encoding.encode(logits, Pairs.unmixed(images))
        audit = AuditRows(crops=crops.numpy(), logits=logits[0, : len(crops)].astype(np.float16))
        return BlockData(logits=logits, rows=values, pixels_digest=digest, audit=audit, codes=self.codes)

    @staticmethod
    def _again(codes: Codes, views: int, positions: int, block: BlockIndex) -> dict[str, npt.NDArray[Any]]:
        """Codes for a block of this shape: each is the change of a crop, whatever image it shows."""
        moved = {name: np.roll(array, block.i + 7 * block.j, axis=1) for name, array in codes.items()}
        return {name: array[:views, :positions] for name, array in moved.items()}


def write_store(path: Path, manifest: Manifest, size: int, views: int) -> LabelStore:
    """A finished store of resized crops of all images, labelled by no teacher; its encoding is ``transform``."""
    plan = Plan(PlanSpec(size=size), manifest.heights, manifest.widths)
    columns = len(manifest.classes)
    labels, encoding = DrawnLabels(manifest.targets, columns), Transform(columns, step=STEP)
    labeller: Any = SimpleNamespace(
        columns=columns,
        class_columns=(),
        identity={"name": "drawn", "mean": [*IMAGENET_MEAN], "std": [*IMAGENET_STD]},
    )
    with closing(make_renderer(manifest, plan.spec, cache_bytes=0)) as renderer:
        engine = {"name": "drawn", "dtype": "float32"}
        identity = make_identity(manifest, plan, labeller, engine, encoding.to_json(), renderer.id, views)
        store = LabelStore.create(path, identity, image_digests=manifest.digests, targets=manifest.targets, views=views)
        writing = Writing(store, plan, renderer, labels)
        with store.lease() as writer:
            writer.calibrate(labels.calibration(encoding))
            with writer.queue() as write:
                for block in store.missing():
                    write(block, writing.block(block))
            writer.seal()
    return store
