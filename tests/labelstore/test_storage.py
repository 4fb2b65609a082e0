"""A store that is read from elsewhere than a folder, by a storage as a user would write one."""

from __future__ import annotations

import pickle
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, LocalStorage, Mapped, check
from labelstore.durable.storage import Range
from labelstore.errors import DamagedError, FormatError, InputError
from labelstore.operations.convert import convert
from tests.labelstore.making import GOLDEN

STORES = sorted(GOLDEN.glob("format-*/*.zip"))
NAMES = [f"{path.parent.name}-{path.stem}" for path in STORES]


@dataclass
class ZipStorage:
    """A store inside a zip file, which is never unpacked."""

    archive: Path
    requests: Counter[str] = field(default_factory=Counter)

    @property
    def root(self) -> Path:
        return self.archive / self.archive.stem

    def size(self, name: str) -> int:
        self.requests["size"] += 1
        return len(self._content(name))

    def read(self, name: str, start: int, stop: int) -> bytes:
        self.requests[name] += 1
        return self._content(name)[start:stop]

    def read_many(self, name: str, ranges: Sequence[Range]) -> list[bytes]:
        return [self.read(name, *each) for each in ranges]

    def map(self, name: str, size: int, digest: str | None = None) -> Mapped:  # noqa: ARG002
        self.requests[name] += 1
        content = self._content(name)
        return Mapped.of(content[:size], len(content))

    def list(self, folder: str) -> list[str]:
        self.requests["list"] += 1
        inside = f"{self.archive.stem}/{folder}/"
        with zipfile.ZipFile(self.archive) as archive:
            if inside not in archive.namelist():
                raise FileNotFoundError(inside)
            return [name.removeprefix(inside) for name in archive.namelist() if name.startswith(inside)]

    def read_ahead(self, name: str) -> bool:  # noqa: ARG002
        return False

    def _content(self, name: str) -> bytes:
        with zipfile.ZipFile(self.archive) as archive:
            try:
                return archive.read(f"{self.archive.stem}/{name}")
            except KeyError as error:
                raise FileNotFoundError(name) from error


@pytest.mark.parametrize("path", STORES, ids=NAMES)
def test_a_zip_file_is_read_as_its_folder_is(tmp_path: Path, path: Path) -> None:
    zipfile.ZipFile(path).extractall(tmp_path)
    folder, storage = LabelStore.open(tmp_path / path.stem), ZipStorage(path)
    zipped = LabelStore.open(storage)
    assert (zipped.identity, zipped.state) == (folder.identity, folder.state)
    batches = list(zipped.stream((view, slice(None)) for view in range(6)))
    for view, batch in enumerate(batches):
        expected = folder.read(view, slice(None))
        assert np.array_equal(batch.logits, expected.logits)
        assert np.array_equal(batch.rows.values, expected.rows.values)
        assert np.array_equal(batch.targets, expected.targets)
        assert np.array_equal(zipped.read_images(view, [3, 1]).logits, folder.read_images(view, [3, 1]).logits)
    assert np.array_equal(zipped.image_digests, folder.image_digests)
    assert np.array_equal(zipped.audit().logits, folder.audit().logits)
    assert (zipped.fidelity, zipped.complete) == (folder.fidelity, folder.complete)
    assert zipped.bytes_per_label() == folder.bytes_per_label()
    ours, theirs = check(storage), check(folder.path)
    assert ours.ok
    assert (ours.files, ours.bytes, ours.fidelity) == (theirs.files, theirs.bytes, theirs.fidelity)


def test_requests_are_few(tmp_path: Path) -> None:
    storage = ZipStorage(next(path for path in STORES if path.stem == "int8" and path.parent.name == "format-2"))
    store = LabelStore.open(storage)
    for _ in range(3):
        for view in range(6):
            store.read(view, slice(None))
    assert not {"list", "size"} & storage.requests.keys()
    assert not any(name.startswith("markers") for name in storage.requests)
    assert set(storage.requests.values()) == {1}  # each document, and each shard, once


def test_such_a_store_is_converted_pickled_and_never_written(tmp_path: Path) -> None:
    path = next(path for path in STORES if path.stem == "int8" and path.parent.name == "format-2")
    store = pickle.loads(pickle.dumps(LabelStore.open(ZipStorage(path))))  # noqa: S301  our own
    made = convert(store, tmp_path / "made", {"name": "float16"})
    assert check(made.path).ok
    assert np.array_equal(made.read(0, [1, 2]).logits, store.read(0, [1, 2]).logits.astype(np.float16))
    with pytest.raises(InputError, match="to write to, found one that is read by ZipStorage; copy it"), store.lease():
        pass


def test_what_is_not_there_or_damaged_is_named(tmp_path: Path) -> None:
    archive = tmp_path / "s.zip"
    with zipfile.ZipFile(archive, "w") as made:
        made.writestr("s/zarr.json", "{}")
    with pytest.raises(FormatError, match=r"s\.zip/s: expected a label store"):
        LabelStore.open(ZipStorage(archive))
    whole = STORES[NAMES.index("format-2-int8")]
    with zipfile.ZipFile(whole) as source, zipfile.ZipFile(tmp_path / "int8.zip", "w") as cut:
        for name in source.namelist():
            cut.writestr(name, source.read(name)[: -1 if name.endswith("labels/c.0.0.0") else None])
    store = LabelStore.open(ZipStorage(tmp_path / "int8.zip"))
    with pytest.raises(DamagedError, match=r"int8\.zip/int8/labels/c\.0\.0\.0: expected \d+ bytes, found \d+"):
        store.read(0, slice(None))
    assert [damage.file for damage in check(ZipStorage(tmp_path / "int8.zip")).damaged] == ["labels/c.0.0.0"]


def test_a_folder_gives_the_ranges_that_are_there(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"0123456789")
    storage = LocalStorage(tmp_path)
    assert storage.read_many("f", [(0, 3), (8, 20), (12, 20)]) == [b"012", b"89", b""]
    assert (storage.size("f"), storage.list(".")) == (10, ["f"])
    mapped = storage.map("f", 4)
    assert (mapped.data.tobytes(), mapped.size()) == (b"0123", 10)
    with pytest.raises(FileNotFoundError):
        storage.read("g", 0, 1)
