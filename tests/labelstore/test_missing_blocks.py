"""Blocks that a repair removed: listed by the state, refused by readers, filled by what made the store."""

from __future__ import annotations

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from labelstore import BlockIndex, LabelStore, check
from labelstore.errors import InputError, NotStoredError
from labelstore.format import seals, table
from labelstore.operations.convert import convert
from labelstore.operations.export import export
from labelstore.operations.repair import repair
from labelstore.writing import sealing
from tests.labelstore.faults import HARM, killed_after
from tests.labelstore.making import Content, build, make_identity, tree

VIEWS = 6


@pytest.fixture
def content() -> Content:
    return Content(make_identity(block=(2, 4)), VIEWS)


def broken(path: Path, content: Content, *blocks: str) -> LabelStore:
    """A sealed store of which a repair has removed blocks."""
    build(path, content, 4)
    build(path, content, VIEWS)
    for block in blocks:
        i, j = block.split(".")
        HARM["a byte at 0.31"](path / f"labels/c.{i}.{j}.0")
    repair(path)
    return LabelStore.open(path)


def test_all_but_the_removed_rows_are_read(tmp_path: Path, content: Content) -> None:
    store = broken(tmp_path / "s", content, "0.1", "2.2")
    assert check(store.path).ok
    assert check(store.path).missing == store.missing_blocks == 2
    assert store.state.views_sealed == VIEWS
    for view in range(VIEWS):
        for j, positions in enumerate((slice(0, 4), slice(4, 8), slice(8, 10))):
            if (view // 2, j) in ((0, 1), (2, 2)):
                with pytest.raises(NotStoredError, match=rf"block {view // 2}\.{j} .* the `giftwrap build`"):
                    store.read(view, positions)
            else:
                assert np.array_equal(store.read(view, positions).rows.values, content.rows[view][:, positions])
    with pytest.raises(NotStoredError, match="was damaged and is removed"):
        export(store, tmp_path / "labels.npy", views=0)
    assert export(store, tmp_path / "labels.npy", views=2) == (10, 3)
    with pytest.raises(NotStoredError, match="was damaged and is removed"):
        convert(store, tmp_path / "other", {"name": "float16"})


def test_just_they_are_filled_and_a_longer_build_fills_them_too(tmp_path: Path, content: Content) -> None:
    store = broken(tmp_path / "s", content, "0.1", "2.2")
    kept = (store.path / "labels/c.1.0.0").stat().st_ino
    build(tmp_path / "whole", content, 4)
    whole = tree(build(tmp_path / "whole", content, VIEWS).path)
    shutil.copytree(store.path, tmp_path / "longer")
    with store.lease() as writer:
        writer.write(BlockIndex(2, 2), content.block(store, BlockIndex(2, 2)))
    half = LabelStore.open(store.path)
    assert half.missing() == [BlockIndex(0, 1)]
    assert np.array_equal(half.read(4, [8, 9]).rows.values, content.rows[4][:, 8:]), "its marker vouches for it"
    build(store.path, content, VIEWS)
    assert tree(store.path) == whole
    assert (store.path / "labels/c.1.0.0").stat().st_ino == kept
    longer = Content(content.identity, VIEWS)
    longer.logits, longer.rows = (np.concatenate([each, each[:2]]) for each in (content.logits, content.rows))
    build(tmp_path / "longer", longer, VIEWS + 2)
    assert check(tmp_path / "longer").ok
    assert LabelStore.open(tmp_path / "longer").complete


def test_a_conversion_is_filled_by_the_conversion(tmp_path: Path, content: Content) -> None:
    source = build(tmp_path / "s", content, VIEWS)
    whole = tree(convert(source, tmp_path / "c", {"name": "float16"}).path)
    HARM["cut short"](tmp_path / "c/labels/c.1.1.0")
    repair(tmp_path / "c")
    store = LabelStore.open(tmp_path / "c")
    with pytest.raises(NotStoredError, match="run the `giftwrap convert` that made the store"):
        store.read(2, [5])
    convert(source, tmp_path / "c", {"name": "float16"})
    assert tree(tmp_path / "c") == whole


@pytest.mark.parametrize("size", [1, 2, 16_384])
def test_labels_of_another_engine_are_listed_by_the_seal(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """Blocks that do not come out again, byte for byte: the seal lists what they are now, killed at any step."""
    for module in (seals, sealing, table):
        monkeypatch.setattr(module, "PART_BLOCKS", size)
    whole = broken(tmp_path / "s", content, "0.1", "0.2", "1.0").path
    other = Content(content.identity, VIEWS)
    other.rows, other.logits = content.rows, content.logits + np.float32(0.25)

    def refill(path: Path) -> None:
        store = LabelStore.open(path)
        with store.lease() as writer:
            writer.raise_target(VIEWS, engine={"device": "other"})
            for block in store.missing():
                writer.write(block, other.block(store, block))
            writer.seal()

    steps, killed = 0, True
    while killed:
        path = tmp_path / str(steps)
        shutil.copytree(whole, path)
        killed = killed_after(steps, partial(refill, path))
        (path / "lease.json").unlink(missing_ok=True)  # its process is dead
        assert check(path).ok, steps
        refill(path)
        report = check(path)
        assert report.ok, (steps, report)
        assert not report.stray, (steps, report.stray)
        store = LabelStore.open(path)
        assert store.complete
        assert store.version(BlockIndex(0, 1))["engine"] == {"device": "other"}
        assert store.version(BlockIndex(0, 0))["engine"] == content.identity.engine
        for view in range(VIEWS):
            refilled = {0: slice(4, 10), 1: slice(0, 4)}.get(view // 2, slice(0, 0))
            wanted = content.logits[view].copy()
            wanted[refilled] += np.float32(0.25)
            assert np.abs(store.read(view, slice(None)).logits - wanted).max() < 0.03
        shutil.rmtree(path)
        steps += 7
    assert steps > 50


def test_other_images_do_not_fill_a_sealed_block(tmp_path: Path, content: Content) -> None:
    store = broken(tmp_path / "s", content, "1.1")
    block = BlockIndex(1, 1)
    data = content.block(store, block)
    rows = data.rows.copy()
    rows[0, 0] = np.setdiff1d(np.arange(10), content.order[2, 4:8])[:4]
    with store.lease() as writer:
        writer.write(block, replace(data, rows=rows))
        with pytest.raises(InputError, match=r"block 1\.1 has other images than before"):
            writer.seal()


@pytest.mark.parametrize("size", [1, 4])
def test_seals_in_several_parts_hold_what_one_does(
    tmp_path: Path, content: Content, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    one = build(tmp_path / "one", content, VIEWS).bytes_per_label()
    for module in (seals, sealing, table):
        monkeypatch.setattr(module, "PART_BLOCKS", size)
    path = tmp_path / "several"
    store = LabelStore.open(build(path, content, VIEWS).path)
    assert len(list((path / "seals").iterdir())) == 1 + -(-9 // size)
    assert check(path).ok
    for view in range(VIEWS):
        assert np.array_equal(store.read(view, slice(None)).rows.values, content.rows[view])
    assert store.bytes_per_label() == one
    last = max((path / "seals").glob("6.*.*.json"), key=lambda part: int(part.name.split(".")[1]))
    HARM["a byte at 0.62"](last)
    assert [damage.file for damage in check(path).damaged] == [f"seals/{last.name}"]
    assert np.array_equal(LabelStore.open(path).read(0, slice(0, 4)).rows.values, content.rows[0][:, :4])
    assert not repair(path).needs_build
    assert check(path).ok
