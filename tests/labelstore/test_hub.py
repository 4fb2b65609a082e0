"""A store in a data set of a hub that is on this machine."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from labelstore.errors import InputError
from labelstore.storage_table import STORAGES, Address
from tests.labelstore.loopback import Loopback, serving
from tests.labelstore.making import GOLDEN
from tests.labelstore.test_addresses import Answers

Run = subprocess.CompletedProcess[str]
TOKEN = "hf_oftests"  # noqa: S105  of no account
AT_ONCE = (
    "import sys, labelstore.durable.hub as hub; hub.FIRST_WAIT_S = 0; from labelstore.__main__ import main; "
    "sys.exit(main())"
)


class Hub(Loopback):
    def __init__(self, folder: Path) -> None:
        super().__init__(_Answers)
        self.folder, self.mode, self.busy = folder, "ranges", 2
        self.tokens: set[str | None] = set()


class _Answers(Answers):
    server: Hub  # type: ignore[assignment]

    def do_GET(self) -> None:  # noqa: N802  of the base class
        prefix = "/datasets/me/labels/resolve/main/"
        if self.path.startswith(prefix):
            self.server.tokens.add(self.headers["Authorization"])
        path = self.server.folder / self.path.removeprefix(prefix)
        if self.server.busy:
            self.server.busy -= 1
            self.reply(503)
        elif not self.path.startswith(prefix):
            self.reply(404, {"X-Error-Code": "RepoNotFound"})
        elif not path.is_file():
            self.reply(404, {"X-Error-Code": "EntryNotFound"})
        else:
            self.ranged(path.read_bytes(), "ranges")


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    pytest.importorskip("huggingface_hub")
    zipfile.ZipFile(GOLDEN / "format-2" / "int8.zip").extractall(tmp_path)
    with serving(Hub(tmp_path)) as made:
        yield made


@pytest.fixture
def run(hub: Hub) -> Callable[..., Run]:
    environment = {
        **os.environ,
        "HF_ENDPOINT": hub.address,
        "HF_TOKEN": TOKEN,
        "NO_PROXY": "*",
        "HF_HUB_OFFLINE": "0",
    }
    return lambda *words: subprocess.run(
        [sys.executable, "-c", AT_ONCE, *words],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_store_on_the_hub_is_read(hub: Hub, run: Callable[..., Run], tmp_path: Path) -> None:
    found = run("export", "hf://datasets/me/labels/int8", str(tmp_path / "out.npy"))
    assert found.returncode == 0, found.stderr
    assert (TOKEN in found.stderr, "Retrying" in found.stderr) == (False, True)
    assert hub.busy == 0
    assert hub.tokens == {f"Bearer {TOKEN}"}
    for address, said in (
        ("hf://datasets/me/other/int8", "there is no such data set, or it is private; check its name, or set HF_TOKEN"),
        ("hf://datasets/me/labels/int9", "expected a label store, found no zarr.json in it"),
    ):
        found = run("info", address)
        assert (found.stdout, found.stderr.count("\n")) == ("", 1), found.stderr
        assert said in found.stderr
        assert TOKEN not in found.stderr


def test_bad_addresses_and_a_missing_library_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for bad in ("hf://me/labels", "hf://datasets/me", "hf://datasets/me/labels?x", "hf://datasets/u:p@me/labels"):
        with pytest.raises(InputError, match="expected hf://datasets/OWNER/NAME/FOLDER"):
            STORAGES["hf"](Address(bad))
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(InputError, match=r"huggingface_hub, which is not installed: pip install 'giftwrap\[hub\]'"):
        STORAGES["hf"](Address("hf://datasets/me/labels"))
