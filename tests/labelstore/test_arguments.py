"""What a reader is asked for is checked, and what it gives is the caller's to change."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore
from labelstore.errors import InputError
from labelstore.operations.convert import convert
from labelstore.operations.export import export
from tests.labelstore.making import Content, build, create, make_identity

READERS: dict[str, Callable[[LabelStore, Any], object]] = {
    "read": lambda store, view: store.read(view, [0]),
    "read_images": lambda store, view: store.read_images(view, [0]),
    "codes": lambda store, view: store.codes(view, [0]),
    "pairs": lambda store, view: store.pairs(view, [0]),
    "stream": lambda store, view: list(store.stream([(view, [0])])),
    "stream_codes": lambda store, view: list(store.stream_codes([(view, [0])])),
}


@pytest.mark.parametrize("follow", [False, True])
@pytest.mark.parametrize("view", [1.0, 0.5, float("nan"), True, np.True_, None, "0", b"0", [0], (), 1j, {}])
@pytest.mark.parametrize("reader", READERS)
def test_a_view_that_is_no_integer_is_refused(tmp_path: Path, reader: str, view: object, follow: bool) -> None:
    build(tmp_path / "s", Content(make_identity(), 2), 2)
    with pytest.raises(InputError, match="view: expected an integer, found"):
        READERS[reader](LabelStore.open(tmp_path / "s", follow=follow), view)


@pytest.mark.parametrize("view", [np.int64(1), np.uint8(1), np.int32(1)])
@pytest.mark.parametrize("reader", READERS)
def test_integers_of_numpy_are_views(tmp_path: Path, reader: str, view: object) -> None:
    store = build(tmp_path / "s", Content(make_identity(), 2), 2)
    READERS[reader](store, view)


def arrays_of(found: object) -> list[np.ndarray[Any, Any]]:
    """Every array in what a reader gave."""
    if isinstance(found, np.ndarray):
        return [found]
    if isinstance(found, Mapping):
        return [array for value in found.values() for array in arrays_of(value)]
    if isinstance(found, list | tuple):
        return [array for value in found for array in arrays_of(value)]
    names = getattr(type(found), "__dataclass_fields__", ())
    return [array for name in names for array in arrays_of(getattr(found, name))]


GIVEN: dict[str, Callable[[LabelStore], object]] = {
    "all": lambda store: store.read(0, slice(None)),
    "block": lambda store: store.read(0, slice(0, 4)),
    "row": lambda store: store.read(1, [3]),
    "images": lambda store: store.read_images(0, slice(None)),
    "codes": lambda store: store.codes(0, slice(0, 4)),
    "all codes": lambda store: store.codes(0, slice(None)),
    "pairs": lambda store: store.pairs(0, slice(0, 4)),
    "stream": lambda store: list(store.stream([(0, slice(0, 4)), (0, slice(0, 4))])),
    "stream_codes": lambda store: list(store.stream_codes([(0, slice(0, 4)), (0, slice(0, 4))])),
    "audit": lambda store: store.audit(),
    "targets": lambda store: store.targets,
    "target columns": lambda store: store.target_columns,
    "digests": lambda store: store.image_digests,
}
ENCODINGS: list[dict[str, Any]] = [
    {"name": "int8"},
    {"name": "int8", "codec": "zstd"},
    {"name": "float16"},
    {"name": "float16", "codec": "zstd"},
    {"name": "transform", "step": 0.5},
]


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("encoding", ENCODINGS, ids=str)
def test_writing_into_what_was_read_changes_nothing_that_is_read_later(
    tmp_path: Path, encoding: dict[str, Any], group: int
) -> None:
    columns = 64 if encoding["name"] == "transform" else 3
    content = Content(make_identity(columns=columns, encoding=encoding, group=group), 2)
    store = build(tmp_path / "s", content, 2)
    wanted = {name: [array.copy() for array in arrays_of(read(store))] for name, read in GIVEN.items()}
    for read in GIVEN.values():
        for array in arrays_of(read(store)):
            array[...] = 1
    for name, read in GIVEN.items():
        for array, before in zip(arrays_of(read(store)), wanted[name], strict=True):
            np.testing.assert_array_equal(array, before, err_msg=name)


CONTENT = Content(make_identity(), 4)
MAKERS: dict[str, Callable[[LabelStore, Path, Any], int]] = {
    "create": lambda _, path, views: create(path, CONTENT, views).state.views_target,
    "extend": lambda _, path, views: build(path, CONTENT, views).state.views_target,
    "convert": lambda store, path, views: convert(store, path, {"name": "float16"}, views=views).state.views_target,
    "export": lambda store, path, views: len(export(store, path.with_suffix(".npy"), views=views)),
}


@pytest.mark.parametrize("views", [1.0, 2.5, float("nan"), True, np.True_, "2", [2]])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_number_of_views_that_is_no_integer_is_refused_and_leaves_nothing(
    tmp_path: Path, maker: str, views: object
) -> None:
    store = build(tmp_path / "s", CONTENT, 4)
    with pytest.raises(InputError, match=r"views?: expected an integer, found"):
        MAKERS[maker](store, tmp_path / "made", views)
    assert [path.name for path in tmp_path.iterdir()] == ["s"]


@pytest.mark.parametrize("kind", [np.uint8, np.int16, np.int64, np.uint64])
@pytest.mark.parametrize("maker", MAKERS)
def test_a_number_of_views_may_be_one_of_numpy(tmp_path: Path, maker: str, kind: type[np.integer[Any]]) -> None:
    store = build(tmp_path / "s", CONTENT, 4)
    assert MAKERS[maker](store, tmp_path / "made", kind(2)) == 2


@pytest.mark.parametrize("views", [4, -1, 10**30, range(4, 5), range(-1, 2), range(0), range(0, 10**30, 3)])
def test_views_that_are_not_sealed_are_not_exported(tmp_path: Path, views: int | range) -> None:
    store = build(tmp_path / "s", CONTENT, 4)
    with pytest.raises(InputError, match="views: expected 0 to 3, found"):
        export(store, tmp_path / "made.npy", views=views)


@pytest.mark.parametrize("temperature", [0, -1, 1e-300, 1e300, float("nan"), float("inf")])
def test_no_temperature_makes_probabilities_that_are_no_numbers(tmp_path: Path, temperature: float) -> None:
    store = build(tmp_path / "s", CONTENT, 4)
    with pytest.raises(InputError, match="temperature: expected a number above 0"):
        export(store, tmp_path / "made.npy", temperature=temperature)
    for possible in (1e-30, 1e30):
        export(store, tmp_path / f"{possible}.npy", temperature=possible)
        assert np.isfinite(np.load(tmp_path / f"{possible}.npy")).all()
