"""A store converted from another one: the same crops, other codes."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore, check, publish
from labelstore.convert import convert
from labelstore.errors import InputError, LeaseError, MismatchError, NotStoredError
from tests.labelstore.making import ENGINE, Content, build, make_identity, tree


def source(
    path: Path, views: int = 4, blocks: int | None = None, encoding: str = "float16", group: int = 1
) -> LabelStore:
    content = Content(make_identity(encoding=encoding, group=group, columns=7), 8)
    return build(path, content, views, blocks)


def assert_same_crops(ours: LabelStore, theirs: LabelStore, views: int) -> None:
    """All but the codes of the labels."""
    for view in range(views):
        assert np.array_equal(ours.read(view, slice(None)).rows.values, theirs.read(view, slice(None)).rows.values)
    assert np.array_equal(ours.targets, theirs.targets)
    assert np.array_equal(ours.image_digests, theirs.image_digests)
    assert all(map(np.array_equal, ours.audit(), theirs.audit()))
    for block in ours.sealed_blocks():
        assert ours.pixels_digest(block) == theirs.pixels_digest(block)
        assert ours.version(block)["engine"] == theirs.version(block)["engine"]
    plain, others = ours.identity.to_json(), theirs.identity.to_json()
    assert {**plain, "encoding": None} == {**others, "encoding": None}


@pytest.mark.parametrize("group", [1, 2])
@pytest.mark.parametrize("codec", ["raw", "zstd"])
def test_float16_becomes_int8_as_int8_would_encode_it(tmp_path: Path, codec: str, group: int) -> None:
    wide = source(tmp_path / "wide", group=group)
    small = convert(wide, tmp_path / "small", {"name": "int8", "codec": codec})
    assert small.complete
    assert check(small.path).ok
    assert_same_crops(small, wide, 4)
    for view in range(4):
        logits, pairs = wide.read(view, slice(None)).logits, wide.pairs(view, slice(None))
        codes = small.encoding.encode(logits, pairs)
        assert all(np.array_equal(codes[name], small.codes(view, slice(None))[name]) for name in codes)
    assert small.state.versions[0]["converted_from"] == {
        "encoding": {"name": "float16"},
        "fidelity": wide.fidelity,
    }
    assert 0.99 < small.fidelity["unmixed"]["mean"] < 1


@pytest.mark.parametrize("encoding", ["int8", "float16"])
def test_another_codec_keeps_every_bit_of_the_labels(tmp_path: Path, encoding: str) -> None:
    raw = source(tmp_path / "raw", encoding=encoding)
    packed = convert(raw, tmp_path / "packed", {"name": encoding, "codec": "zstd"})
    again = convert(packed, tmp_path / "again", {"name": encoding})
    assert_same_crops(packed, raw, 4)
    for view in range(4):
        one, two = (store.codes(view, slice(None)) for store in (raw, packed))
        assert all(np.array_equal(one[name], two[name]) for name in one)
    assert packed.fidelity["unmixed"]["mean"] == 1
    before, after = tree(raw.path), tree(again.path)
    assert {name for name in before if before[name] != after[name]} == {
        "zarr.json", "markers/0.0.json", "seals/4.json",
    }  # fmt: skip
    origin = again.state.versions[0]["converted_from"]
    assert origin["encoding"] == {"name": encoding, "codec": "zstd"}
    assert origin["converted_from"]["encoding"] == {"name": encoding}


@pytest.mark.parametrize("kill_at", [3, 8, 20, 33])
def test_a_stopped_conversion_goes_on_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kill_at: int
) -> None:
    wide = source(tmp_path / "wide")
    whole = convert(wide, tmp_path / "whole", {"name": "int8"})
    done = 0
    stage = publish._stage

    class KilledError(BaseException):
        pass

    def die(*given: object) -> Path:
        nonlocal done
        done += 1
        if done == kill_at:
            raise KilledError
        return stage(*given)

    monkeypatch.setattr(publish, "_stage", die)
    with pytest.raises(KilledError):
        convert(wide, tmp_path / "small", {"name": "int8"})
    small = convert(wide, tmp_path / "small", {"name": "int8"})
    assert tree(small.path) == tree(whole.path)


def test_the_first_views_then_all_then_what_was_added(tmp_path: Path) -> None:
    wide = source(tmp_path / "wide")
    small = convert(wide, tmp_path / "small", {"name": "int8"}, views=1)
    assert small.state.views_sealed == 2  # whole blocks
    small = convert(wide, tmp_path / "small", {"name": "int8"})
    assert small.state.views_sealed == 4
    content = Content(make_identity(encoding="float16", columns=7), 8)
    with wide.lease():
        wide.raise_target(6, engine={**ENGINE, "device": "other"})
        for block in wide.missing():
            wide.write(block, content.block(wide, block))
        wide.seal()
    small = convert(wide, tmp_path / "small", {"name": "int8"})
    assert_same_crops(small, wide, 6)
    assert [version["engine"]["device"] for version in small.state.versions] == ["test", "other"]
    assert check(small.path).ok


def test_views_that_a_build_adds_are_not_said_to_be_converted(tmp_path: Path) -> None:
    small = convert(source(tmp_path / "wide"), tmp_path / "small", {"name": "int8"})
    content = Content(small.identity, 8)
    with small.lease():
        small.raise_target(6, engine=ENGINE, renderer={"name": "test"})
        for block in small.missing():
            small.write(block, content.block(small, block))
        small.seal()
    assert ["converted_from" in version for version in small.state.versions] == [True, False]
    with pytest.raises(MismatchError, match="converted_from"):
        convert(source(tmp_path / "other", views=8, encoding="int8"), small.path, {"name": "int8"})


def test_what_is_sealed_is_converted_of_a_stopped_build(tmp_path: Path) -> None:
    wide = source(tmp_path / "wide")
    build(wide.path, Content(wide.identity, 8), 8, 1)
    small = convert(LabelStore.open(wide.path), tmp_path / "small", {"name": "int8"})
    assert small.state.views_sealed == small.state.views_target == 4


def test_nothing_is_made_of_bad_input(tmp_path: Path) -> None:
    wide, empty = source(tmp_path / "wide"), source(tmp_path / "empty", blocks=1)
    target = tmp_path / "small"
    with pytest.raises(NotStoredError, match="0 of 4 views are sealed"):
        convert(empty, target, {"name": "int8"})
    with pytest.raises(NotStoredError, match="4 of 4 views are sealed, expected at least 10"):
        convert(wide, target, {"name": "int8"}, views=9)
    with pytest.raises(InputError, match="expected one of"):
        convert(wide, target, {"name": "int4"})
    with pytest.raises(InputError, match="is the same as SRC"):
        convert(wide, wide.path, {"name": "float16"})
    assert not target.exists()
    convert(wide, target, {"name": "int8"})
    with pytest.raises(MismatchError, match="another store at encoding"):
        convert(wide, target, {"name": "float16"})
    other = build(tmp_path / "other", Content(make_identity(columns=7, seed=1), 8), 4)
    with pytest.raises(MismatchError, match="another store at seed"):
        convert(other, target, {"name": "int8"})
    with LabelStore.open(target).lease(), pytest.raises(LeaseError):
        convert(wide, target, {"name": "int8"})


def test_labels_that_the_encoding_cannot_hold_leave_nothing_behind(tmp_path: Path) -> None:
    content = Content(make_identity(columns=7), 8)
    content.logits *= 1e5
    content.logits[0, :4] = 0  # the audit rows are float16
    loud = build(tmp_path / "loud", content, 4)
    with pytest.raises(InputError, match="expected a number of at most 65504"):
        convert(loud, tmp_path / "small", {"name": "float16"})
    assert not (tmp_path / "small").exists()
    shutil.rmtree(loud.path)
