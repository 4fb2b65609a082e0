"""A store in a bucket of an S3 server on this machine, behind a proxy that misbehaves."""

from __future__ import annotations

import os
import pickle
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.__main__ import main
from labelstore.durable import pieces
from labelstore.durable.objects import CLOUDS, ObjectStorage
from labelstore.durable.storage import LocalStorage
from labelstore.errors import AddressError, DamagedError, InputError
from labelstore.operations.transfer import push
from labelstore.storage_table import Address
from tests.labelstore.buckets import BUCKET, SECRET, Proxy, bucket, google, patience, put, put_folder
from tests.labelstore.making import GOLDEN


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Proxy, Path]]:
    """A bucket that holds two stores, and the folder that holds them too."""
    folder = tmp_path_factory.mktemp("stores")
    with bucket() as proxy:
        for name in ("int8", "transform-mixed"):
            zipfile.ZipFile(GOLDEN / "format-2" / f"{name}.zip").extractall(folder)
            put_folder(folder / name, name)
        yield proxy, folder


@pytest.fixture
def proxy(shelf: tuple[Proxy, Path], monkeypatch: pytest.MonkeyPatch) -> Proxy:
    found, _ = shelf
    found.faults, found.always = [], ""
    found.requests.clear()
    patience(monkeypatch, FIRST_WAIT=timedelta(milliseconds=1), LONGEST_WAIT=timedelta(milliseconds=2))
    return found


@pytest.fixture
def folder(shelf: tuple[Proxy, Path]) -> Path:
    return shelf[1]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[str, str, int]]:
    def act(*words: str) -> tuple[str, str, int]:
        monkeypatch.setattr("sys.argv", ["labelstore", *words])
        capsys.readouterr()
        code = main()
        return (*capsys.readouterr(), code)

    return act


def assert_same(ours: LabelStore, theirs: LabelStore) -> None:
    assert (ours.identity, ours.state, ours.fidelity) == (theirs.identity, theirs.state, theirs.fidelity)
    views = range(theirs.state.views_sealed)
    for view, batch in enumerate(ours.stream((view, slice(None)) for view in views)):
        expected = theirs.read(view, slice(None))
        assert np.array_equal(batch.logits, expected.logits)
        assert np.array_equal(batch.rows.values, expected.rows.values)
    assert np.array_equal(ours.read_images(1, [3, 1]).logits, theirs.read_images(1, [3, 1]).logits)


@pytest.mark.parametrize(("name", "piece"), [("int8", pieces.PIECE_BYTES), ("transform-mixed", 100)])
def test_a_store_in_a_bucket_is_the_one_in_the_folder(
    proxy: Proxy, folder: Path, name: str, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pieces, "PIECE_BYTES", piece)
    monkeypatch.setattr(pieces, "TAIL_BYTES", piece)
    address = f"s3://{BUCKET}/{name}"
    store = LabelStore.open(address)
    assert_same(pickle.loads(pickle.dumps(store)), LabelStore.open(folder / name))  # noqa: S301  our own
    assert str(store.path) == address
    if name == "int8":
        ours, theirs = check(address), check(folder / name)
        assert (ours.ok, ours.files, ours.bytes) == (theirs.ok, theirs.files, theirs.bytes)


