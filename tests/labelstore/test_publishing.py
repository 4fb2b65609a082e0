"""P4: once, whole, durable, byte-identical."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

from labelstore import BlockIndex, LabelStore, check
from labelstore.durable import disk, publish
from labelstore.errors import DamagedError, InputError, LeaseError
from tests.labelstore.faults import STEPS
from tests.labelstore.making import Content, build, create, make_identity, tree

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def content() -> Content:
    return Content(make_identity(), 4)


def record(monkeypatch: pytest.MonkeyPatch, root: Path) -> list[tuple[str, ...]]:
    """The names of all steps from now on, with their paths relative to the store."""
    steps: list[tuple[str, ...]] = []

    def watched(name: str, plain: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object) -> object:
            paths = (arg.relative_to(root).as_posix() for arg in args if isinstance(arg, Path))
            steps.append((name, *paths))
            return plain(*args)

        return call

    for name in (*STEPS, "read_pieces"):
        monkeypatch.setattr(disk, name, watched(name, getattr(disk, name)))
    return steps


def test_the_order_of_write_check_flush_link_and_folder_flush(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "s", content, 2)
    block = BlockIndex(0, 1)
    with store.lease() as writer:
        steps = record(monkeypatch, store.path)
        writer.write(block, content.block(store, block))
        monkeypatch.undo()

    def published(*names: str) -> list[tuple[str, ...] | set[tuple[str, ...]]]:
        """Steps in order, and sets of them that come in any order."""
        aside = {name: f".partial/{name.replace('/', '~')}" for name in names}
        return [
            *((step, aside[name]) for name in names for step in ("write_file", "read_pieces")),
            {("sync_file", aside[name]) for name in names},
            *(step for name in names for step in (("link", aside[name], name), ("unlink", aside[name]))),
            {("sync_folder", Path(name).parent.as_posix()) for name in names},
        ]

    shards = ["labels/c.0.1.0", "scales/c.0.1.0", "rows/c.0.0.1"]
    for expected in [*published(*shards), *published("markers/0.1.json")]:
        if isinstance(expected, tuple):
            assert steps.pop(0) == expected
        else:
            assert {steps.pop(0) for _ in expected} == expected
    assert not steps


def test_a_seal_is_durable_before_the_state_names_it(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = build(tmp_path / "s", content, 2, blocks=3)
    with store.lease() as writer:
        steps = record(monkeypatch, store.path)
        writer.seal()
        monkeypatch.undo()
    order = [step for step in steps if step[0] in ("sync_file", "link", "replace", "sync_folder")]
    (part,) = (path.name for path in (store.path / "seals").glob("2.0.*.json"))
    assert order == [
        ("sync_file", f".partial/seals~{part}"),
        ("link", f".partial/seals~{part}", f"seals/{part}"),
        ("sync_folder", "seals"),
        ("sync_file", ".partial/seals~2.json"),
        ("link", ".partial/seals~2.json", "seals/2.json"),
        ("sync_folder", "seals"),
        ("sync_file", ".partial/zarr.json"),
        ("replace", ".partial/zarr.json", "zarr.json"),
        ("sync_folder", "."),
    ]


def test_a_new_store_exists_when_all_of_it_is_durable(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = record(monkeypatch, tmp_path)
    create(tmp_path / "s", content, 2)
    monkeypatch.undo()
    root = steps.index(("link", "s/.partial/zarr.json", "s/zarr.json"))
    files = {path for path in tree(tmp_path / "s").items() if path[1] != "folder"}
    for name, _ in files - {("zarr.json", tree(tmp_path / "s")["zarr.json"])}:
        folder = Path("s", name).parent.as_posix()
        linked = next(i for i, step in enumerate(steps) if step[0] == "link" and step[2] == f"s/{name}")
        assert linked < steps.index(("sync_folder", folder), linked) < root
    for folder in (".", "s", "s/images", "s/audit"):
        made = max(
            i for i, step in enumerate(steps) if step[0] == "make_folder" and Path(step[1]).parent == Path(folder)
        )
        assert made < steps.index(("sync_folder", "s/.." if folder == "." else folder), made) < root


@pytest.mark.parametrize(
    ("encoding", "first", "every"),
    [
        ("int8", 0, 4),
        ("transform", 2, 4),
        ("transform-top1", 4, 16),
        *(pytest.param(name, 0, 1, marks=pytest.mark.long) for name in ("int8", "transform", "transform-top1")),
    ],
)
def test_killed_at_every_step_and_run_again_the_bytes_are_the_same(
    tmp_path: Path, encoding: str, first: int, every: int
) -> None:
    memory = Path("/dev/shm")  # noqa: S108  hundreds of builds: four times faster there, and nothing to keep
    with tempfile.TemporaryDirectory(dir=memory if os.access(memory, os.W_OK) else tmp_path) as folder:
        command = [sys.executable, "-m", "tests.labelstore.killing", folder, encoding, str(first), str(every)]
        done = subprocess.run(
            command, env={"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, check=False
        )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 150


def test_a_full_disk_at_any_step_loses_the_block_in_hand_and_nothing_else(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "whole", content, 2)
    whole = tree(tmp_path / "whole")
    steps, failing = 1, 0
    while failing < steps:
        path = tmp_path / str(failing)
        store = build(path, content, 2, blocks=1)
        block = store.missing()[0]
        with store.lease() as writer:
            taken: list[tuple[str, ...]] = record(monkeypatch, path)
            plain = disk.write_file

            def full(
                file: Path, *pieces: disk.Bytes, taken: list = taken, plain: Callable = plain, at: int = failing
            ) -> None:
                if sum(step[0] == "write_file" for step in taken) == at:
                    raise OSError(errno.ENOSPC, "No space left on device")
                plain(file, *pieces)

            monkeypatch.setattr(disk, "write_file", full)
            with pytest.raises(OSError, match="No space left"):
                writer.write(block, content.block(store, block))
            monkeypatch.undo()
            assert block in store.missing()
            writer.write(block, content.block(store, block))
        steps = 4
        build(path, content, 2)
        assert tree(path) == whole
        failing += 1


def test_bytes_that_do_not_read_back_are_not_published(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "s", content, 2)
    plain = disk.write_file

    def flipped(path: Path, *pieces: disk.Bytes) -> None:
        *rest, last = pieces
        plain(path, *rest, bytes([last[0] ^ 1]) + bytes(last[1:]) if path.name.startswith("rows") else last)

    with store.lease() as writer:
        monkeypatch.setattr(disk, "write_file", flipped)
        with pytest.raises(DamagedError, match=r"read back .*; check this disk"):
            writer.write(BlockIndex(0, 1), content.block(store, BlockIndex(0, 1)))
    assert not list((tmp_path / "s").glob("rows/c.*"))


def test_a_name_that_is_taken_is_never_overwritten(tmp_path: Path, content: Content) -> None:
    store = create(tmp_path / "s", content, 2)
    with store.lease(), pytest.raises(LeaseError, match="exists already, so another process is writing this store"):
        publish.publish(store.path, {"zarr.json": publish.Described.of(b"other")})
    assert LabelStore.open(store.path).identity == content.identity


def test_a_file_system_without_hard_links_is_named(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = create(tmp_path / "s", content, 2)

    def refuse(_source: Path, _target: Path) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    with store.lease() as writer:
        monkeypatch.setattr(disk, "link", refuse)
        with pytest.raises(InputError, match=r"refused a hard link .*; build the store on a local file system"):
            writer.write(BlockIndex(0, 1), content.block(store, BlockIndex(0, 1)))


def test_the_sweep_takes_what_has_no_marker_and_nothing_else(tmp_path: Path, content: Content) -> None:
    path, whole = tmp_path / "s", build(tmp_path / "whole", content, 4).path
    build(path, content, 2)
    build(path, content, 4, blocks=1)
    before = tree(path)
    for stray in ("labels/c.1.2.0", "rows/c.1.0.1", "seals/4.json"):
        shutil.copy(whole / stray, path / stray)
    (path / ".partial").mkdir()
    (path / ".partial/markers~1.1.json").write_bytes(b"half")
    (path / "labels/notes.txt").write_text("mine")
    with LabelStore.open(path).lease():
        pass
    assert tree(path).items() - before.items() == {("labels/notes.txt", tree(path)["labels/notes.txt"])}
    assert check(path).stray == ("labels/notes.txt",)
    assert check(path).ok
