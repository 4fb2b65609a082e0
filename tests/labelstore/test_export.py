"""Labels as .npy and Parquet, for tools that know nothing of stores."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore
from labelstore.errors import InputError, NotStoredError
from labelstore.export_table import ExportOptions
from labelstore.operations import export as exporting
from labelstore.operations import export_parquet
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


@pytest.fixture
def parquet() -> Any:
    return pytest.importorskip("pyarrow.parquet")


def table_of(parquet: Any, path: Path) -> dict[str, np.ndarray]:
    table = parquet.read_table(path)
    found = {name: table[name].to_numpy() for name in table.schema.names[:-1]}
    label = table.schema.names[-1]
    assert str(table.schema.field(label).type) == "fixed_size_list<element: halffloat>[7]"
    return found | {label: np.stack(table[label].to_numpy())}


def test_parquet_has_a_row_for_each_crop(
    parquet: Any, store: LabelStore, content: Content, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export_parquet, "BYTES_AT_ONCE", 15 * 4 * 7)  # fifteen rows
    out = tmp_path / "labels.parquet"
    done: list[tuple[int, int]] = []
    made = export_parquet.export_parquet(store, out, ExportOptions(progress=lambda *steps: done.append(steps)))
    assert (made.shape, made.size) == ((40, 7), out.stat().st_size)
    assert done == [(view, 4) for view in range(1, 5)]
    found = table_of(parquet, out)
    assert np.array_equal(found["view"], np.repeat(range(4), 10))
    assert np.array_equal(found["image"], np.tile(range(10), 4))
    assert np.array_equal(found["logits"].reshape(4, 10, 7), in_image_order(content))
    assert np.array_equal(found["target"], content.targets[found["image"]])
    for row in range(40):
        crop = store.read(found["view"][row], [found["position"][row]]).rows
        assert crop.image[0] == found["image"][row]
        assert crop.flip[0] == found["flip"][row]
        assert crop.boxes()[0].tolist() == [found[name][row] for name in ("top", "left", "height", "width")]
    groups = parquet.ParquetFile(out)
    assert groups.num_row_groups > 1
    assert json.loads(groups.schema_arrow.metadata[b"giftwrap"])["classes"] == list(store.identity.classes)


def test_parquet_in_stored_order_with_probabilities(
    parquet: Any, store: LabelStore, content: Content, tmp_path: Path
) -> None:
    out = tmp_path / "p.parquet"
    export_parquet.export_parquet(store, out, ExportOptions(views=2, order="stored", temperature=4))
    found = table_of(parquet, out)
    assert found["position"].tolist() == [*range(10)]
    powers = np.exp(content.logits[2].astype(np.float16).astype(np.float64) / 4)
    np.testing.assert_allclose(found["probabilities"], powers / powers.sum(1, keepdims=True), atol=2**-11)


def test_parquet_refuses_what_npy_refuses(
    parquet: Any, store: LabelStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"ends in \.parquet; --format names other formats"):
        export_parquet.export_parquet(store, tmp_path / "out.npy", ExportOptions())
    with pytest.raises(InputError, match="expected 0 to 3, found 4"):
        export_parquet.export_parquet(store, tmp_path / "out.parquet", ExportOptions(views=4))
    mine = tmp_path / "mine.parquet"
    mine.write_text("mine")
    with pytest.raises(InputError, match="exists already"):
        export_parquet.export_parquet(store, mine, ExportOptions())
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InputError, match=r"--format parquet is written by pyarrow.*giftwrap\[parquet\]"):
        export_parquet.export_parquet(store, tmp_path / "out.parquet", ExportOptions())
    assert mine.read_text() == "mine"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine.parquet", "store"]


def test_a_stopped_parquet_export_leaves_nothing(parquet: Any, store: LabelStore, tmp_path: Path) -> None:
    def stop(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_parquet.export_parquet(store, tmp_path / "out.parquet", ExportOptions(progress=stop))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["store"]
