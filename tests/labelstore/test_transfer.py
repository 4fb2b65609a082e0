"""Stores that are copied to a bucket and back, in one go or in many."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.durable.objects import ObjectStorage
from labelstore.errors import AddressError, DamagedError, InputError, MismatchError, NotStoredError
from labelstore.operations.transfer import pull, push
from labelstore.storage_table import Address
from tests.labelstore.buckets import BUCKET, Proxy, bucket, patience, put
from tests.labelstore.making import GOLDEN, Content, build, make_identity

_numbers = count()


@pytest.fixture(scope="module")
def server() -> Iterator[Proxy]:
    with bucket() as proxy:
        yield proxy


@pytest.fixture
def proxy(server: Proxy, monkeypatch: pytest.MonkeyPatch) -> Proxy:
    server.faults, server.always = [], ""
    server.requests.clear()
    patience(monkeypatch, FIRST_WAIT=timedelta(milliseconds=1), LONGEST_WAIT=timedelta(milliseconds=2))
    return server


@pytest.fixture
def address() -> str:
    return f"s3://{BUCKET}/pushed-{next(_numbers)}"


def golden(name: str, folder: Path) -> Path:
    zipfile.ZipFile(GOLDEN / "format-2" / f"{name}.zip").extractall(folder)
    return folder / name


def everything(folder: Path) -> dict[str, bytes]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lease.json")
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


@pytest.mark.parametrize("name", ["int8", "transform-mixed", "transform-top1"])
def test_what_is_pushed_and_pulled_is_the_same(proxy: Proxy, address: str, tmp_path: Path, name: str) -> None:
    store = golden(name, tmp_path)
    there = push(store, address)
    assert there.copied == there.files == len(everything(store))
    pull(address, tmp_path / "pulled")
    assert everything(tmp_path / "pulled") == everything(store)
    assert check(tmp_path / "pulled").ok
    proxy.requests.clear()
    assert push(store, address).copied == pull(address, tmp_path / "pulled").copied == 0
    assert {method for method, _ in proxy.requests} == {"GET", "HEAD"}


def test_a_reader_sees_the_old_state_or_the_new_one(proxy: Proxy, address: str, tmp_path: Path) -> None:
    content = Content(make_identity(block=(2, 4)), 8)
    build(tmp_path / "s", content, 4)
    push(tmp_path / "s", address)
    extended = build(tmp_path / "t", content, 8)
    states, store = list[int](), ObjectStorage.put

    def watched(self: ObjectStorage, name: str, data: bytes) -> None:
        if not name.endswith(("seals/8.json", "zarr.json")):
            store(self, name, data)
            return
        seen = LabelStore.open(address)
        states.append(seen.state.views_sealed)
        view = seen.state.views_sealed - 1
        assert np.array_equal(seen.read(view, [1]).logits, extended.read(view, [1]).logits)
        store(self, name, data)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ObjectStorage, "put", watched)
        push(tmp_path / "t", address)
    assert set(states) == {4}
    assert LabelStore.open(address).state.views_sealed == 8
    pull(address, tmp_path / "s")
    assert check(tmp_path / "s").ok
    assert LabelStore.open(tmp_path / "s").state.views_sealed == 8
    build(tmp_path / "u", content, 4)
    with pytest.raises(InputError, match=r"has 8 views sealed, .*u has 4; copy it the other way"):
        push(tmp_path / "u", address)


@pytest.mark.parametrize("direction", ["push", "pull"])
def test_a_copy_that_stops_anywhere_continues(proxy: Proxy, address: str, tmp_path: Path, direction: str) -> None:
    store = golden("int8", tmp_path)
    if direction == "pull":
        push(store, address)
    for passed in (3, 20):
        proxy.faults, proxy.always = [""] * passed, "drop"
        with pytest.MonkeyPatch.context() as patch:
            patience(patch, RETRIES=0)
            with pytest.raises(AddressError):
                push(store, address) if direction == "push" else pull(address, tmp_path / "pulled")
        proxy.faults, proxy.always = [], ""
        if direction == "push":
            assert "zarr.json" not in ObjectStorage(Address(address)).tags()
        else:
            assert not (tmp_path / "pulled/zarr.json").exists()
    push(store, address)
    pull(address, tmp_path / "pulled")
    assert everything(tmp_path / "pulled") == everything(store)


def test_it_passes_through_faults(proxy: Proxy, address: str, tmp_path: Path) -> None:
    store = golden("int8", tmp_path)
    proxy.faults = ["500", "", "503", "", "", "429"] * 30
    push(store, address)
    proxy.faults = ["truncate", "", "drop", "", "", ""] * 30
    pull(address, tmp_path / "pulled")
    assert everything(tmp_path / "pulled") == everything(store)


def test_nothing_else_is_overwritten_and_nothing_damaged_is_copied(proxy: Proxy, address: str, tmp_path: Path) -> None:
    store = golden("int8", tmp_path)
    shard = store / "labels/c.0.0.0"
    whole = shard.read_bytes()
    shard.write_bytes(bytes([whole[0] ^ 1]) + whole[1:])
    with pytest.raises(DamagedError, match=r"labels/c\.0\.0\.0: is not the file that was published"):
        push(store, address)
    shard.write_bytes(whole)
    put(f"{address.partition(BUCKET)[2][1:]}/labels/c.0.0.0", whole[::-1])
    with pytest.raises(InputError, match=r"pushed-\d+/labels/c\.0\.0\.0: expected the file of .*, found another one"):
        push(store, address)
    other = golden("transform-mixed", tmp_path)
    push(other, f"{address}/other")
    with pytest.raises(MismatchError, match=r"other: holds another store than .*int8"):
        push(store, f"{address}/other")
    for place, words in (("mine", "found 'notes.txt'"), ("file", "found a file")):
        (tmp_path / "mine").mkdir(exist_ok=True)
        (tmp_path / "mine/notes.txt").write_text("mine")
        (tmp_path / "file").touch()
        with pytest.raises(InputError, match=words):
            pull(f"{address}/other", tmp_path / place)
    shutil.copytree(other, tmp_path / "copy")
    (tmp_path / "copy/labels/c.0.0.0").write_bytes(b"mine")
    with pytest.raises(InputError, match=r"copy/labels/c\.0\.0\.0: expected the file of"):
        pull(f"{address}/other", tmp_path / "copy")
    assert (tmp_path / "copy/labels/c.0.0.0").read_bytes() == b"mine"


def test_what_cannot_be_copied_is_refused(tmp_path: Path, proxy: Proxy, address: str) -> None:
    build(tmp_path / "begun", Content(make_identity(block=(2, 4)), 4), 4, blocks=1)
    with pytest.raises(NotStoredError, match="no view is sealed yet"):
        push(tmp_path / "begun", address)
    with pytest.raises(InputError, match=r"https://host/s: expected the address of a bucket \(s3://, gs:// or az://\)"):
        push(golden("int8", tmp_path), "https://host/s")
    with pytest.raises(InputError, match="expected the address of a store, found a path"):
        pull(str(tmp_path / "int8"), tmp_path / "other")
