"""Files that are elsewhere, fetched in pieces."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.durable import pieces
from labelstore.durable.storage import LocalStorage, Range
from labelstore.errors import DamagedError

CONTENT = bytes(range(256)) * 4
ranges = st.lists(st.tuples(st.integers(0, 1024), st.integers(0, 300)).map(lambda r: (r[0], min(sum(r), 1024))))


class Counting(LocalStorage):
    """A folder, and the ranges that were asked of it."""

    asked: ClassVar[list[Range]] = []

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        self.asked.extend(ranges)
        return super().read_many(name, ranges)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("PIECE_BYTES", 16), ("TAIL_BYTES", 20), ("REQUEST_BYTES", 100)):
        monkeypatch.setattr(pieces, name, value)


@settings(deadline=None, max_examples=30)
@given(st.lists(ranges, max_size=4))
def test_what_was_fetched_is_the_file_and_nothing_is_fetched_twice(
    tmp_path_factory: pytest.TempPathFactory, batches: list[list[Range]]
) -> None:
    folder = tmp_path_factory.mktemp("f")
    (folder / "f").write_bytes(CONTENT)
    storage = Counting(folder)
    storage.asked.clear()
    mapped = pieces.fetched(storage, "f", 1024)
    assert mapped.fetch
    assert (mapped.size(), mapped.data.size, mapped.held) == (1024, 1024, 1024)
    assert mapped.data[1004:].tobytes() == CONTENT[1004:]
    for batch in batches:
        mapped.fetch(batch, False)
        for start, stop in batch:
            assert mapped.data[start:stop].tobytes() == CONTENT[start:stop]
    covered = [byte for start, stop in storage.asked for byte in range(start, min(stop, 1024))]
    assert len(covered) == len(set(covered))
    wanted = {byte // 16 for batch in batches for start, stop in batch for byte in range(start, stop)}
    assert {byte // 16 for byte in covered} == wanted | {62, 63}
    assert all(stop - start <= 100 for start, stop in storage.asked)
    before = len(storage.asked)
    mapped.fetch([(0, 5)], True)
    assert len(storage.asked) == before + 1


def test_a_file_of_another_size_is_found(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(CONTENT)
    storage = LocalStorage(tmp_path)
    for size in (0, 1, 15, 1023, 1025, 3000):
        assert pieces.fetched(storage, "f", size).size() == 1024
    mapped = pieces.fetched(storage, "f", 1024)
    (tmp_path / "f").write_bytes(CONTENT[:100])
    assert mapped.fetch
    mapped.fetch([(0, 90)], False)
    with pytest.raises(DamagedError, match=r"f: expected bytes 496 to 512, found 0 of them"):
        mapped.fetch([(500, 501)], False)