def test_google_s_client_reads_and_writes(proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in google(proxy).items():
        monkeypatch.setenv(name, value)
    address = f"gs://{BUCKET}/of-google"
    push(folder / "int8", address)
    proxy.faults = ["500", "", "truncate", "", "drop"]
    assert_same(LabelStore.open(address), LabelStore.open(folder / "int8"))
    assert push(folder / "int8", address).copied == 0
    with pytest.raises(AddressError, match="there is no bucket nowhere; check its name"):
        LabelStore.open("gs://nowhere/int8")


@pytest.mark.parametrize(
    ("address", "variables", "code", "why"),
    [
        (
            "gs://b/s",
            {"GOOGLE_APPLICATION_CREDENTIALS": "absent.json"},
            1,
            "their file cannot be opened; look at GOOGLE_",
        ),
        ("gs://b/s", {"GOOGLE_SERVICE_ACCOUNT_KEY": "s3cr3t"}, 1, "their file is not that of a service account"),
        (
            "az://b/s",
            {"AZURE_STORAGE_ACCOUNT_NAME": "me", "AZURE_STORAGE_ACCOUNT_KEY": "s3cr3t!"},
            1,
            "the account key is not in base64; look at AZURE_",
        ),
        ("az://b/s", {"AZURE_STORAGE_ACCOUNT_KEY": "czNjcjN0"}, 1, "found none; set AZURE_STORAGE_ACCOUNT_NAME and"),
        ("s3://b/s", {"AWS_ACCESS_KEY_ID": "s3cr3t"}, 1, "found none; set AWS_ACCESS_KEY_ID and AWS_SECRET"),
        (
            "s3://b/s",
            {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "s3cr3t", "AWS_ENDPOINT_URL": "me:s3cr3t@host:9000"},
            2,
            "AWS_ENDPOINT_URL: expected the address of a server, http://HOST or https://HOST",
        ),
        *(
            (f"{scheme}://b/s", {name: value}, 2, f"{name}: expected a word, found a line break or another character")
            for scheme, cloud in CLOUDS.items()
            for name in cloud.sent
            for value in ("s3cr3t\n", "s3cr3t\u00e9")
        ),
    ],
)
def test_credentials_that_cannot_be_used_are_one_line(
    run: Callable[..., tuple[str, str, int]],
    monkeypatch: pytest.MonkeyPatch,
    address: str,
    variables: dict[str, str],
    code: int,
    why: str,
) -> None:
    pytest.importorskip("obstore")
    for name in [name for name in os.environ if name.startswith(("AWS_", "GOOGLE_", "AZURE_"))]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    out, err, found = run("info", address)
    assert (out, found, err.count("\n")) == ("", code, 1), err
    assert why in err
    assert "s3cr3t" not in err


def test_ranges_are_those_of_a_file(proxy: Proxy, tmp_path: Path) -> None:
    for name, data in (("f", b"0123456789"), ("empty", b"")):
        put(f"ranges/{name}", data)
        (tmp_path / name).write_bytes(data)
    remote, local = ObjectStorage(Address(f"s3://{BUCKET}/ranges")), LocalStorage(tmp_path)
    ranges = [(0, 3), (8, 20), (12, 20), (4, 4), (5, 2)]
    assert remote.read_many("f", ranges) == local.read_many("f", ranges)
    assert sorted(remote.list("")) == ["empty", "f"]
    assert (remote.list("absent"), ObjectStorage(Address(f"s3://{BUCKET}")).list("ranges")) == ([], ["empty", "f"])
    for name in ("f", "empty"):
        assert remote.size(name) == local.size(name)
        for size in (0, 4, 40):
            assert remote.map(name, size).data.tobytes() == local.map(name, size).data.tobytes()
    for read in (remote.size, lambda name: remote.read(name, 0, 0), lambda name: remote.map(name, 0)):
        with pytest.raises(FileNotFoundError):
            read("absent")


def test_each_file_is_one_request(proxy: Proxy) -> None:
    store = LabelStore.open(f"s3://{BUCKET}/int8")
    for _ in range(2):
        for view in range(6):
            store.read(view, slice(None))
    paths = [path for _, path in proxy.requests]
    assert len(paths) == len(set(paths))


@pytest.mark.parametrize("fault", ["500", "503", "429", "drop", "truncate"])
def test_what_passes_is_tried_again(proxy: Proxy, folder: Path, fault: str) -> None:
    proxy.faults = [fault, "", "", fault, fault, ""] * 12
    assert_same(LabelStore.open(f"s3://{BUCKET}/int8"), LabelStore.open(folder / "int8"))


def test_an_answer_that_is_late_is_asked_for_again(proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    patience(monkeypatch, TIMEOUT=timedelta(milliseconds=300), RETRIES=100)  # a busy machine may be as late itself
    proxy.faults = ["hold", "", "hold", "", "", ""]
    assert_same(LabelStore.open(f"s3://{BUCKET}/int8"), LabelStore.open(folder / "int8"))
    assert not proxy.faults


def test_commands_keep_what_they_read(
    proxy: Proxy, folder: Path, run: Callable[..., tuple[str, str, int]], tmp_path: Path
) -> None:
    address, kept = f"s3://{BUCKET}/int8", ("--cache-dir", str(tmp_path / "cache"), "--store-cache-gib", "1")
    for name, store, more in (("local", str(folder / "int8"), ()), ("cold", address, kept), ("warm", address, kept)):
        proxy.requests.clear()
        _, err, code = run("export", store, str(tmp_path / f"{name}.npy"), *more)
        assert code == 0, err
    assert not [path for _, path in proxy.requests if "/c." in path]
    files = [(tmp_path / f"{name}.npy").read_bytes() for name in ("local", "cold", "warm")]
    assert files[0] == files[1] == files[2]
    for store, out in ((address, "converted"), (str(folder / "int8"), "of-folder")):
        _, err, code = run(
            "convert", store, str(tmp_path / out), "--encoding", "float16", *(kept if "://" in store else ())
        )
        assert code == 0, err
    assert_same(LabelStore.open(tmp_path / "converted"), LabelStore.open(tmp_path / "of-folder"))
    out, err, code = run("export", str(folder / "int8"), str(tmp_path / "more.npy"), *kept)
    assert (out, code) == ("", 2)
    assert err.startswith(f"error: --cache-dir: keeps parts of a store at an address, found {folder}/int8; leave")


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        ("500", r"the server answers 500 Internal Server Error \(SlowDown\)"),
        ("drop", "the connection was dropped"),
        ("truncate", "the connection was dropped"),
    ],
)
def test_what_does_not_pass_is_one_line(
    proxy: Proxy, run: Callable[..., tuple[str, str, int]], fault: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience(monkeypatch, RETRIES=2)
    proxy.always = fault
    out, err, code = run("info", f"s3://{BUCKET}/int8")
    assert (out, code, err.count("\n"), len(proxy.requests)) == ("", 1, 1, 3)
    assert re.match(rf"error: s3://{BUCKET}/int8/zarr.json: cannot be reached after retries \({why}\); look at", err)


def test_bad_addresses_are_one_line(
    proxy: Proxy, run: Callable[..., tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    for address, said, code in (
        ("s3://nowhere/int8", "there is no bucket nowhere; check its name", 1),
        (f"s3://{BUCKET}/int9", "expected a label store, found no zarr.json in it", 2),
        (f"s3://{BUCKET}/int8?versionId=1", "expected s3://BUCKET/FOLDER", 2),
        (f"s3://me:{SECRET}@{BUCKET}/int8", "expected s3://BUCKET/FOLDER", 2),
        (f"s4://{BUCKET}/int8", "found another one", 2),
        ("s3://", "no such path; an address is written s3://NAME/FOLDER", 2),
        (f"s3//{BUCKET}/int8", f"no such path; an address is written s3://{BUCKET}/int8", 2),
        (f"s3:{BUCKET}/int8", f"no such path; an address is written s3://{BUCKET}/int8", 2),
    ):
        out, err, found = run("info", address)
        assert (out, found, err.count("\n")) == ("", code, 1), (address, err)
        assert said in err
        assert SECRET not in err
    proxy.always = "403"
    _, err, _ = run("info", f"s3://{BUCKET}/int8")
    assert "the credentials of the environment are refused: 403 Forbidden" in err
    assert SECRET not in err
    for gone in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(gone)
        monkeypatch.setenv("AWS_METADATA_ENDPOINT", proxy.address)
        _, err, code = run("info", f"s3://{BUCKET}/int8")
        assert (err.count("\n"), code) == (1, 1)
        assert "expected credentials in the environment, found none; set AWS_ACCESS_KEY_ID" in err


def test_a_library_that_is_missing_is_named(
    run: Callable[..., tuple[str, str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    for scheme in ("s3", "gs", "az"):
        _, err, code = run("info", f"{scheme}://b/s")
        assert code == 2
        assert err == f"error: {scheme}:// is read by obstore, which is not installed: pip install 'giftwrap[cloud]'\n"


def test_bytes_that_are_damaged_on_the_way_are_fetched_again(
    proxy: Proxy, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read, seen = ObjectStorage.read, list[str]()

    def flipped(self: ObjectStorage, name: str, start: int, stop: int) -> bytes:
        data = read(self, name, start, stop)
        seen.append(name)
        shard = "/c." in name and seen.count(name) <= limit
        return bytes([data[0] ^ 1]) + data[1:-1] + bytes([data[-1] ^ 1]) if shard else data

    monkeypatch.setattr(ObjectStorage, "read", flipped)
    limit = 1
    assert_same(LabelStore.open(f"s3://{BUCKET}/int8"), LabelStore.open(folder / "int8"))
    limit = 99
    with pytest.raises(DamagedError, match=rf"s3://{BUCKET}/int8/.*c\.0.*: is not the shard that was published"):
        LabelStore.open(f"s3://{BUCKET}/int8").read(0, [0])


def test_it_is_never_written(proxy: Proxy) -> None:
    store = LabelStore.open(f"s3://{BUCKET}/int8")
    with pytest.raises(InputError, match="read by ObjectStorage; copy it to a folder"), store.lease():
        pass
    assert {method for method, _ in proxy.requests} <= {"GET", "HEAD"}


def test_an_answer_that_never_comes_ends(proxy: Proxy, monkeypatch: pytest.MonkeyPatch) -> None:
    import socket

    patience(monkeypatch, RETRIES=1)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{taken.getsockname()[1]}")
        with pytest.raises(AddressError, match="connection refused"):
            LabelStore.open(f"s3://{BUCKET}/int8")
        taken.listen()
        patience(monkeypatch, TIMEOUT=timedelta(milliseconds=50))
        with pytest.raises(AddressError, match="no answer in time"):
            LabelStore.open(f"s3://{BUCKET}/int8")
