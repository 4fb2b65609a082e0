"""What is no regular file, or no real folder, is named as damage wherever it is, and nothing waits for it."""

from __future__ import annotations

import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from labelstore import LabelStore, check
from labelstore.durable.disk import open_file
from labelstore.durable.publish import PARTIAL
from labelstore.errors import DamagedError, GiftwrapError, LeaseError
from labelstore.format.arrays import StoreLayout
from labelstore.format.root import folders
from labelstore.operations.info import info
from labelstore.writing.lease import LEASE
from tests.labelstore.making import Content, build, make_identity, tree

VIEWS = 4
IDENTITY = make_identity(10, 64, encoding={"name": "transform", "step": 0.5}, block=(2, 4))
FILES = [
    "zarr.json",
    "labels/zarr.json",
    "markers/0.0.json",
    "markers/1.1.json",
    "markers/calibration.json",
    "seals/2.json",
    "labels/c.0.0.0",
    "scales/c.0.0",
    "rows/c.0.0.0",
    "images/target/c.0",
    "images/digest/c.0.0",
    "calibration/basis/c.0.0",
    "audit/pixels/c.0.0.0.0",
]


def unused(path: Path) -> Path:
    """Move what is there out of the store."""
    elsewhere = path.parent / f"{path.name}.elsewhere"
    return path.rename(elsewhere) if os.path.lexists(path) else elsewhere


def symlink(path: Path) -> None:
    path.symlink_to(unused(path))


def dangling(path: Path) -> None:
    unused(path)
    path.symlink_to("/nowhere/at/all")


def to_a_device(path: Path) -> None:
    unused(path)
    path.symlink_to("/dev/zero")


def fifo(path: Path) -> None:
    unused(path)
    os.mkfifo(path)


def folder(path: Path) -> None:
    unused(path)
    path.mkdir()


def a_socket(path: Path) -> None:
    unused(path)
    home = Path.cwd()
    os.chdir(path.parent)  # the names of sockets are short
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(path.name)
    finally:
        os.chdir(home)


def device(path: Path) -> None:
    unused(path)
    try:
        os.mknod(path, 0o20666, os.makedev(1, 5))
    except PermissionError:
        pytest.skip("needs the right to make devices")


KINDS: dict[str, Callable[[Path], None]] = {
    "a symbolic link": symlink,
    "a symbolic link to nothing": dangling,
    "a symbolic link to a device": to_a_device,
    "a FIFO": fifo,
    "a folder": folder,
    "a socket": a_socket,
    "a device": device,
}
of_each_kind = pytest.mark.parametrize("kind", list(KINDS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    content = Content(IDENTITY, VIEWS)
    build(path, content, 2)
    build(path, content, VIEWS, blocks=0)
    opened = LabelStore.open(path)
    with opened.lease() as writer:
        for block in opened.missing():
            writer.write(block, content.block(opened, block))  # marked, not sealed: markers are read
    return path


@pytest.fixture
def copy(tmp_path: Path, store: Path) -> Path:
    return Path(shutil.copytree(store, tmp_path / "s"))


def use(path: Path) -> None:
    """Everything that reads."""
    store = LabelStore.open(path, follow=True)
    for view in range(VIEWS):
        store.read(view, slice(None))
        list(store.stream([(view, [0])]))
    info(store)
    store.audit()
    assert len(store.image_digests) == IDENTITY.images
    assert len(store.targets) == IDENTITY.images


def names(path: Path) -> list[Path]:
    return sorted(path.rglob("*"))


def named(kind: str) -> str:
    return kind.removesuffix(" to nothing").removesuffix(" to a device")


def opened() -> set[tuple[int, str]]:
    """The descriptors of this process, and what they are of; that of the listing is gone when it is looked up."""
    links = {int(path.name): path for path in Path("/proc/self/fd").iterdir()}
    return {(number, str(path.readlink())) for number, path in links.items() if os.path.lexists(path)}


@of_each_kind
def test_only_a_regular_file_is_opened(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")
    os.close(open_file(path))
    before = opened()
    KINDS[kind](path)
    with pytest.raises(DamagedError, match=f"{path}: expected a file, found {named(kind)}"):
        open_file(path)
    assert opened() <= before


@pytest.mark.parametrize("file", FILES)
@of_each_kind
def test_a_file_of_another_kind_is_damage_that_is_named(copy: Path, file: str, kind: str) -> None:
    KINDS[kind](copy / file)
    report = check(copy)
    if file == "zarr.json":
        assert named(kind) in report.damaged[0].why
    else:
        assert {damage.file: damage.why for damage in report.damaged}[file].startswith(
            f"expected a file, found {named(kind)}"
        )
    if not file.endswith("/zarr.json") and file != "markers/0.0.json":  # those are not read: a seal is
        with pytest.raises(DamagedError, match=f"{file}: expected a file, found {named(kind)}"):
            use(copy)


@of_each_kind
def test_a_lease_of_another_kind_is_named_and_stays(copy: Path, kind: str) -> None:
    KINDS[kind](copy / LEASE)
    before = sorted(copy.iterdir())
    with pytest.raises(LeaseError, match=rf"lease.json: cannot be read \(.*found {named(kind)}"):
        LabelStore.open(copy).lease().__enter__()
    assert sorted(copy.iterdir()) == before


@pytest.mark.parametrize("name", [*folders(StoreLayout.of(IDENTITY)), PARTIAL])
@pytest.mark.parametrize("kind", ["a symbolic link", "a symbolic link to nothing", "a FIFO", "a file"])
def test_a_folder_of_another_kind_is_refused_before_anything_is_read_or_removed(
    copy: Path, name: str, kind: str
) -> None:
    opened = LabelStore.open(copy)
    if name == PARTIAL:
        (copy / PARTIAL).mkdir()
        (copy / PARTIAL / "precious").write_text("x")
    ({**KINDS, "a file": lambda path: unused(path) and path.write_text("x")})[kind](copy / name)
    before = names(copy)
    message = f"{name}: expected a folder, found {named(kind)}"
    for read in (LabelStore.open, lambda path: LabelStore.open(path, follow=True)):
        with pytest.raises(DamagedError, match=message):
            read(copy)
    with pytest.raises(GiftwrapError, match=message), opened.lease():  # opened before it was put there
        pass
    assert not check(copy).ok
    assert names(copy) == before


def test_the_store_itself_may_be_reached_by_symbolic_links(copy: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(copy)
    (tmp_path / "up").symlink_to(tmp_path)
    for path in (tmp_path / "link", tmp_path / "up" / "s"):
        use(path)
        with LabelStore.open(path).lease() as writer:
            writer.seal()
        assert check(path).ok


def test_a_folder_among_the_temporaries_is_not_ours_and_stays(copy: Path) -> None:
    (copy / PARTIAL / "kept").mkdir(parents=True)
    before = tree(copy)
    with LabelStore.open(copy).lease():
        pass
    assert tree(copy) == before


def test_a_store_is_not_created_through_a_symbolic_link(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    (tmp_path / "outside").mkdir()
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "labels").symlink_to(tmp_path / "outside")
    with pytest.raises(GiftwrapError, match="expected an empty folder, found 'labels'"):
        build(tmp_path / "s", content, 2)
    assert list((tmp_path / "outside").iterdir()) == []


def test_what_may_not_be_read_stays_an_error_of_the_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"x")

    def refuse(name: Path, flags: int) -> int:
        raise PermissionError(13, "Permission denied", str(name))

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(PermissionError, match="Permission denied"):
        open_file(path)
