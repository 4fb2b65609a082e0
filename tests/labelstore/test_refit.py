"""A transform calibrated with stored labels alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelstore import CropRows, LabelStore
from labelstore.encodings.transform import Transform
from labelstore.errors import InputError
from labelstore.fidelity import gift_fidelity
from labelstore.refit import refit, share_views
from tests.labelstore.making import Content, build, make_identity

COLUMNS = 64


def low_rank(group: int, views: int) -> Content:
    """Labels as teachers make them: what an image is, what a crop of it adds, and a little of everything."""
    content = Content(
        make_identity(images=320, columns=COLUMNS, encoding="float16", block=(1, 320), group=group, size=8), views
    )
    rng = np.random.default_rng(1)
    basis = rng.standard_normal((40, COLUMNS)) * np.exp(-np.arange(40) / 8)[:, None]
    means = 2 * rng.standard_normal((320, 40)) @ basis
    for view, own in enumerate(content.order):
        rows = CropRows(content.identity.crop_columns, content.rows[view])
        partners = own[rows.partners(group)] if rows.mixed else own
        weights = rows.weights(8)[:, None]
        crops = rng.standard_normal((320, 40)) @ basis + 0.05 * rng.standard_normal((320, COLUMNS))
        content.logits[view] = weights * means[own] + (1 - weights) * means[partners] + crops
    return content


def fidelity(store: LabelStore, encoding: Transform, view: int) -> float:
    labels, pairs = store.read(view, slice(None)), store.pairs(view, slice(None))
    decoded = encoding.decode(encoding.encode(labels.logits, pairs), pairs)
    cosines = gift_fidelity(labels.logits, decoded, labels.targets, store.targets[pairs.partners], pairs.weights)
    return float(cosines.mean())


@pytest.mark.parametrize("group", [1, 16])
def test_the_fidelity_asked_for_is_reached_on_rows_that_nothing_was_fitted_to(tmp_path: Path, group: int) -> None:
    store = build(tmp_path / "store", low_rank(group, 9), 9)
    encoding = Transform(COLUMNS, fidelity=0.95)
    calibration = refit(store, encoding, 9)
    assert calibration.means.shape == (320, calibration.components)
    assert fidelity(store, encoding.calibrated(calibration), 0) == pytest.approx(0.95, abs=0.01)
    again = refit(store, encoding, 9)
    assert np.array_equal(calibration.basis, again.basis)
    assert np.array_equal(calibration.means, again.means)
    assert calibration.step == again.step


@pytest.mark.parametrize("images", [10, 1000, 100_000])
@pytest.mark.parametrize("views", [3, 4, 10, 300])
def test_views_are_shared_out(images: int, views: int) -> None:
    means, fitted = share_views(views, images)
    assert 0 not in (*means, *fitted)
    assert [*means, *fitted] == list(range(1, views))
    assert min(len(means), len(fitted)) >= 1


def test_too_few_views_are_refused() -> None:
    with pytest.raises(InputError, match="at least 3 views"):
        share_views(2, 10)
