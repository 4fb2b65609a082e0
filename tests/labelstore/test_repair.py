"""Whatever is damaged, repair and build again give the bytes of before."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.durable import documents
from labelstore.errors import DamagedError, FormatError, LeaseError, MismatchError, NotStoredError
from labelstore.format.blocks import BlockIndex
from labelstore.operations.info import info
from labelstore.operations.repair import repair
from labelstore.spec import Json
from tests.labelstore.faults import HARM, killed_after
from tests.labelstore.making import Content, build, calibration, make_identity, tree

VIEWS = 4
TRANSFORMS: list[dict[str, Json]] = [
    {"name": "transform", "step": 0.5},
    {"name": "transform", "step": 1.0, "mean_steps": 8, "keep_top1": True},
]


@pytest.fixture(scope="module")
def content() -> Content:
    return Content(make_identity(block=(2, 4)), VIEWS)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory, content: Content) -> Path:
    path = tmp_path_factory.mktemp("store") / "s"
    build(path, content, VIEWS)
    return path


@pytest.mark.parametrize("harm", ["a byte at 0.31", "cut short", "gone"])
def test_any_file_is_repaired_or_named(tmp_path: Path, store: Path, content: Content, harm: str) -> None:
    whole = tree(store)
    for number, name in enumerate(file for file, kind in whole.items() if kind != "folder"):
        path = tmp_path / str(number)
        shutil.copytree(store, path)
        HARM[harm](path / name)
        if name == "zarr.json":
            with pytest.raises((DamagedError, FormatError)):
                repair(path)
            continue
        report = repair(path)
        if name.startswith("images/") and not name.endswith("zarr.json"):
            assert report.left == (name,)
            assert not report.needs_build
            continue
        assert not report.left
        assert not check(path).damaged
        assert repair(path).before.ok
        removed = [str(block) for block in report.removed]
        build(path, content, VIEWS)
        assert tree(path) == whole, name
        if name.startswith(("markers/", "seals/")) or name.endswith("zarr.json"):
            assert not removed, "what the store itself knows needs no build"
            assert not report.needs_build
        else:
            assert len(removed) == 1


def test_only_the_damaged_blocks_are_built_again(tmp_path: Path, store: Path, content: Content) -> None:
    path = tmp_path / "s"
    shutil.copytree(store, path)
    for name in ("labels/c.0.1.0", "rows/c.1.0.2"):
        HARM["a byte at 0.62"](path / name)
    kept = (path / "labels/c.0.0.0").stat().st_ino
    report = repair(path)
    assert report.removed == (BlockIndex(0, 1), BlockIndex(1, 2))
    assert (report.unsealed, report.needs_build) == (0, True)
    opened = LabelStore.open(path)
    assert opened.missing() == [BlockIndex(0, 1), BlockIndex(1, 2)]
    assert not opened.complete
    assert np.array_equal(opened.read(0, slice(0, 4)).rows.values, content.rows[0][:, :4]), (
        "what is whole stays readable"
    )
    with pytest.raises(NotStoredError, match=r"block 0\.1 of views 0 to 1 was damaged and is removed; run the `gift"):
        opened.read(0, [4])
    build(path, content, VIEWS)
    assert tree(path) == tree(store)
    assert (path / "labels/c.0.0.0").stat().st_ino == kept


def test_views_beside_the_damage_stay_sealed(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, 2)
    build(path, content, VIEWS)
    whole = tree(path)
    HARM["cut short"](path / "labels/c.1.1.0")
    assert repair(path).unsealed == 0
    opened = LabelStore.open(path)
    assert opened.state.views_sealed == VIEWS
    assert opened.read(1, slice(None)).view == 1
    assert opened.read(3, slice(0, 4)).view == 3
    build(path, content, VIEWS)
    assert tree(path) == whole


def test_a_damaged_seal_is_made_again_where_it_was(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, 2)
    build(path, content, VIEWS)
    store = LabelStore.open(path)
    with store.lease() as writer:
        writer.raise_target(VIEWS + 2, engine={"device": "other"})
    whole = tree(path)
    for damaged in (["seals/2.json"], ["seals/4.json"], ["seals/2.json", "seals/4.json"]):
        for name in damaged:
            HARM["cut short"](path / name)
        report = repair(path)
        assert (report.removed, report.unsealed, report.needs_build) == ((), 0, False)
        assert sorted(report.made_again) == damaged
        assert tree(path) == whole
    for part in (path / "seals").glob("*.*.json"):
        HARM["a byte at 0.62"](part)
        assert [damage.file for damage in check(path).damaged] == [f"seals/{part.name}"]
        assert repair(path).made_again == (f"seals/{part.name}",)
        assert tree(path) == whole
    (path / "seals/2.json").unlink()
    (path / "seals/4.json").unlink()
    report = repair(path)
    assert report.made_again[-1] == "seals/4.json"
    assert not report.needs_build
    assert check(path).ok
    assert LabelStore.open(path).read(3, slice(None)).view == 3


def test_a_marker_without_data_and_data_without_a_marker(tmp_path: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, VIEWS, blocks=3)
    (path / "labels/c.0.0.0").unlink()
    (path / "markers/0.1.json").unlink()
    (path / "notes.txt").write_text("mine")
    report = check(path)
    assert [str(block) for block in report.blocks] == ["0.0"]
    assert report.unpublished == ("labels/c.0.1.0", "rows/c.0.0.1", "scales/c.0.1.0")
    assert report.stray == ("notes.txt",)
    assert report.missing == len(LabelStore.open(path).missing())
    assert repair(path).removed == (BlockIndex(0, 0),)
    assert (path / "notes.txt").exists()
    assert not (path / "labels/c.0.1.0").exists()
    build(path, content, VIEWS)
    (path / "notes.txt").unlink()
    build(tmp_path / "whole", content, VIEWS)
    assert tree(path) == tree(tmp_path / "whole")


def test_a_held_store_is_not_repaired_and_a_broken_root_is_not_guessed(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "s"
    shutil.copytree(store, path)
    with LabelStore.open(path).lease(), pytest.raises(LeaseError, match="build"):
        repair(path)
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text.replace('"seed": 0', '"seed": 1'))
    with pytest.raises(DamagedError, match=r"zarr\.json: .*restore it from a copy"):
        repair(path)


@pytest.mark.parametrize("encoding", TRANSFORMS)
@pytest.mark.parametrize("name", ["markers/calibration.json", "calibration/means/c.0.0", "calibration/center/c.0"])
def test_a_damaged_calibration_is_made_again_to_the_same_bytes_or_refused(
    tmp_path: Path, name: str, encoding: dict[str, Json]
) -> None:
    content = Content(make_identity(10, 64, block=(2, 4), encoding=encoding), VIEWS)
    path = tmp_path / "s"
    build(path, content, VIEWS)
    whole = tree(path)
    HARM["a byte at 0.31"](path / name)
    assert {damage.part for damage in check(path).damaged} == {"calibration"}
    report = repair(path)
    assert (report.calibration, report.removed, report.unsealed) == (True, (), VIEWS)
    assert check(path).ok
    other = Content(content.identity, VIEWS, seed=1)
    store = LabelStore.open(path)
    with store.lease() as writer, pytest.raises(MismatchError, match="blocks were coded with"):
        writer.calibrate(calibration(other))
    build(path, content, VIEWS)
    assert tree(path) == whole


def damaged_twice(path: Path, files: list[str], seed: int) -> None:
    rng = np.random.default_rng(seed)
    for name in rng.choice(files, int(rng.integers(2, 5)), replace=False):
        HARM[str(rng.choice(["a byte at 0.31", "cut short", "gone"]))](path / name)


@pytest.mark.parametrize("seed", range(60))
def test_several_files_are_repaired_together(tmp_path: Path, content: Content, seed: int) -> None:
    """Broken seals above, below and beside broken blocks: nothing that is sealed may be missing afterwards."""
    path = tmp_path / "s"
    build(path, content, 2)
    build(path, content, VIEWS)
    whole = tree(path)
    files = [name for name, kind in whole.items() if kind != "folder" and not name.startswith("images/")]
    damaged_twice(path, [name for name in files if name != "zarr.json"], seed)
    report = repair(path)
    assert check(path).ok
    opened = LabelStore.open(path)
    assert set(report.removed) == set(opened.missing())
    build(path, content, VIEWS)
    assert check(path).ok
    after = tree(path)
    other = {name for name in whole.keys() | after.keys() if whole.get(name) != after.get(name)}
    assert all(name.startswith("seals/") for name in other), "blocks that were sealed in two steps may be sealed in one"


def test_a_seal_is_made_again_while_an_extension_is_under_way(tmp_path: Path) -> None:
    content = Content(make_identity(block=(2, 4)), 8)
    path = tmp_path / "s"
    build(path, content, 4)
    build(path, content, 8, blocks=2)
    before = tree(path)
    (path / "seals/4.json").unlink()
    report = repair(path)
    assert (report.made_again, report.unsealed, report.needs_build) == (("seals/4.json",), 0, False)
    assert tree(path) == before


@pytest.mark.parametrize("folder", ["markers", "seals", "labels", "rows", "audit/pixels", "images"])
def test_whole_folders_that_are_gone(tmp_path: Path, store: Path, content: Content, folder: str) -> None:
    path = tmp_path / "s"
    shutil.copytree(store, path)
    shutil.rmtree(path / folder)
    assert not check(path).ok
    if folder == "markers":
        with pytest.raises(DamagedError, match=r"markers: is not there.*python -m labelstore check STORE"):
            info(LabelStore.open(path))
    report = repair(path)
    if folder == "images":
        assert report.left == ("images/digest/c.0.0", "images/target/c.0")
        return
    assert check(path).ok
    build(path, content, VIEWS)
    assert tree(path) == tree(store)


def test_markers_that_no_state_of_the_store_made(tmp_path: Path, store: Path, content: Content) -> None:
    path = tmp_path / "s"
    build(path, content, VIEWS, blocks=4)
    shutil.copy(path / "markers/1.0.json", path / "markers/7.0.json")
    other = documents.read(path / "markers/0.1.json") | {"version": 5}
    (path / "markers/0.1.json").write_bytes(documents.encode(other))
    shutil.copy(path / "labels/c.1.0.0", path / "labels/c.9.0.0")
    shutil.copy(path / "labels/c.1.0.0", path / "labels/c.0.9.0")
    report = check(path)
    assert report.blocks == [BlockIndex(0, 1), BlockIndex(7, 0)]
    assert report.stray == ("labels/c.0.9.0",)
    assert report.unpublished == ("labels/c.9.0.0",)
    assert [damage.why for damage in report.damaged if damage.part == (0, 1)] == ["is of version 5, the store has 1"]
    repair(path)
    (path / "labels/c.0.9.0").unlink()
    build(path, content, VIEWS)
    assert tree(path) == tree(store)


def test_the_root_is_written_again_where_its_attributes_are_whole(tmp_path: Path, store: Path) -> None:
    path = tmp_path / "s"
    shutil.copytree(store, path)
    text = (path / "zarr.json").read_text()
    (path / "zarr.json").write_text(text.replace('"zarr_format": 3', '"zarr_format": 2'))
    assert [(damage.file, damage.part) for damage in check(path).damaged] == [("zarr.json", "metadata")]
    assert repair(path).made_again == ("zarr.json",)
    assert tree(path) == tree(store)


@pytest.mark.parametrize("encoding", TRANSFORMS)
def test_a_block_of_another_calibration_goes_and_the_calibration_stays(
    tmp_path: Path, encoding: dict[str, Json]
) -> None:
    content = Content(make_identity(10, 64, block=(2, 4), encoding=encoding), VIEWS)
    other = Content(content.identity, VIEWS, seed=1)
    path, far = tmp_path / "s", tmp_path / "far"
    whole = tree(build(path, content, VIEWS, blocks=4).path)
    build(far, other, VIEWS, blocks=4)
    for name in ("markers/1.0.json", "labels/c.1.0.0", "rows/c.1.0.0"):
        shutil.copy(far / name, path / name)
    report = repair(path)
    assert (report.removed, report.calibration) == ((BlockIndex(1, 0),), False)
    build(path, content, VIEWS, blocks=1)
    assert tree(path) == whole


def test_a_repair_that_is_killed_at_any_step_is_finished_by_the_next(tmp_path: Path, content: Content) -> None:
    whole = build(tmp_path / "whole", content, 2).path
    build(whole, content, VIEWS)
    steps, killed = 0, True
    while killed:
        path = tmp_path / str(steps)
        shutil.copytree(whole, path)
        for name in ("seals/4.json", "markers/0.1.json", "markers/1.0.json", "rows/zarr.json", "labels/c.1.1.0"):
            HARM["cut short"](path / name)
        killed = killed_after(steps, partial(repair, path))
        (path / "lease.json").unlink(missing_ok=True)  # its process is dead, in earnest
        repair(path)
        assert check(path).ok, steps
        build(path, content, VIEWS)
        assert tree(path) == tree(whole), steps
        steps += 1
    assert steps > 20
