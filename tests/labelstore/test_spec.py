"""Labels with more columns than there are classes: what the identity says, and what targets are."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelstore import Identity, LabelStore
from labelstore.durable.documents import Fields
from labelstore.errors import DamagedError, InputError
from labelstore.format.parsing import read_identity
from labelstore.operations.check import check
from tests.labelstore.making import Content, build, make_identity


def written(identity: Identity) -> Identity:
    """The identity as it comes back from its JSON."""
    return read_identity(Fields(Path("zarr.json"), json.loads(json.dumps(identity.to_json()))), identity.format)


def test_an_identity_without_them_is_written_as_before() -> None:
    identity = make_identity(columns=5)
    assert "class_columns" not in identity.to_json()
    assert written(identity) == identity
    assert identity.label_columns == (0, 1)
    assert identity.column_names == {0: "cat", 1: "dog"}


def test_an_identity_with_them_comes_back() -> None:
    identity = make_identity(columns=5, class_columns=(4, 1))
    assert written(identity) == identity
    assert identity.label_columns == (4, 1)
    assert identity.column_names == {4: "cat", 1: "dog"}


@pytest.mark.parametrize("columns", [(4,), (4, 1, 2), (4, 4), (4, 5), (-1, 0)])
def test_they_are_another_column_for_each_class(columns: tuple[int, ...]) -> None:
    with pytest.raises(InputError, match="another column below 5 for each of 2 classes"):
        make_identity(columns=5, class_columns=columns)


@pytest.mark.parametrize("columns", [3, [[4], [1]], ["4", "1"], None])
def test_what_is_no_list_of_columns_is_no_identity(columns: object) -> None:
    with pytest.raises(DamagedError, match=r"zarr\.json: class_columns: expected (a list|integers)"):
        read_identity(Fields(Path("zarr.json"), {**make_identity(columns=5).to_json(), "class_columns": columns}), 2)


@pytest.mark.parametrize("columns", [(), (4, 1)])
def test_targets_of_labels_are_columns(tmp_path: Path, columns: tuple[int, ...]) -> None:
    content = Content(make_identity(columns=5, class_columns=columns), 2)
    build(tmp_path / "store", content, 2)
    store = LabelStore.open(tmp_path / "store")
    assert np.array_equal(store.targets, content.targets)
    batch = store.read(1, slice(None))
    assert np.array_equal(batch.targets, np.array(columns or (0, 1))[content.targets[batch.rows.image]])
    (streamed,) = store.stream([(1, slice(None))])
    assert np.array_equal(streamed.targets, batch.targets)
    assert check(store.path).ok
