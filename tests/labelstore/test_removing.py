"""P13: nothing of the user's is removed or overwritten, whatever it is called and wherever it lies."""

from __future__ import annotations

import ast
import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore import LabelStore, check
from labelstore.durable import disk, documents, newfile, removing
from labelstore.durable.removing import ABSENT, Proof
from labelstore.errors import GiftwrapError, InputError, MismatchError
from labelstore.format.arrays import StoreLayout
from labelstore.format.leftovers import array_of, is_shard, is_staged, kinds
from labelstore.format.shards import encode_shard
from labelstore.operations.convert import convert
from labelstore.operations.export import export
from labelstore.operations.repair import repair
from tests.forking import in_a_fork
from tests.labelstore.faults import KilledError, killed_after
from tests.labelstore.making import Content, build, create, make_identity, tree

ROOT = Path(__file__).resolve().parents[2]
MINE = b"precious"
VIEWS = 4


@pytest.fixture
def content() -> Content:
    return Content(make_identity(), VIEWS)


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(MINE)
    return path


def pipe(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    os.mkfifo(path)


def link(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to("/dev/null")


def snapshot(root: Path) -> dict[str, Any]:
    """Every entry below a folder: kind, and bytes of files; links are not followed."""
    found: dict[str, Any] = {}
    for path in sorted(root.rglob("*")):
        mode = path.lstat().st_mode
        found[path.relative_to(root).as_posix()] = path.read_bytes() if stat.S_ISREG(mode) else stat.S_IFMT(mode)
    return found


# --- a place to create a store in ---

FOREIGN = {
    "photographs": lambda root: (put(root / "images/cat/a.jpg"), put(root / "labels/a.txt")),
    "a file in images/": lambda root: put(root / "images/a.jpg"),
    "a file of our name": lambda root: put(root / "images/digest/c.0.0"),
    "metadata of another array": lambda root: put(root / "labels/zarr.json"),
    "metadata of another group": lambda root: put(root / "images/zarr.json"),
    "a lease of somebody": lambda root: put(root / "lease.json"),
    "temporaries of somebody": lambda root: put(root / ".partial/notes.txt"),
    "a folder of temporaries": lambda root: put(root / ".partial/zarr.json/a"),
    "a marker of somebody": lambda root: put(root / "markers/mine"),
    "a folder in seals/": lambda root: (root / "seals/deep").mkdir(parents=True),
    "a pipe": lambda root: pipe(root / "rows/zarr.json"),
    "a link": lambda root: link(root / "images/target/c.0"),
    "a linked folder": lambda root: (
        put(root.parent / "photographs/a"),
        (root / "labels").symlink_to("../photographs"),
    ),
}


@pytest.mark.parametrize("leftover", [False, True])
@pytest.mark.parametrize("foreign", FOREIGN)
def test_a_folder_with_anything_of_the_users_is_refused_and_kept(
    tmp_path: Path, content: Content, foreign: str, leftover: bool
) -> None:
    root = tmp_path / "s"
    root.mkdir()
    FOREIGN[foreign](root)
    if leftover:  # beside what a stopped creation leaves
        create(tmp_path / "other", content, VIEWS)
        (tmp_path / "other/zarr.json").unlink()
        for path in (tmp_path / "other").rglob("*"):
            ours = root / path.relative_to(tmp_path / "other")
            if path.is_file() and not os.path.lexists(ours) and not ours.parent.is_symlink():
                ours.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy(path, ours)
    before = snapshot(tmp_path)
    for refused in (lambda: LabelStore.require_creatable(root), lambda: create(root, content, VIEWS)):
        with pytest.raises(GiftwrapError, match=r"found '|cannot be read"):
            refused()
        assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "encoding", ["int8", "float16", {"name": "transform", "step": 0.5}, {"name": "int8", "codec": "zstd"}]
)
def test_what_a_creation_of_any_store_leaves_is_replaced(tmp_path: Path, content: Content, encoding: Any) -> None:
    other = Content(make_identity(70_000, 64, encoding=encoding, block=(1, 70_000), size=1), 1)
    root, steps = tmp_path / "s", 0
    whole = tree(create(tmp_path / "whole", content, VIEWS).path)
    while killed_after(steps, lambda: create(root, other, 1)):
        (root / "lease.json").unlink(missing_ok=True)  # its process is dead, in earnest
        if not LabelStore.exists(root):
            create(root, content, VIEWS)
            assert tree(root) == whole, steps
        shutil.rmtree(root)
        steps += 7
    assert steps > 50


@given(st.binary(max_size=200), st.sampled_from(sorted(kinds())))
@settings(max_examples=80, deadline=None)
def test_no_bytes_pass_for_ours(tmp_path_factory: pytest.TempPathFactory, data: bytes, name: str) -> None:
    path = tmp_path_factory.getbasetemp() / "bytes"
    path.write_bytes(data)
    assert array_of(name, data) is None
    assert not any(is_shard(array, path) for array in kinds()[name])


@pytest.mark.parametrize(
    "encoding",
    ["int8", "float16", {"name": "transform", "step": 0.5}, {"name": "transform", "codec": "zstd", "step": 0.5}],
)
def test_every_file_of_a_store_is_known_by_name_and_content(tmp_path: Path, encoding: Any) -> None:
    identity = make_identity(10, 64, encoding=encoding)
    layout = StoreLayout.of(identity)
    path = build(tmp_path / "s", Content(identity, VIEWS), VIEWS).path
    for file in (name for name, kind in tree(path).items() if kind != "folder"):
        assert is_staged(Path(file.replace("/", "~"))), file
    for array in layout.all:
        assert array_of(array.name, (path / array.name / "zarr.json").read_bytes()) == array
        for other in layout.all:
            assert other is array or array_of(other.name, (path / array.name / "zarr.json").read_bytes()) is None
        for shard in (path / array.name).glob("c.*"):
            assert is_shard(array, shard)
            data = shard.read_bytes()
            for harmed in (data[:-1], data + b"\0", data[:-5] + bytes([data[-5] ^ 1]) + data[-4:]):
                (tmp_path / "harmed").write_bytes(harmed)
                assert not is_shard(array, tmp_path / "harmed")
    for name in (
        "notes.txt",
        "labels~c.0.0.0.jpg",
        "labels~c.0",
        "c.0.0",
        "images~zarr.jsonx",
        "a~zarr.json",
        "seals~x.json",
    ):
        assert not is_staged(Path(name))


# --- a store that is there ---


def folders_of(path: Path) -> list[Path]:
    return [path, *(each for each in path.rglob("*") if each.is_dir())]


def litter(path: Path) -> dict[Path, bytes]:
    """Files of the user's in every folder of a store."""
    folders = folders_of(path)
    (path / ".partial").mkdir(exist_ok=True)
    names = ("notes.txt", "c.9.jpg", "c.0.0.0.jpg", "zarr.json.partial", "0.0.json.bak")
    put(path / ".partial/deep/x")
    found = [put(folder / name) for folder in (*folders, path / ".partial", path.parent) for name in names]
    return dict.fromkeys((*found, path / ".partial/deep/x"), MINE)


def kept(files: dict[Path, bytes]) -> bool:
    return all(path.is_file() and path.read_bytes() == content for path, content in files.items())


def test_files_in_every_folder_outlive_every_command(tmp_path: Path) -> None:
    identity = make_identity(10, 64, encoding="float16")
    content, other = Content(identity, 6), Content(make_identity(10, 64, encoding="float16", seed=1), 6)
    path = tmp_path / "a" / "s"
    create(path, content, 2)
    files = litter(path)
    build(path, content, 2, blocks=1)
    assert kept(files), "build"
    for steps in range(0, 60, 7):
        killed_after(steps, lambda: build(path, content, 2))
        (path / "lease.json").unlink(missing_ok=True)
        assert kept(files), "killed"
    build(path, content, 2)
    assert kept(files), "resumed"
    build(path, content, 4)
    assert kept(files), "extended"
    target = tmp_path / "b" / "t"
    store = LabelStore.open(path)
    convert(store, target, {"name": "int8"}, views=2)
    files |= litter(target)
    convert(store, target, {"name": "int8"})
    assert kept(files), "convert"
    with pytest.raises(MismatchError):
        convert(build(tmp_path / "c", other, 4), target, {"name": "int8"})
    with pytest.raises(InputError):
        create(path, content, 4)
    export(store, tmp_path / "out.npy")
    assert kept(files), "export"
    for name in ("labels/c.0.1.0", "markers/1.0.json", "seals/4.json"):
        (path / name).write_bytes(b"harm")
    repair(path)
    build(path, content, 4)
    assert kept(files), "repair"
    assert check(path).ok
    build(tmp_path / "whole", content, 2)
    build(tmp_path / "whole", content, 4)
    ours, whole = tree(path), tree(tmp_path / "whole")
    assert {name: ours[name] for name in whole if "seals" not in name} == {
        n: h for n, h in whole.items() if "seals" not in n
    }


@pytest.mark.parametrize(
    "name", ["labels/c.0.1.0", "rows/c.0.0.1", "scales/c.0.1.0", "audit/pixels/c.0.0.0.0", "seals/2.json"]
)
def test_a_file_in_the_way_of_a_block_is_named_before_any_work_and_kept(
    tmp_path: Path, content: Content, name: str
) -> None:
    path = create(tmp_path / "s", content, 2).path
    put(path / name)
    before = tree(path)
    for _ in range(2):
        with pytest.raises(InputError, match=rf"{name}: expected a .*nothing of yours is removed.*move it away"):
            LabelStore.open(path).require_writable(2)
        with pytest.raises(InputError, match=rf"{name}: expected a .*nothing of yours is removed.*move it away"):
            build(path, content, 2)
        assert tree(path) == before
        repair(path)
        assert tree(path) == before
    assert check(path).stray == (name,)
    (path / name).unlink()
    build(path, content, 2)
    assert check(path).ok


def test_a_file_that_comes_during_a_build_is_kept(tmp_path: Path, content: Content) -> None:
    store = create(tmp_path / "s", content, 2)
    with store.lease() as writer:
        writer.raise_target(2)
        put(store.path / "rows/c.0.0.0")
        with pytest.raises(InputError, match=r"rows/c\.0\.0\.0: expected a shard of rows"):
            writer.write(store.missing()[0], content.block(store, store.missing()[0]))
        (store.path / ".partial/labels~c.0.1.0").mkdir()
        with pytest.raises(InputError, match=r"labels~c\.0\.1\.0: expected a temporary of this store, found a folder"):
            writer.write(store.missing()[1], content.block(store, store.missing()[1]))
    assert (store.path / "rows/c.0.0.0").read_bytes() == MINE
    assert (store.path / ".partial/labels~c.0.1.0").is_dir()


def test_metadata_of_the_users_is_not_replaced_by_an_extension(tmp_path: Path, content: Content) -> None:
    path = build(tmp_path / "s", content, 2).path
    put(path / "labels/zarr.json")
    with pytest.raises(GiftwrapError, match=r"labels/zarr\.json: is not the metadata.*--repair"):
        build(path, content, 4)
    assert (path / "labels/zarr.json").read_bytes() == MINE


# --- taking back what this call made ---


def test_only_the_store_that_this_call_made_is_taken_back(tmp_path: Path, content: Content) -> None:
    store = create(tmp_path / "deep" / "s", content, 2)
    assert not LabelStore.open(store.path).discard()
    mine = put(store.path / "images/cat.jpg")
    assert store.discard()
    assert snapshot(tmp_path) == {p.relative_to(tmp_path).as_posix(): stat.S_IFDIR for p in list(mine.parents)[:3]} | {
        mine.relative_to(tmp_path).as_posix(): MINE
    }
    mine.unlink()
    (tmp_path / "empty").mkdir()
    assert create(tmp_path / "empty", content, 2).discard()
    assert create(tmp_path / "new" / "s", content, 2).discard()
    assert (tmp_path / "empty").is_dir()
    assert not (tmp_path / "new").exists()


def test_a_creation_that_is_refused_leaves_nothing(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, linked = disk.link, []

    def refuse(source: Path, target: Path) -> None:
        linked.append(target)
        if len(linked) > 5:
            raise PermissionError(1, "Operation not permitted")
        plain(source, target)

    monkeypatch.setattr(disk, "link", refuse)
    with pytest.raises(InputError, match="refused a hard link"):
        create(tmp_path / "deep" / "s", content, 2)
    assert len(linked) > 5
    assert snapshot(tmp_path) == {}


def test_a_store_with_a_block_or_a_part_of_one_is_never_taken_back(tmp_path: Path, content: Content) -> None:
    store = create(tmp_path / "s", content, 2)
    layout = StoreLayout.of(content.identity)
    shard = store.path / "labels/c.0.1.0"
    shard.write_bytes(encode_shard(layout.codes[0], content.logits[:2, 4:8].astype("int8")))
    assert not store.discard()
    shard.unlink()
    with store.lease() as writer:
        assert not store.discard()
        writer.write(store.missing()[0], content.block(store, store.missing()[0]))
    assert not store.discard()
    assert check(store.path).ok


@pytest.mark.parametrize("lost", ["markers", "seals", "labels"])
def test_a_refused_conversion_keeps_a_store_that_was_there(tmp_path: Path, lost: str) -> None:
    identity = make_identity(10, 7, encoding="float16")
    source, other = build(tmp_path / "a", Content(identity, 2), 2), build(tmp_path / "b", Content(identity, 2, 1), 2)
    target = convert(source, tmp_path / "t", {"name": "int8"}).path
    for file in (target / lost).iterdir():
        if file.is_file():
            file.unlink()
    before = tree(target)
    with pytest.raises(GiftwrapError):
        convert(other, target, {"name": "int8"})
    assert tree(target) == before


def test_a_discard_that_is_killed_is_a_stopped_creation(tmp_path: Path, content: Content) -> None:
    whole, steps, killed = tree(create(tmp_path / "whole", content, 2).path), 0, True
    while killed:
        store = create(tmp_path / str(steps), content, 2)
        killed = killed_after(steps, store.discard)
        (store.path / "lease.json").unlink(missing_ok=True)
        made = LabelStore.open(store.path) if LabelStore.exists(store.path) else create(store.path, content, 2)
        with made.lease():
            pass
        assert tree(store.path) == whole
        steps += 1
    assert steps > 10


# --- files that appear ---


def no_unnamed(_folder: Path) -> None:
    """As a file system without files that have no name."""


@pytest.mark.parametrize("unnamed", [True, False])
def test_an_export_takes_no_name_that_is_taken(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch, unnamed: bool
) -> None:
    store = build(tmp_path / "s", content, 2)
    out = tmp_path / "out.npy"

    def put_once(_done: int, _all: int) -> None:
        if not os.path.lexists(out):
            put(out)

    if not unnamed:
        monkeypatch.setattr(disk, "open_unnamed", no_unnamed)
    with pytest.raises(InputError, match=r"out\.npy: exists already"):
        export(store, out, progress=put_once)
    assert out.read_bytes() == MINE
    out.unlink()
    out.symlink_to(tmp_path / "nowhere")
    with pytest.raises(InputError, match="exists already"):
        export(store, out)
    out.unlink()
    export(store, out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.npy", "s"]


def killed(_done: int, _total: int) -> None:
    raise KilledError


def test_a_killed_export_leaves_nothing_or_a_file_that_is_named(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = build(tmp_path / "s", content, 2), tmp_path / "out.npy"
    assert in_a_fork(lambda: export(store, out, progress=lambda _done, _all: os._exit(0))) == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]
    monkeypatch.setattr(disk, "open_unnamed", no_unnamed)
    left = put(tmp_path / ".out.npy.partial")
    with pytest.raises(InputError, match=r"\.out\.npy\.partial: is there already.*remove it or move it away"):
        export(store, out)
    assert left.read_bytes() == MINE
    left.unlink()
    with pytest.raises(KilledError):
        export(store, out, progress=killed)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s"]


def test_without_hard_links_files_appear_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted", source, None, target)

    monkeypatch.setattr(disk, "open_unnamed", no_unnamed)
    monkeypatch.setattr(disk, "link", refuse)
    newfile.write_new(tmp_path / "a", b"1")
    newfile.write_over(tmp_path / "a", b"2", ABSENT)
    with pytest.raises(InputError, match="a: exists already"):
        newfile.write_new(tmp_path / "a", b"3")
    assert snapshot(tmp_path) == {"a": b"2"}


@pytest.mark.parametrize("change", [lambda path: path.write_bytes(MINE), lambda path: (path.unlink(), put(path))])
def test_what_this_process_published_it_replaces_until_somebody_changes_it(
    tmp_path: Path, change: Callable[[Path], object]
) -> None:
    path = tmp_path / "a"
    for number in range(3):
        newfile.write_over(path, b"%d" % number, ABSENT)
    change(path)
    with pytest.raises(InputError, match="a: expected no file, found a file that was not written by this command"):
        newfile.write_over(path, b"4", ABSENT)
    assert snapshot(tmp_path) == {"a": MINE}


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo, lambda path: path.symlink_to("/dev/null")])
def test_only_regular_files_are_ever_removed(tmp_path: Path, make: Callable[[Path], object]) -> None:
    make(tmp_path / "a")
    before = snapshot(tmp_path)
    with pytest.raises(InputError, match="a: expected anything, found a"):
        removing.remove(tmp_path / "a", Proof("anything", lambda _path: True))
    assert snapshot(tmp_path) == before


# --- nothing goes past the rule ---

SEAMS = {"labelstore/durable/disk.py", "labelstore/durable/removing.py", "labelstore/durable/newfile.py"}
REMOVING = {"unlink", "rmtree", "rmdir", "removedirs", "rename", "renames", "truncate", "ftruncate", "write_text"}
REMOVING |= {"write_bytes", "copyfile", "copytree", "copy2", "move", "savez_compressed"}
APPENDING = {
    "pipeline/build/watching.py", "trainer/run_log.py", "trainer/processes.py", "benchmarks/harness.py",
    "benchmarks/gpu.py", "benchmarks/studies/ledger.py",
}  # fmt: skip

OWN_COPIES = {"benchmarks/evidence/canaries.py"}  # damages copies that it makes in a temporary folder
IN_MEMORY = {("pipeline/render/complaints.py", "ftruncate")}  # a file of memfd_create, which has no name


def bypasses(file: Path, name: str) -> list[str]:
    """Calls in a module that remove, rename over, truncate or rewrite files by themselves."""
    found = []
    for node in ast.walk(ast.parse(file.read_text())):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name)):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
        owner = ast.unparse(node.func.value) if isinstance(node.func, ast.Attribute) else ""
        words = [
            word.value for word in (*node.args, *(k.value for k in node.keywords)) if isinstance(word, ast.Constant)
        ]
        modes = [
            word
            for word in words
            if isinstance(word, str) and set(word) <= set("rwaxbt+") and called in ("open", "fdopen")
        ]
        writes = any("w" in mode or "+" in mode or ("a" in mode and name not in APPENDING) for mode in modes)
        renames = (called == "replace" and len(node.args) == 1 and not node.keywords) or (owner, called) == (
            "os",
            "replace",
        )
        if (name, called) in IN_MEMORY:
            continue
        if called in REMOVING or (owner, called) == ("os", "remove") or writes or renames:
            found.append(f"{name}:{node.lineno}: {ast.unparse(node)[:60]}")
    return found


