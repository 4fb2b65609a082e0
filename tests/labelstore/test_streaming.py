"""Streams give what reads give, in order, within their budget, and let go of everything."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore import LabelStore
from labelstore.access import streaming
from labelstore.access.reading import Reader
from labelstore.durable import disk
from labelstore.durable.storage import LocalStorage
from labelstore.errors import DamagedError, InputError, NotStoredError
from labelstore.format.blocks import BlockIndex
from tests.labelstore.making import Content, build, make_identity

VIEWS = 8
Requests = list[tuple[int, slice | list[int]]]


@pytest.fixture(scope="module")
def content() -> Content:
    return Content(make_identity(block=(2, 4)), VIEWS)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory, content: Content) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    build(path, content, VIEWS)
    return path


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("giftwrap-stream")]


def end_of_threads() -> None:
    """Wait until no stream has threads: a stream that ends does not wait for them itself."""
    for thread in threads():
        thread.join(60)
    assert not threads()


requests_of_a_store = st.lists(
    st.tuples(
        st.integers(0, VIEWS - 1),
        st.one_of(st.lists(st.integers(0, 9), max_size=6), st.builds(slice, st.integers(0, 10), st.integers(0, 10))),
    ),
    max_size=12,
)


@settings(deadline=None, max_examples=25)
@given(requests_of_a_store, st.sampled_from([0, 1, 150, 400, 10**6]))
def test_a_stream_gives_what_reads_give(path: Path, requests: Requests, budget: int) -> None:
    store = LabelStore.open(path)
    batches = list(store.stream(requests, budget_bytes=budget))
    codes = list(store.stream_codes(iter(requests), budget_bytes=budget))
    assert len(batches) == len(codes) == len(requests)
    for (view, positions), batch, found in zip(requests, batches, codes, strict=True):
        expected = store.read(view, positions)
        assert batch.view == view
        assert np.array_equal(batch.positions, expected.positions)
        assert np.array_equal(batch.logits, expected.logits)
        assert np.array_equal(batch.rows.values, expected.rows.values)
        assert all(np.array_equal(found[name], theirs) for name, theirs in store.codes(view, positions).items())
    end_of_threads()


@settings(deadline=None, max_examples=25)
@given(requests_of_a_store, st.integers(0, 600))
def test_no_more_is_ahead_than_the_budget(path: Path, requests: Requests, budget: int) -> None:
    store = LabelStore.open(path)
    reader = Reader(LocalStorage(path), store.identity, store.marker, map_bytes=budget)
    ahead: dict[BlockIndex, int] = {}
    sizes = {block: reader.block_bytes(block) for block in store.sealed_blocks()}

    class Watched(Reader):
        def read_ahead(self, block: BlockIndex) -> None:
            assert block not in ahead
            ahead[block] = sizes[block]
            assert sum(ahead.values()) <= budget

        def drop(self, block: BlockIndex) -> None:
            super().drop(block)
            del ahead[block]

    watched = Watched(LocalStorage(path), store.identity, store.marker, map_bytes=budget)
    served = list(streaming.stream(requests, watched, store._index, lambda view, _: view, budget))
    assert served == [view for view, _ in requests]
    assert not ahead
    assert not watched._maps._values


def test_blocks_come_before_their_turn(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(disk, "read_ahead", lambda file: seen.append(file.parent.name + file.name))
    stream = LabelStore.open(path).stream((view, slice(0, 4)) for view in range(VIEWS))
    next(stream)
    list(stream)
    assert sorted(seen) == sorted(
        name for i in range(4) for name in (f"labelsc.{i}.0.0", f"scalesc.{i}.0.0", f"rowsc.{i}.0.0")
    )


def test_errors_come_in_their_turn(path: Path, tmp_path: Path, content: Content) -> None:
    other = build(tmp_path / "s", content, 4)
    shard = other.path / "labels/c.1.0.0"
    shard.write_bytes(b"\1" + shard.read_bytes()[1:])
    stream = other.stream([(0, [1]), (1, [2]), (2, [3]), (0, [4])])
    assert [next(stream).view, next(stream).view] == [0, 1]
    with pytest.raises(DamagedError, match="CRC-32C"):
        next(stream)
    store = LabelStore.open(path)
    with pytest.raises(NotStoredError, match="view 8 cannot be read"):
        list(store.stream([(0, [0]), (8, [0])]))
    with pytest.raises(InputError, match="positions: expected 0 to 9, found 10"):
        list(store.stream([(0, [10])]))

    def broken() -> Iterator[tuple[int, list[int]]]:
        yield 0, [3]
        raise ZeroDivisionError("of the requests")

    stream = store.stream(broken())
    assert next(stream).positions.tolist() == [3]
    with pytest.raises(ZeroDivisionError, match="of the requests"):
        next(stream)
    end_of_threads()


def test_what_cannot_be_read_ahead_is_read_when_asked(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_file: Path) -> None:
        raise OSError("not on this file system")

    monkeypatch.setattr(disk, "read_ahead", refuse)
    assert [batch.view for batch in LabelStore.open(path).stream((view, [0]) for view in range(3))] == [0, 1, 2]


def test_stopping_early_ends_the_threads(path: Path) -> None:
    stream = LabelStore.open(path).stream((view % VIEWS, slice(None)) for view in range(10**9))
    assert [batch.view for batch in islice(stream, 3)] == [0, 1, 2]
    assert threads()
    stream.close()  # type: ignore[attr-defined]  # a generator's
    end_of_threads()


def test_a_stream_follows_a_build(tmp_path: Path, content: Content) -> None:
    build(tmp_path / "s", content, 2)
    build(tmp_path / "s", content, 4, blocks=1)
    follower = LabelStore.open(tmp_path / "s", follow=True)
    stream = follower.stream([(0, [9]), (2, [0]), (2, [9]), (3, [9])])
    assert [next(stream).view, next(stream).view] == [0, 2]
    build(tmp_path / "s", content, 4)  # what was not there when the requests were taken
    assert [np.array_equal(batch.rows.values, content.rows[batch.view][:, [9]]) for batch in stream] == [True, True]
