"""A store that is read at its address, from a web server on this machine."""

from __future__ import annotations

import base64
import pickle
import re
import socket
import zipfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.__main__ import COMMANDS, main
from labelstore.command.command_line import read_command
from labelstore.command.flags import flags_of
from labelstore.durable import connections, http
from labelstore.durable.storage import LocalStorage, storage_at
from labelstore.errors import AddressError, GiftwrapError, InputError
from labelstore.operations.repair import repair
from labelstore.storage_table import STORAGES, Address, as_typed, without_credentials
from tests.labelstore.loopback import Loopback, serving
from tests.labelstore.making import GOLDEN

OTHER = (
    f"expected a path on this machine, or an address with {', '.join(f'{scheme}://' for scheme in STORAGES)}, found "
    f"another one; copy it here and give its path"
)


class Server(Loopback):
    """Serves a folder by ranges, or misbehaves in one of the ways of `Answers`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(Answers)
        self.folder, self.mode, self.requests = folder, "ranges", list[tuple[str, str | None]]()


class Answers(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.requests.append((self.path, self.headers["Authorization"]))
        path, mode = self.server.folder / self.path[1:], self.server.mode
        if mode == "private" and self.headers["Authorization"] is None:
            self.reply(401)
        elif mode == "moved":
            self.server.mode = "ranges"
            self.reply(302, {"Location": f"http://localhost:{self.server.server_address[1]}/elsewhere{self.path}"})
        elif not path.is_file():
            self.reply(404)
        elif mode in ("503", "drop"):
            self.server.mode = "ranges"
            if mode == "503":
                self.reply(503)
        elif mode == "whole":
            self.reply(200, {}, path.read_bytes())
        else:
            self.ranged(path.read_bytes(), mode)

    def ranged(self, data: bytes, mode: str) -> None:
        first, last = map(int, self.headers["Range"].removeprefix("bytes=").split("-"))
        if first >= len(data):
            self.reply(416, {"Content-Range": f"bytes */{len(data)}"})
            return
        part = data[first : last + 1]
        shift = 1 if mode == "shifted" else 0
        where = f"bytes {first + shift}-{first + shift + len(part) - 1}/{len(data)}"
        self.reply(206, {"Content-Range": where}, part, cut=1 if mode == "cut" else 0)

    def reply(self, code: int, headers: dict[str, str] | None = None, data: bytes = b"", cut: int = 0) -> None:
        self.send_response(code)
        for name, value in {**(headers or {}), "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data[: len(data) - cut])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("NO_PROXY", "*")
    monkeypatch.setattr(http, "WAITS_S", (0.0, 0.0))
    folder = tmp_path / "served"
    for name in ("int8", "transform-mixed"):
        zipfile.ZipFile(GOLDEN / "format-2" / f"{name}.zip").extractall(folder)
    (folder / "empty").touch()
    with serving(Server(folder)) as made:
        yield made


@pytest.mark.parametrize("name", ["int8", "transform-mixed"])
def test_a_store_at_an_address_is_the_one_in_the_folder(server: Server, name: str) -> None:
    store, folder = LabelStore.open(f"{server.address}/{name}"), LabelStore.open(server.folder / name)
    assert (store.identity, store.state, store.complete) == (folder.identity, folder.state, folder.complete)
    for view, batch in enumerate(store.stream((view, slice(None)) for view in range(6))):
        expected = folder.read(view, slice(None))
        assert np.array_equal(batch.logits, expected.logits)
        assert np.array_equal(batch.rows.values, expected.rows.values)
    again = pickle.loads(pickle.dumps(store))  # noqa: S301  our own
    assert np.array_equal(again.read(2, [3, 1]).logits, folder.read(2, [3, 1]).logits)
    ours, theirs = check(f"{server.address}/{name}"), check(folder.path)
    assert (ours.ok, ours.files, ours.bytes) == (theirs.ok, theirs.files, theirs.bytes)
    assert str(store.path) == f"{server.address}/{name}"


def test_each_file_is_one_request(server: Server) -> None:
    store = LabelStore.open(f"{server.address}/int8")
    for view in range(6):
        store.read(view, slice(None))
    paths = [path for path, _ in server.requests]
    assert len(paths) == len(set(paths))


def test_ranges_are_those_of_a_file(server: Server) -> None:
    (server.folder / "f").write_bytes(b"0123456789")
    remote, local = storage_at(server.address), LocalStorage(server.folder)
    ranges = [(0, 3), (8, 20), (12, 20), (4, 4), (5, 2)]
    assert remote.read_many("f", ranges) == local.read_many("f", ranges)
    for name in ("f", "empty"):
        assert remote.size(name) == local.size(name)
        for size in (0, 4, 40):
            assert remote.map(name, size).data.tobytes() == local.map(name, size).data.tobytes()
        assert remote.map(name, 2).size() == local.size(name)
    for read in (remote.size, lambda name: remote.read(name, 0, 0), lambda name: remote.map(name, 0)):
        with pytest.raises(FileNotFoundError):
            read("absent")


def test_commands_read_an_address(server: Server, tmp_path: Path, run: Callable[..., Any]) -> None:
    address = f"{server.address}/int8"
    for words in (("info", address), ("check", address), ("export", address, str(tmp_path / "labels.npy"))):
        out, err, code = run(*words)
        assert (err, code) == ("", 0), words
        assert address in out or words[0] != "check"
    out, err, code = run("convert", address, str(tmp_path / "made"), "--encoding", "float16")
    assert (code, check(tmp_path / "made").ok) == (0, True)
    folder = LabelStore.open(server.folder / "int8")
    assert np.array_equal(np.load(tmp_path / "labels.npy")[1, [4]], folder.read_images(1, [4]).logits.astype("f2"))


@pytest.fixture
def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Callable[..., tuple[str, str, int]]:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    def act(*words: str) -> tuple[str, str, int]:
        monkeypatch.setattr("sys.argv", ["labelstore", *words])
        capsys.readouterr()
        code = main()
        return (*capsys.readouterr(), code)

    return act


def test_what_writes_refuses_an_address_and_makes_nothing(server: Server, run: Callable[..., Any]) -> None:
    address, local = f"{server.address}/int8", str(server.folder / "int8")
    for words in (
        ("check", address, "--repair"),
        ("convert", local, address, "--encoding", "float16"),
        ("export", local, address),
        ("info", local, "--weights", address),
    ):
        out, err, code = run(*words)
        assert (out, code) == ("", 2)
        assert re.fullmatch(r"error: \S+: expected a path on this machine, found an address; copy it .*\n", err)
        assert f"{address}:" in err
    assert not server.requests
    assert not [*Path.cwd().iterdir()]
    store = LabelStore.open(address)
    with pytest.raises(InputError, match="read by HttpStorage; copy it to a folder"), store.lease():
        pass
    with pytest.raises(InputError, match="int8: expected a path on this machine"):
        repair(address)
    assert not [*Path.cwd().iterdir()]


@pytest.mark.parametrize(
    ("mode", "said"),
    [
        ("whole", "expected a server that answers requests for ranges of bytes, found one that sends whole files"),
        ("private", r"the server answers 401 Unauthorized; give user:password@ in the address"),
        ("cut", r"expected bytes 0 to \d+, found \d+ bytes from 0 on"),
        ("shifted", r"expected bytes 0 to \d+, found \d+ bytes from 1 on"),
    ],
)
def test_what_a_server_does_wrong_is_one_line(server: Server, run: Callable[..., Any], mode: str, said: str) -> None:
    server.mode = mode
    out, err, code = run("info", f"{server.address}/int8")
    assert (out, code) == ("", 1)
    assert re.match(rf"error: {server.address}/int8/zarr.json: .*{said}", err)
    assert err.count("\n") == 1


@pytest.mark.parametrize("mode", ["503", "drop"])
def test_what_passes_is_tried_again(server: Server, mode: str) -> None:
    server.mode = mode
    assert LabelStore.open(f"{server.address}/int8").complete
    assert len(server.requests) == 2


def test_no_store_and_no_server_are_one_line(
    server: Server, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, err, code = run("info", f"{server.address}/none")
    assert err.startswith(f"error: {server.address}/none: expected a label store, found no zarr.json in it")
    assert (err.count("\n"), code) == (1, 2)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        port = taken.getsockname()[1]
        _, err, code = run("check", f"http://127.0.0.1:{port}/s")
        assert re.match(rf"error: http://127.0.0.1:{port}/s/zarr.json: cannot be read \(Connection refused\)", err)
        taken.listen()  # and never answers
        monkeypatch.setattr(http, "TIMEOUT_S", 0.05)
        _, err, code = run("check", f"http://127.0.0.1:{port}/s")
        assert "cannot be read (timed out); look at the address" in err
        assert (err.count("\n"), code) == (1, 1)
    for bad in ("http://", "http:///s", "http://h:x/s", "http://[::1/s"):
        with pytest.raises(AddressError, match="cannot be read"):
            LabelStore.open(bad)
    with pytest.raises(InputError, match=r"^http://h/s: expected the address of a folder"):
        LabelStore.open("http://h/s?token=1")


class Keeping(Answers):
    """Keeps connections, but closes one after every third answer, which does not announce it."""

    protocol_version = "HTTP/1.1"
    connections = answers = 0

    def setup(self) -> None:
        super().setup()
        Keeping.connections += 1

    def do_GET(self) -> None:
        Keeping.answers += 1
        super().do_GET()
        self.close_connection = Keeping.answers % 3 == 0


def test_connections_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    (tmp_path / "a").write_bytes(data := bytes(range(200)))
    server = Server(tmp_path)
    server.RequestHandlerClass = Keeping
    with serving(server):
        storage = storage_at(server.address)
        for start in range(0, 180, 10):
            assert storage.read("a", start, start + 20) == data[start : start + 20]
            with pytest.raises(FileNotFoundError):
                storage.size("none")
        assert (Keeping.answers, Keeping.connections) == (36, 12)
        server.mode = "whole"  # more than is asked for: not read, and its connection not used again
        with pytest.raises(AddressError, match="found one that sends whole files"):
            storage.read("a", 0, 10)
        server.mode = "ranges"
        assert storage.read("a", 0, 10) == data[:10]
        connections.close_all()


def test_damage_at_an_address_is_found(server: Server) -> None:
    shard = server.folder / "int8" / "labels" / "c.0.0.0"
    shard.write_bytes(shard.read_bytes()[:-1])
    report = check(f"{server.address}/int8")
    assert [damage.file for damage in report.damaged] == ["labels/c.0.0.0"]


def test_credentials_are_sent_and_never_printed(
    server: Server, run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    server.mode = "private"
    secret, shown = server.address.replace("//", "//us%40r:p@ss@") + "/int8", f"{server.address}/int8"
    out, err, code = run("check", secret)
    assert code == 0
    assert f"\n{shown}: " in out
    sent = base64.b64encode(b"us@r:p@ss").decode()
    assert {header for _, header in server.requests} == {f"Basic {sent}"}
    parsed = read_command(COMMANDS["check"], "check", ["check", secret]).config
    assert parsed.store.complete == secret
    printed = [str(parsed), repr(parsed.store), str(parsed.store / "a"), out + err]
    for words in (
        ("check", secret, "--repair"),
        ("check", secret, "--print-config"),
        ("check", secret, secret),
        ("info", f"{secret}/none"),
        ("check", "--store", secret),
        ("export", "s", secret),
        ("info", secret.replace("http", "s3")),
        ("info", secret, "--weights", secret),
    ):
        with suppress(SystemExit):
            printed += map(str, run(*words))
    with pytest.raises(GiftwrapError) as caught:
        LabelStore.open(f"{secret}/none")
    printed += [str(caught.value), repr(LabelStore.open(secret)), str(LabelStore.open(Path(secret)))]
    assert not any("p@ss" in text or "us%40r" in text for text in printed)


def test_credentials_go_to_no_other_host(server: Server) -> None:
    (server.folder / "elsewhere").symlink_to(server.folder)
    server.mode = "moved"
    storage_at(server.address.replace("//", "//a:b@")).size("empty")
    first, *others = [header is None for _, header in server.requests]
    assert not first
    assert set(others) == {True}


def test_the_text_of_an_address_is_kept() -> None:
    address = as_typed(Path("https://Host/a/b"))
    assert isinstance(address, Address)
    assert (str(address), str(address / "c"), str(address.parent)) == (
        "https://Host/a/b",
        "https://Host/a/b/c",
        "https://Host/a",
    )
    assert str(pickle.loads(pickle.dumps(address))) == str(address)  # noqa: S301  our own
    assert as_typed(Path("a:b/c")) == Path("a:b/c")
    assert without_credentials("http://a/x@y and b@c") == "http://a/x@y and b@c"


def test_a_scheme_of_ones_own_is_one_line(
    run: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, server: Server
) -> None:
    _, err, code = run("info", "own://shelf/int8")
    assert (err, code) == (
        f"error: own://shelf/int8: {OTHER}\n",
        2,
    )
    monkeypatch.setattr(Shelf, "folder", server.folder)
    monkeypatch.setitem(STORAGES, "own", f"{__name__}:Shelf")
    _, err, code = run("info", "own://shelf/int8")
    assert (err, code) == ("", 0)


class Shelf(LocalStorage):
    """A storage as a user would write one."""

    folder = Path()

    def __init__(self, address: Address) -> None:
        super().__init__(self.folder / address.name)


def test_flags_that_take_addresses_are_those_that_only_read() -> None:
    found = {
        name: [key for key, flag in flags_of(each.config).items() if flag.addressable]
        for name, each in COMMANDS.items()
    }
    assert found == {
        "info": ["store"],
        "check": ["store"],
        "convert": ["source"],
        "export": ["store"],
        "push": ["address"],
        "pull": ["address"],
    }
