"""Labels as .npy, for tools that know nothing of stores."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore
from labelstore.errors import InputError, NotStoredError
from labelstore.operations import export as exporting
from labelstore.operations.export import export
from tests.labelstore.making import Content, build, make_identity


@pytest.fixture
def content() -> Content:
    return Content(make_identity(encoding="float16", columns=7), 4)


@pytest.fixture
def store(tmp_path: Path, content: Content) -> LabelStore:
    return build(tmp_path / "store", content, 4)


def in_image_order(content: Content) -> np.ndarray:
    out = np.empty(content.logits.shape, np.float16)
    for view, order in enumerate(content.order):
        out[view, order] = content.logits[view]
    return out


def test_rows_are_images_unless_asked_otherwise(
    store: LabelStore, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "BYTES_AT_ONCE", 3 * 4 * 7)  # three rows
    assert export(store, tmp_path / "all.npy") == (4, 10, 7)
    assert np.array_equal(np.load(tmp_path / "all.npy"), in_image_order(content))
    assert export(store, tmp_path / "one.npy", views=2) == (10, 7)
    assert np.array_equal(np.load(tmp_path / "one.npy"), in_image_order(content)[2])
    assert export(store, tmp_path / "two.npy", views=range(2), order="stored") == (2, 10, 7)
    assert np.array_equal(np.load(tmp_path / "two.npy"), content.logits[:2].astype(np.float16))


def test_probabilities(store: LabelStore, content: Content, tmp_path: Path) -> None:
    export(store, tmp_path / "soft.npy", temperature=4)
    powers = np.exp(in_image_order(content).astype(np.float64) / 4)
    expected = powers / powers.sum(axis=2, keepdims=True)
    np.testing.assert_allclose(np.load(tmp_path / "soft.npy"), expected, atol=2**-11)


def test_bad_input_leaves_no_file(store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out.npy"
    for flags, error, message in (
        ({"views": 4}, InputError, "expected 0 to 3, found 4"),
        ({"views": -1}, InputError, "expected 0 to 3, found -1"),
        ({"views": range(9)}, InputError, "found 4"),
        ({"temperature": 0.0}, InputError, "above 0"),
        ({"temperature": float("nan")}, InputError, "above 0"),
    ):
        with pytest.raises(error, match=message):
            export(store, out, **flags)
    with pytest.raises(InputError, match=r"ends in \.npy"):
        export(store, tmp_path / "out")
    with pytest.raises(InputError, match="make it first"):
        export(store, tmp_path / "no" / "out.npy")
    with pytest.raises(NotStoredError, match="no view is sealed"):
        export(build(tmp_path / "new", Content(store.identity, 2), 2, 1), out)
    monkeypatch.setattr(exporting, "HEADER_BYTES", 10**18)
    with pytest.raises(InputError, match=r"needs up to .* bytes"):
        export(store, out)
    out.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export(store, out)
    assert out.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["new", "out.npy", "store"]


def test_logits_beyond_float16_are_named(tmp_path: Path) -> None:
    content = Content(make_identity(columns=7), 2)
    content.logits[1, 5, 3] = 1e6
    store = build(tmp_path / "store", content, 2)
    with pytest.raises(InputError, match=rf"view 1, image {content.order[1, 5]}, column 3: expected .* found 1e\+06"):
        export(store, tmp_path / "out.npy")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
    export(store, tmp_path / "out.npy", temperature=1)
    assert np.isfinite(np.load(tmp_path / "out.npy")).all()


def test_a_stopped_export_leaves_nothing(store: LabelStore, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        assert not (tmp_path / "out.npy").exists()
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(store, tmp_path / "out.npy", progress=stop)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
