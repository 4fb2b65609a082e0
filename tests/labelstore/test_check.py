"""A check beside a build or a repair, or of files that it may not read, finds no damage where there is none."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from labelstore import BlockIndex, LabelStore, check
from labelstore.durable import disk, publish
from labelstore.format.seals import read_marker, seal_documents
from labelstore.operations.check import _Check
from labelstore.operations.repair import repair
from tests.labelstore.making import Content, build, create, make_identity, tree

CONTENT = Content(make_identity(block=(2, 4)), 12)


def test_what_an_extension_adds_while_a_check_runs_is_neither_damaged_nor_stray(tmp_path: Path) -> None:
    build(tmp_path / "s", CONTENT, 4)
    steps = iter(range(4, 13, 2))

    def progress(_done: int, _total: int) -> None:
        build(tmp_path / "s", CONTENT, next(steps, 12))

    report = check(tmp_path / "s", progress)
    assert (report.damaged, report.stray, report.unpublished) == ((), (), ())


def test_an_extension_that_starts_before_the_metadata_is_read_damages_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build(tmp_path / "s", CONTENT, 2)
    plain = _Check._metadata

    def extended(self: _Check) -> None:
        build(tmp_path / "s", CONTENT, 8, 1)
        plain(self)

    monkeypatch.setattr(_Check, "_metadata", extended)
    report = check(tmp_path / "s")
    assert (report.damaged, report.stray) == ((), ())


def test_a_seal_that_a_running_build_is_about_to_use_is_not_stray_and_a_dead_ones_is(tmp_path: Path) -> None:
    store = create(tmp_path / "s", CONTENT, 2)
    build(store.path, CONTENT, 2, 99)
    with store.lease():
        blocks = [BlockIndex(0, j) for j in range(3)]
        markers = [marker for block in blocks if (marker := read_marker(store.storage, store.identity, block))]
        for name, file in seal_documents(store.identity, store.state, markers, (0, 2)):
            publish.publish(store.path, {name: file})
        (store.path / "seals/2.1.note").write_text("mine")
        assert check(store.path).stray == ("seals/2.1.note",)
    assert "seals/2.json" in check(store.path).stray


def test_seals_made_again_by_a_refill_while_a_check_runs_are_not_damaged(tmp_path: Path) -> None:
    for views in (4, 8):
        build(tmp_path / "s", CONTENT, views)
    (tmp_path / "s/labels/c.3.1.0").write_bytes(b"")
    repair(tmp_path / "s")
    assert LabelStore.open(tmp_path / "s").state.missing == ((3, 1),)

    def progress(_done: int, _total: int) -> None:
        build(tmp_path / "s", CONTENT, 8)

    report = check(tmp_path / "s", progress)
    assert (report.damaged, report.stray, report.missing) == ((), (), 0)


def test_damage_that_stays_is_still_found_beside_an_extension(tmp_path: Path) -> None:
    build(tmp_path / "s", CONTENT, 4)
    (tmp_path / "s/labels/c.1.1.0").write_bytes(b"")
    steps = iter(range(6, 13, 2))

    def progress(_done: int, _total: int) -> None:
        build(tmp_path / "s", CONTENT, next(steps, 12))

    assert check(tmp_path / "s", progress).blocks == [BlockIndex(1, 1)]


def refusing(name: str, error: OSError, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the system refuse to open one file."""
    plain = disk.open_file

    def open_file(path: Path) -> int:
        if path.as_posix().endswith(name):
            raise error
        return plain(path)

    monkeypatch.setattr(disk, "open_file", open_file)


FILES = ("labels/c.1.1.0", "markers/1.1.json", "seals/4.json", "images/target/c.0", "labels/zarr.json")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("number", [errno.EACCES, errno.EMFILE, errno.ENOMEM, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_that_cannot_be_opened_is_not_damaged_and_no_repair_removes_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, name: str
) -> None:
    store = build(tmp_path / "s", CONTENT, 4)
    before = tree(store.path)
    refusing(name, OSError(number, os.strerror(number)), monkeypatch)
    for look in (check, repair):
        with pytest.raises(OSError, match=os.strerror(number)):
            look(store.path)
    monkeypatch.undo()
    assert tree(store.path) == before


@pytest.mark.parametrize("number", [errno.EIO, errno.EBADMSG])
def test_a_file_whose_content_the_disk_has_lost_is_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = build(tmp_path / "s", CONTENT, 4)
    refusing("labels/c.1.1.0", OSError(number, os.strerror(number)), monkeypatch)
    assert check(store.path).blocks == [BlockIndex(1, 1)]
