"""The labels of one image over all views, and what else a store and its batches offer a notebook."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore
from labelstore.errors import InputError, NotStoredError
from tests.labelstore.making import Content, build, make_identity

KINDS: dict[str, dict[str, Any]] = {
    "int8": {"encoding": "int8", "columns": 5},
    "int8 zstd": {"encoding": {"name": "int8", "codec": "zstd"}, "columns": 5},
    "float16": {"encoding": "float16", "columns": 5},
    "mixed": {"encoding": "float16", "columns": 5, "group": 4, "size": 8},
    "transform": {"encoding": {"name": "transform", "step": 0.5}, "columns": 64, "group": 4, "size": 8},
    "a view a block": {"block": (1, 10)},
    "blocks of one run": {"block": (3, 10)},
}
V = 6


@pytest.fixture(params=KINDS)
def store(request: pytest.FixtureRequest, tmp_path: Path) -> LabelStore:
    return build(tmp_path / "s", Content(make_identity(**KINDS[request.param]), V), V)


def close(found: np.ndarray, expected: np.ndarray) -> bool:
    """Whether labels agree; the last bits of a matrix product depend, on some CPUs, on its number of rows."""
    return np.allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_an_image_is_what_reading_each_view_gives(store: LabelStore) -> None:
    for image in (0, 7, 9, 7):
        found = store.image(image)
        each = [store.read_images(view, [image]) for view in range(V)]
        assert close(found.logits, np.concatenate([batch.logits for batch in each]))
        assert np.array_equal(found.positions, np.concatenate([batch.positions for batch in each]))
        assert np.array_equal(found.rows.values, np.concatenate([batch.rows.values for batch in each], axis=1))
        assert (found.image, found.target, len(found)) == (image, each[0].targets[0], V)
        assert found.views.tolist() == [*range(V)]
    some = store.image(3, [5, 0, 0])
    assert close(some.logits, store.image(3).logits[[5, 0, 0]])
    assert close(store.image(3, slice(None, None, -2)).logits, store.image(3).logits[::-2])
    assert len(store.image(3, [])) == 0


@pytest.fixture
def plain(tmp_path: Path) -> LabelStore:
    return build(tmp_path / "s", Content(make_identity(encoding="float16", columns=7), 4), 4)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda s: s.image(10), "image: expected 0 to 9, found 10"),
        (lambda s: s.image(-1), "image: expected 0 to 9, found -1"),
        (lambda s: s.image(1.0), "image: expected an integer, found 1.0"),
        (lambda s: s.image(True), "image: expected an integer, found True"),
        (lambda s: s.image(slice(3)), "image: expected an integer, found slice"),
        (lambda s: s.image(0, [4]), "views: expected 0 to 3, found 4"),
        (lambda s: s.image(0, [-1]), "views: expected 0 to 3, found -1"),
        (lambda s: s.image(0, 2), r"views: expected a slice or integers \[n\]"),
        (lambda s: s.read(0, [-1]), "positions: expected 0 to 9, found -1"),
        (lambda s: s.read(0, np.zeros(10, bool)), r"positions: expected a slice or integers \[n\], found bool"),
        (lambda s: s.read(0, [1]).top(8), "k: expected 1 to 7, the columns of a label, found 8"),
        (lambda s: s.read(0, [1]).top(0), "found 0"),
        (lambda s: s.read(0, [1]).probabilities(0), "temperature: expected a number above 0"),
    ],
)
def test_what_is_not_there_is_refused_by_name(plain: LabelStore, call: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        call(plain)


def test_views_are_refused_by_name(plain: LabelStore) -> None:
    for view in (-1, 4):
        with pytest.raises(NotStoredError, match=f"view {view} cannot be read: 4 of 4 views are sealed"):
            plain.read(view, [0])


def test_slices_are_numpys(plain: LabelStore) -> None:
    whole = plain.read(1, slice(None)).logits
    for part in (slice(-3, None), slice(None, None, -1), slice(8, 100), slice(2, 2)):
        assert np.array_equal(plain.read(1, part).logits, whole[part])


def test_top_columns_and_probabilities(plain: LabelStore) -> None:
    batch = plain.read(0, slice(None))
    best = batch.top(3)
    for row, label in enumerate(batch.logits):
        assert best.columns[row].tolist() == np.lexsort((np.arange(7), -label))[:3].tolist()
        assert np.array_equal(best.logits[row], label[best.columns[row]])
    powers = np.exp(batch.logits.astype(np.float64) / 4)
    np.testing.assert_allclose(batch.probabilities(4), powers / powers.sum(1, keepdims=True), rtol=1e-5)
    assert plain.image(2).top(1).columns.shape == (4, 1)


def test_reprs_are_one_line(plain: LabelStore, tmp_path: Path) -> None:
    assert repr(plain) == f"LabelStore('{plain.path}', 4 of 4 views sealed, 10 images x 7 columns)"
    batch = plain.read(2, [1, 2, 3])
    assert repr(batch) == "LabelBatch(view 2, 3 positions x 7 columns)"
    assert repr(batch.rows).startswith("CropRows(3 crops, image_low, image_high, top,")
    assert repr(plain.image(4)) == "LabelsOfImage(image 4, 4 views x 7 columns)"
    assert (len(plain), plain.views) == (4, 4)
    begun = build(tmp_path / "begun", Content(plain.identity, 4), 4, blocks=1)
    assert (len(begun), bool(begun)) == (0, True)
    with pytest.raises(NotStoredError, match="0 of 4 views are sealed"):
        begun.image(0)


def test_a_closed_store_is_not_read(plain: LabelStore) -> None:
    with LabelStore.open(plain.path) as store:
        store.read(0, [0])
        again = pickle.loads(pickle.dumps(store))  # noqa: S301  ours
    for call in (lambda: store.read(0, [0]), lambda: store.image(0), lambda: store.codes(0, [0])):
        with pytest.raises(InputError, match="is closed; open it again"):
            call()
    assert len(again.read(0, [0])) == 1
