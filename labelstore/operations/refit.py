"""Calibrate an encoding with the labels of a store, without a teacher that makes more.

Mean labels are fitted by least squares over the stored rows of some views, mixed ones included; the transform and its
step are fitted to rows of other views, so that predictions are as good as they look. View 0 comes into none of it: its
first rows are those that fidelity is measured on.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.durable.nameless import zeros
from labelstore.encodings import Logits, Pairs
from labelstore.encodings.components import Calibration
from labelstore.encodings.fitting import Sample, fit
from labelstore.encodings.transform import Transform
from labelstore.errors import InputError
from labelstore.format.calibration import MEANS_BYTES
from labelstore.operations.means import least_squares_means
from labelstore.store import LabelStore

MIN_VIEWS = 3
MEAN_VIEWS = 16
MEAN_ROWS = 1 << 16  # where 16 views have fewer, more views are taken
FIT_VIEWS = 8
FIT_ROWS = 1 << 15
FIT_BYTES = 512 << 20  # of float32 logits
READ_BYTES = 64 << 20
SEARCH_EVERY = 8  # of the rows that are fitted to, one in so many more chooses the step
SEARCH_ROWS = 256  # that choose it where there are few, but a third of them at most


def refit(source: LabelStore, encoding: Transform, views: int, folder: Path | None = None) -> Calibration:
    """Calibrate ``encoding`` with the first ``views`` views of ``source``.

    Args:
        source: the store whose labels are to be coded.
        encoding: with the fidelity, or the step, to reach.
        views: sealed views.
        folder: where mean labels that are too many for memory have room.

    Raises:
        InputError: when there are too few labels.
    """
    images, columns = source.identity.images, source.identity.columns
    for_means, for_fit = split_views(views, images)
    blocks = _labels(source, [(view, slice(None)) for view in for_means])
    means = least_squares_means(blocks, images, columns, folder=folder)
    sample, shown = _sample(source, for_fit)
    if len(sample.logits) < 2:
        raise InputError(
            "label encoding transform: expected at least 2 labels to calibrate with, beside those that give the means "
            "and those of view 0, found 1; convert more views, or use --encoding int8"
        )
    edge = rows_to_fit(len(sample.logits))
    fitted, search = (Sample(sample.logits[p], sample.pairs.take(p)) for p in (slice(edge), slice(edge, None)))
    found = fit(encoding, means[shown], fitted, search, source.target_columns[shown])
    step = max(READ_BYTES // (4 * columns), 1)
    codes = zeros((images, found.calibration.components), np.int16, MEANS_BYTES, folder=folder)
    for start in range(0, images, step):
        codes[start : start + step] = found.code(means[start : start + step])
    return found.with_means(codes)


def rows_to_fit(rows: int) -> int:
    """The number of rows for the fit, of at least 2; the others choose the step."""
    return max(min(rows * SEARCH_EVERY // (SEARCH_EVERY + 1), max(rows - SEARCH_ROWS, rows * 2 // 3)), 1)


def split_views(views: int, images: int) -> tuple[range, range]:
    """The views for the means, and those for the rows of the fit.

    Raises:
        InputError: when there are too few.
    """
    if views < MIN_VIEWS:
        raise InputError(
            f"label encoding transform: expected at least {MIN_VIEWS} views to calibrate with (one for mean labels, "
            f"one to fit to, one to measure fidelity on), found {views}; convert more views, or use --encoding int8"
        )
    rest = views - 1
    edge = 1 + min(max(MEAN_VIEWS, -(-MEAN_ROWS // images)), rest - max(rest // 4, 1))
    return range(1, edge), range(edge, views)


def _labels(source: LabelStore, requests: list[tuple[int, slice]]) -> Iterator[tuple[Pairs, Logits]]:
    """Pairs and logits of some runs of positions, in pieces that fit memory."""
    step = max(READ_BYTES // (4 * source.identity.columns), 1)
    for view, positions in requests:
        start, stop, _ = positions.indices(source.identity.images)
        for at in range(start, stop, step):
            part = slice(at, min(at + step, stop))
            yield source.pairs(view, part), source.read(view, part).logits


def _sample(source: LabelStore, views: range) -> tuple[Sample, npt.NDArray[np.int64]]:
    """Rows spread over ``views`` and over positions, with the images that they show; pairs count among these."""
    images, columns = source.identity.images, source.identity.columns
    rows = min(FIT_ROWS, max(FIT_BYTES // (4 * columns), 1))
    count = min(len(views), max(FIT_VIEWS, -(-rows // images)))
    chosen = np.unique(np.linspace(0, len(views) - 1, count).astype(int))
    run = min(-(-rows // len(chosen)), images)
    # Each of the views gives another run of positions, so that many images come into the sample.
    starts = np.linspace(0, images - run, len(chosen)).astype(int)
    parts = [(views[view], slice(start, start + run)) for view, start in zip(chosen, starts.tolist(), strict=True)]
    each = list(_labels(source, parts))
    pairs = Pairs(*(np.concatenate(column) for column in zip(*(pairs for pairs, _ in each), strict=True)))
    shown, places = np.unique(np.concatenate([pairs.images, pairs.partners]), return_inverse=True)
    own, partners = places[: len(pairs.images)], places[len(pairs.images) :]
    return Sample(np.concatenate([logits for _, logits in each]), Pairs(own, partners, pairs.weights)), shown
