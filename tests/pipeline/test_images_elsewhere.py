"""Images in a data set of a hub, and at a web server, are those of the folder that they were made from."""

from __future__ import annotations

import hashlib
import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import numpy as np
import pytest
from PIL import Image

from labelstore.durable import http
from labelstore.errors import AddressError, GiftwrapError, InputError
from pipeline.images.manifest import scan
from pipeline.images.opening import open_images, recognised
from pipeline.images.patterns import matching, pattern_of
from tests.labelstore.test_addresses import Answers, Server

library, parquet = pytest.importorskip("huggingface_hub"), pytest.importorskip("pyarrow.parquet")
pa = pytest.importorskip("pyarrow")

COMMIT = "c0ffee" + "0" * 34
TOKEN = "hf_oftests"  # noqa: S105  of no account


class Hub(ThreadingHTTPServer):
    """Data sets ``me/NAME``, each a folder: their commit, their listing, and their files by ranges at that commit."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.folder, self.busy, self.requests = folder, 0, list[str]()


class _Answers(Answers):
    server: Hub  # type: ignore[assignment]

    def do_GET(self) -> None:  # noqa: N802  of the base class
        path = unquote(urlsplit(self.path).path)
        words = path.removeprefix("/api").split("/")  # "", "datasets", "me", NAME, what, revision, ...
        if len(words) < 6:  # what the library looks for on its own
            self.reply(404)
            return
        self.server.requests.append(path)
        root, what, revision, inside = self.server.folder / words[3], words[4], words[5], "/".join(words[6:])
        found = root / inside
        if self.server.busy:
            self.server.busy -= 1
            self.reply(503)
        elif not root.is_dir():
            self.reply(404, {"X-Error-Code": "RepoNotFound"})
        elif what == "revision" and revision in ("main", "refs"):
            self.reply(200, data=json.dumps({"id": f"me/{words[3]}", "sha": COMMIT}).encode())
        elif revision != COMMIT:
            self.reply(404, {"X-Error-Code": "RevisionNotFound"})
        elif not found.exists():
            self.reply(404, {"X-Error-Code": "EntryNotFound"})
        elif what == "tree":
            entries = [_entry(each, each.relative_to(root).as_posix()) for each in sorted(found.rglob("*"))]
            self.reply(200, data=json.dumps(entries).encode())
        else:
            self.ranged(found.read_bytes(), "ranges")


def _entry(path: Path, name: str) -> dict[str, object]:
    digest = hashlib.sha256(name.encode() if path.is_dir() else path.read_bytes()).hexdigest()
    if path.is_dir():
        return {"type": "directory", "path": name, "oid": digest[:40], "size": 0}
    return {"type": "file", "path": name, "oid": digest[:40], "size": path.stat().st_size}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A class folder ``set``, its tars in ``tars``, its Parquet files in ``tables`` beside those of another split."""
    folder = tmp_path_factory.mktemp("shelf")
    rng = np.random.default_rng(0)
    rows = []
    for target, name in enumerate(("ant", "bee")):
        for image in range(2):
            path = folder / "set" / name / f"{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 255, (20 + image, 30, 3)).astype(np.uint8)).save(path)
            rows.append({"image": {"bytes": path.read_bytes(), "path": f"{image}.png"}, "label": target})
        (folder / "tars").mkdir(exist_ok=True)
        with tarfile.open(folder / "tars" / f"s-{target:02}.tar", "w") as tar:
            tar.add(folder / "set" / name, name)
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["ant", "bee"]}}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    data = folder / "tables" / "plain_text"
    data.mkdir(parents=True)
    for part in range(2):
        table = pa.Table.from_pylist(rows[part::2]).replace_schema_metadata(metadata)
        parquet.write_table(table, data / f"train-{part:05}-of-00002.parquet")
    parquet.write_table(table, data / "test-00000-of-00001.parquet")
    parquet.write_table(table.drop_columns("label"), folder / "tables" / "bare.parquet")
    (folder / "tables" / "README.md").write_text("images")
    (folder / "empty").mkdir()
    (folder / "zips").mkdir()
    with zipfile.ZipFile(folder / "zips" / "set.zip", "w") as archive:
        for path in sorted((folder / "set").rglob("*.png")):
            archive.write(path, path.relative_to(folder))
    return folder


@contextmanager
def served(server: ThreadingHTTPServer) -> Iterator[None]:
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield
        server.shutdown()
        thread.join()