def test_no_module_removes_or_rewrites_a_file_by_itself() -> None:
    packages = ("labelstore", "pipeline", "trainer", "benchmarks")
    files = {path.relative_to(ROOT).as_posix(): path for package in packages for path in (ROOT / package).rglob("*.py")}
    assert files.keys() >= SEAMS
    found = [line for name, file in files.items() if name not in SEAMS | OWN_COPIES for line in bypasses(file, name)]
    assert found == []


def test_steps_that_remove_are_called_by_the_rule_alone() -> None:
    for path in (ROOT / "labelstore").rglob("*.py"):
        if path.name not in ("removing.py", "disk.py"):
            for step in ("disk.unlink(", "disk.replace(", "disk.remove_folder("):
                assert step not in path.read_text(), path


def test_documents_of_other_stores_are_no_seals_of_this_one(tmp_path: Path, content: Content) -> None:
    path = build(tmp_path / "s", content, 2).path
    far = build(tmp_path / "far", Content(make_identity(seed=1), 4), 4).path
    shutil.copy(far / "seals/4.json", path / "seals/4.json")
    (path / "seals/9.json").write_bytes(documents.encode({"views": [0, 9]}))
    before = tree(path)
    with LabelStore.open(path).lease():
        pass
    assert tree(path) == before
    with pytest.raises(InputError, match=r"seals/4\.json: expected a seal of this store"):
        build(path, content, 4)
    assert tree(path) == before
