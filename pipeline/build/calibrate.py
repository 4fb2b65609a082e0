"""Calibrate a store's encoding before its first label: more crops of the same plan, labelled by the same teacher (P6).

Mean labels are computed from unmixed crops of every image; center, basis and step from crops of the plan, mixed or not,
in views that no store has.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import closing

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.command.console import Console, Progress
from labelstore.durable.nameless import zeros
from labelstore.encodings import Pairs
from labelstore.encodings.bands import missed
from labelstore.encodings.components import Calibration
from labelstore.encodings.fidelity import beside
from labelstore.encodings.fitting import Fit, Sample, fit
from labelstore.encodings.transform import Transform
from labelstore.format.calibration import MEANS_BYTES
from labelstore.format.columns import CropRows
from labelstore.spec import Identity, Json
from labelstore.writing.encoding import pairs_of
from pipeline.build.labelling import Rows, label
from pipeline.device.faults import device_faults
from pipeline.plan.plan import Plan
from pipeline.render import Renderer
from pipeline.teacher.labeller import Labeller

# crops of each image: residuals have 1 + 1 / 16 of the variance that they would have with the exact mean
MEAN_CROPS = 16
FIRST_VIEW = 1 << 30  # views of calibrations: above all views of any store
FIT_ROWS = 16_384
FIT_VIEWS = 12  # views for small sets
SEARCH_SHARE = 4  # one more row for every so many rows of the fit, to choose the step
MAX_BYTES = 512 << 20  # float32 logits for the fit
IMAGES_AT_ONCE = 4096

Float32Array = npt.NDArray[np.float32]


class Calibrator:
    """Labels the crops of a calibration.

    Args:
        identity: the store's identity.
        plan: of the store.
        renderer: renders the store's crops.
        labeller: of the store.
        targets: label column of each image's class ``[N]``.
    """

    def __init__(
        self, identity: Identity, plan: Plan, renderer: Renderer, labeller: Labeller, targets: npt.NDArray[np.integer]
    ) -> None:
        self._identity, self._plan, self._renderer, self._labeller = identity, plan, renderer, labeller
        self._targets = targets

    @device_faults("the calibration is made", "a smaller --cache-gib, or for another store a smaller --batch")
    def calibrate(self, encoding: Transform, console: Console) -> Calibration:
        """Fit ``encoding``; labels MEAN_CROPS crops of every image and about 20,000 more.

        Raises:
            InputError: when the requested step is too fine for the labels.
        """
        images = self._identity.images
        fitted, searched = rows_to_fit(images, self._identity.columns)
        total = MEAN_CROPS * images + fitted + searched
        with console.progress("calibration", total, "crops") as progress:
            logits, pairs = self._sample(fitted + searched, progress)
            shown, places = np.unique(np.concatenate([pairs.images, pairs.partners]), return_inverse=True)
            pairs = Pairs(places[: len(pairs.images)], places[len(pairs.images) :], pairs.weights)
            means = self._means(shown, progress)
            head, tail = slice(0, fitted), slice(fitted, None)
            found = fit(
                encoding,
                means,
                Sample(logits[head], pairs.take(head)),
                Sample(logits[tail], pairs.take(tail)),
                self._targets[shown],
            )
            codes = self._code(found, shown, means, progress)
        calibration = found.with_means(codes)
        reached: dict[str, Json] = {
            "rows": searched,
            "mean": calibration.fidelity,
            "kl_1": calibration.kl_1,
            "kl_20": calibration.kl_20,
            "top1": calibration.top1,
        }
        console.line(
            f"calibration: step {calibration.step:.4g}, {calibration.components} components, "
            f"fidelity {calibration.fidelity:.4f}{beside(reached)} on {searched:,} crops"
        )
        for text in missed(encoding.to_json(), {"calibration": reached}):
            console.warn(text)
        return calibration

    def _sample(self, count: int, progress: Progress) -> tuple[Float32Array, Pairs]:
        """Labels of ``count`` crops of the plan, view after view, and the images that they show."""
        images, group = self._identity.images, self._identity.group
        each: list[CropRows] = []
        left = count
        for view in range(FIRST_VIEW + MEAN_CROPS, FIRST_VIEW + MEAN_CROPS + count):
            if left <= 0:
                break
            each.append(self._plan.rows(view, 0, min(-(-left // group) * group, images)))
            left -= len(each[-1])
        pairs = [pairs_of(self._identity, rows.values[None]).flat() for rows in each]
        joined = Pairs(*(np.concatenate(column) for column in zip(*pairs, strict=True))).take(slice(count))
        logits = self._zeros(count)
        self._add(logits, each, group, progress)
        return logits.cpu().numpy(), joined

    def _means(self, images: npt.NDArray[np.int64], progress: Progress) -> Float32Array:
        """Mean labels of MEAN_CROPS unmixed crops of some images, float32 ``[n, C]``."""
        means = self._zeros(len(images))
        for view in range(FIRST_VIEW, FIRST_VIEW + MEAN_CROPS):
            self._add(means, [self._plan.unmixed(view, images)], 1, progress)
        means /= MEAN_CROPS
        return means.cpu().numpy()

    def _code(
        self, found: Fit, shown: npt.NDArray[np.int64], means: Float32Array, progress: Progress
    ) -> npt.NDArray[np.int16]:
        """Codes of the mean labels of all images, int16 ``[N, r]``; the means of ``shown`` are given."""
        shape = self._identity.images, found.calibration.components
        codes: npt.NDArray[np.int16] = zeros(shape, np.int16, MEANS_BYTES)
        codes[shown] = found.code(means)
        others = np.setdiff1d(np.arange(len(codes)), shown)
        for start in range(0, len(others), IMAGES_AT_ONCE):
            part = others[start : start + IMAGES_AT_ONCE]
            codes[part] = found.code(self._means(part, progress))
        return codes

    def _zeros(self, count: int) -> Tensor:
        """Zeros for ``count`` labels, float32 ``[count, C]`` on the labeller's device."""
        return torch.zeros((count, self._labeller.columns), device=self._labeller.device)

    def _add(self, logits: Tensor, rows: Sequence[CropRows], group: int, progress: Progress) -> None:
        """Add the labels of the first n rows to ``logits``, float32 ``[n, C]``, in place to save memory."""
        job, done = Rows(rows, ["a calibration view"] * len(rows)), 0
        with closing(label(self._renderer, self._labeller, group, [job])) as labelled:
            for each in labelled:
                place = logits[done : done + len(each.logits)]
                place += each.logits[: len(place)]
                done += len(each.logits)
                progress.advance(len(each.logits))


def rows_to_fit(images: int, columns: int) -> tuple[int, int]:
    """The number of crops for the fit of a transform, and for the choice of its step."""
    fitted = min(FIT_ROWS, max(FIT_VIEWS * images, 4 * columns), max(MAX_BYTES // (4 * columns), 1))
    return fitted, max(fitted // SEARCH_SHARE, 1)
