"""Arrays that would take more memory than a budget lie in a file without a name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore
from labelstore.durable.nameless import zeros
from labelstore.encodings.transform import Transform
from labelstore.format import calibration
from labelstore.operations.convert import convert
from labelstore.operations.refit import refit
from tests.labelstore.making import build
from tests.labelstore.test_refit import COLUMNS, low_rank


def test_an_array_within_the_budget_is_in_memory_and_a_larger_one_in_a_file_that_is_gone(tmp_path: Path) -> None:
    assert not isinstance(zeros((4, 8), np.int16, 64, folder=tmp_path), np.memmap)
    found = zeros((4, 9), np.int16, 64, folder=tmp_path)
    assert isinstance(found, np.memmap)
    assert (found.dtype.name, found.shape) == ("int16", (4, 9))
    assert not found.any()
    found[2] = 7
    assert found[2:3].sum() == 63
    assert not list(tmp_path.iterdir())


def test_where_a_file_has_no_room_the_array_is_in_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def full(_descriptor: int, _offset: int, _size: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "posix_fallocate", full)
    for folder in (tmp_path, tmp_path / "absent"):
        found = zeros((3, 3), np.float32, 0, folder=folder)
        assert not isinstance(found, np.memmap)
        assert not found.any()


@pytest.mark.parametrize("group", [1, 16])
@pytest.mark.parametrize(("chosen", "kind"), [({"fidelity": 0.95}, np.int8), ({"step": 0.02}, np.int16)])
def test_labels_are_the_same_with_their_means_in_a_file(
    tmp_path: Path, group: int, chosen: dict[str, Any], kind: type[np.integer], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images of several chunks, the last one short: 320 of 128."""
    monkeypatch.setattr("labelstore.format.arrays.CODE_CHUNK", (16, 128))
    plain = build(tmp_path / "float16", low_rank(group, 6), 6)
    own = refit(plain, Transform(COLUMNS, **chosen), 6)
    store = convert(plain, tmp_path / "transform", {"name": "transform", **chosen})
    expected = store.read(1, slice(None)).logits
    monkeypatch.setattr(calibration, "MEANS_BYTES", 0)
    found = LabelStore.open(store.path)
    assert np.array_equal(found.read(1, slice(None)).logits, expected)
    means = found.encoding.calibration.means  # type: ignore[attr-defined]
    assert isinstance(means, np.memmap)
    assert means.dtype == kind
    assert np.array_equal(means, own.means)
