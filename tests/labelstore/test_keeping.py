"""What is kept of a store that is elsewhere."""

from __future__ import annotations

import os
import pickle
import zipfile
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, Mapped, PieceCache, check
from labelstore.durable import pieces
from labelstore.durable.keeping import Cached
from labelstore.errors import InputError
from tests.labelstore.making import GOLDEN
from tests.labelstore.test_storage import ZipStorage

ARCHIVE = GOLDEN / "format-2" / "transform-mixed.zip"
PIECE = 64


class Elsewhere(ZipStorage):
    """A zip file that is read by ranges."""

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:  # noqa: ARG002
        return pieces.fetched(self, name, size)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", PIECE)
    monkeypatch.setattr(pieces, "TAIL_BYTES", PIECE)


@pytest.fixture
def folder(tmp_path: Path) -> LabelStore:
    zipfile.ZipFile(ARCHIVE).extractall(tmp_path / "there")
    return LabelStore.open(tmp_path / "there" / ARCHIVE.stem)


def read_all(store: LabelStore, expected: LabelStore) -> None:
    for view, batch in enumerate(store.stream((view, slice(None)) for view in range(6))):
        assert np.array_equal(batch.logits, expected.read(view, slice(None)).logits)


def shards(storage: ZipStorage) -> int:
    return sum(times for name, times in storage.requests.items() if "/c." in name)


def kept(path: Path) -> list[Path]:
    return [file for file in path.rglob("*") if file.is_file()]


def bytes_in(cache: PieceCache) -> int:
    total = 0
    for path in kept(cache.folder):
        with suppress(FileNotFoundError):  # another thread makes room
            total += path.stat().st_size if path.suffix != ".txt" else 0
    return total


def test_what_was_read_once_is_read_from_here(tmp_path: Path, folder: LabelStore) -> None:
    cold, warm = Elsewhere(ARCHIVE), Elsewhere(ARCHIVE)
    cache = PieceCache(tmp_path / "cache", 1 << 30)
    read_all(LabelStore.open(cold, cache=cache), folder)
    assert shards(cold)
    store = LabelStore.open(warm, cache=PieceCache(tmp_path / "cache", 1 << 30))
    read_all(store, folder)
    assert np.array_equal(store.read_images(2, [3, 1]).logits, folder.read_images(2, [3, 1]).logits)
    assert shards(warm) == 0
    again = pickle.loads(pickle.dumps(store))  # noqa: S301  our own
    assert isinstance(again.storage, Cached)
    assert check(store.storage).ok


def test_the_folder_stays_within_its_limit(tmp_path: Path, folder: LabelStore) -> None:
    limit = 20 * PIECE
    cache, foreign = PieceCache(tmp_path / "cache", limit), tmp_path / "cache" / "ab" / "notes.txt"
    foreign.parent.mkdir(parents=True)
    foreign.write_bytes(b"mine" * 1000)
    put = PieceCache.put

    def watched(self: PieceCache, name: str, data: bytes) -> None:
        put(self, name, data)
        assert bytes_in(cache) <= limit + 16 * PIECE

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PieceCache, "put", watched)
        read_all(LabelStore.open(Elsewhere(ARCHIVE), cache=cache), folder)
    assert bytes_in(cache) <= limit
    assert foreign.exists()


def test_what_was_used_least_recently_makes_room(tmp_path: Path) -> None:
    cache = PieceCache(tmp_path, 3000)
    names = [f"{number:016x}-9.0" for number in range(4)]
    for number, name in enumerate(names[:3]):
        cache.put(name, bytes(1000))
        os.utime(cache._path(name), (number, number))
    assert cache.get(names[0], 1000) == bytes(1000)
    cache.put(names[3], bytes(1000))
    assert [cache.get(name, 1000) is not None for name in names] == [True, False, False, True]
    assert cache.get(names[0], 999) is None


def test_damaged_pieces_are_fetched_again(tmp_path: Path, folder: LabelStore) -> None:
    cache = PieceCache(tmp_path / "cache", 1 << 30)
    read_all(LabelStore.open(Elsewhere(ARCHIVE), cache=cache), folder)
    for path in kept(cache.folder):
        path.write_bytes(bytes(path.stat().st_size))
    storage = Elsewhere(ARCHIVE)
    read_all(LabelStore.open(storage, cache=cache), folder)
    assert shards(storage)
    storage = Elsewhere(ARCHIVE)
    read_all(LabelStore.open(storage, cache=cache), folder)
    assert shards(storage) == 0


def test_a_folder_that_cannot_be_used_is_refused_and_a_full_disk_is_none(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a path on this machine, found an address"):
        PieceCache(Path("s3://bucket/cache"), 1)
    cache = PieceCache(tmp_path / "cache", 1000)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("labelstore.durable.disk.write_file", lambda *_: (_ for _ in ()).throw(OSError(28, "full")))
        cache.put("00-1.0", b"x")
    assert cache.get("00-1.0", 1) is None