@pytest.fixture
def hub(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    made = Hub(shelf)
    address = f"http://127.0.0.1:{made.server_address[1]}"
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", address)
    monkeypatch.setattr(
        "huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("labelstore.durable.hub.FIRST_WAIT_S", 0)
    with served(made):
        yield made


@pytest.fixture
def web(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(http, "WAITS_S", (0.0, 0.0))
    made = Server(shelf)
    with served(made):
        yield made


def require_same(address: str, shelf: Path) -> None:
    ours, theirs = scan(Path(address)), scan(shelf / "set")
    assert (ours.digest, ours.classes, len(ours)) == (theirs.digest, theirs.classes, 4)
    assert [*ours.read_many([3, 0, 2])] == [*theirs.read_many([3, 0, 2])]
    assert str(ours.location) == address


@pytest.mark.parametrize(
    "inside",
    [
        "tables/plain_text/train-*.parquet",
        "tables/*/train-*.parquet",
        "tables@refs/convert/parquet/plain_text/train-{00000..00001}-of-00002.parquet",
        "tars",
        "tars/s-{00..01}.tar",
        "tars@main/s-*.tar",
        "set",
        "zips/set.zip/set",
    ],
)
def test_a_data_set_of_a_hub_is_the_folder(hub: Hub, shelf: Path, inside: str) -> None:
    hub.busy = 1
    require_same(f"hf://datasets/me/{inside}", shelf)
    assert hub.busy == 0
    assert all(COMMIT in path for path in hub.requests if "/revision/" not in path)  # never another commit's files


@pytest.mark.parametrize(
    "inside", ["tables/plain_text/train-{00000..00001}-of-00002.parquet", "tars/s-{00..01}.tar", "zips/set.zip/set"]
)
def test_a_web_server_has_the_images_of_the_folder(web: Server, shelf: Path, inside: str) -> None:
    web.mode = "503"
    require_same(f"{web.address}/{inside}", shelf)


def test_what_a_hub_does_not_have_is_named(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    one = "--images 'hf://datasets/me/tables/plain_text/train-*.parquet'"
    for inside, said in (
        ("me/tables", f"'plain_text/test-*.parquet', 'plain_text/train-*.parquet'; give one of them: {one}"),
        ("me/tables/train-*.parquet", "expected files, found none; there are 'bare.parquet'"),
        ("me/tables/plain_text/trian.parquet", "not there: trian.parquet; there are 'test-*.parquet', 'train-*.parq"),
        ("me/tables/bare.parquet", "expected one column of classes (a ClassLabel, or `label`), found the columns 'im"),
        ("me/empty", "expected a class folder, found no file there; check the address"),
        ("me/empty/x-*.parquet", "expected files, found none; check the address"),
        ("me/set/all.npz", "at an address, found tensors; download it, and give its path"),
        ("me/set/all.zip", "not there: all.zip; check the address"),
        ("me", "expected hf://datasets/OWNER/NAME/FOLDER"),
        ("me/tars/s.tar.gz", "not there: s.tar.gz; there are 's-*.tar'"),
    ):
        assert said in refusal(InputError, f"hf://datasets/{inside}")
    assert "no such data set, or it is private; check its name, or set HF" in refusal(
        AddressError, "hf://datasets/me/x"
    )
    assert "has no such branch, tag or commit" in refusal(AddressError, "hf://datasets/me/set@v9")
    monkeypatch.setattr("labelstore.durable.hub.RETRIES", 1)
    hub.busy = 9
    assert "cannot be read after retries" in refusal(AddressError, "hf://datasets/me/set")
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert "pip install 'giftwrap[hub]'" in refusal(InputError, "hf://datasets/me/set")


def test_what_a_web_server_does_not_have_is_named(web: Server, shelf: Path) -> None:
    for inside, said in (
        ("set", "expected the names of tar or Parquet files, since a web server lists none; write them out"),
        ("tars/s-*.tar", "since a web server lists none; write them out"),
        ("tars/s-{00..03}.tar", "expected 4 files, 2 are not there: s-02.tar; there are 's-*.tar'"),
        ("tars/s-00.tar?key=s3cr3t", "leave that out"),
    ):
        assert "s3cr3t" not in (found := refusal(InputError, f"{web.address}/{inside}"))
        assert said in found
    web.mode = "private"
    assert "the server answers 401" in refusal(AddressError, f"{web.address}/tars/s-00.tar")
    source = open_images(Path(f"{web.address}/tars/s-00.tar".replace("//", "//me:s3cr3t@")))
    assert "s3cr3t" not in source.listing.location + source.place(0)


def refusal(kind: type[GiftwrapError], address: str) -> str:
    with pytest.raises(kind) as error:
        open_images(Path(address))
    assert "\n" not in str(error.value)
    assert TOKEN not in str(error.value)
    return str(error.value)


def test_a_file_that_changes_at_a_web_server_is_an_error(
    shelf: Path, web: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = open_images(Path(f"{web.address}/tars/s-00.tar"))
    plain: Callable[..., None] = Answers.reply

    def dated(self: Answers, code: int, headers: dict[str, str] | None = None, *words: object, **named: int) -> None:
        plain(self, code, {**(headers or {}), "ETag": '"another"'}, *words, **named)

    monkeypatch.setattr(Answers, "reply", dated)
    with pytest.raises(OSError, match="the file has changed since it was listed"):
        source.read(0)


def test_kinds_are_known_by_names_without_a_request() -> None:
    for address, kind in (
        ("https://h.invalid/a-{0..3}.parquet", "parquet"),
        ("hf://datasets/me/set/train-*.parquet", "parquet"),
        ("https://h.invalid/a-{0..3}.tar", "tar"),
        ("hf://datasets/me/set/a.tar.gz", "tar"),
        ("https://h.invalid/a.zip/train", "zip"),
        ("https://h.invalid/a.npz/train", "tensors"),
        ("https://h.invalid/mnist/t10k-images-idx3-ubyte.gz", "idx"),
        ("https://h.invalid/cifar-100-python.tar.gz/test", "cifar"),
    ):
        assert recognised(Path(address)) == kind


def test_patterns_take_the_files_of_one_split() -> None:
    for name, pattern in (
        ("data/train-00003-of-00010-0abc.parquet", "data/train-*.parquet"),
        ("imagenet1k-train-0007.parquet", "imagenet1k-train-*.parquet"),
        ("default/train/0000.parquet", "default/train/*.parquet"),
        ("test.parquet", "test.parquet"),
    ):
        assert pattern_of(name, ".parquet") == pattern
        assert matching([name, f"other/{name}"], pattern) == [name]
