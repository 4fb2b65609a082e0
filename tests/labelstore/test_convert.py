"""A store converted from another one: the same crops, other codes."""

from __future__ import annotations

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.durable import publish
from labelstore.encodings.bands import bands_of, missed
from labelstore.encodings.fidelity import agreement, divergence
from labelstore.encodings.int8 import Int8
from labelstore.errors import InputError, LeaseError, MismatchError, NotStoredError
from labelstore.format.calibration import FILE
from labelstore.operations.convert import convert
from tests.labelstore.making import ENGINE, GOLDEN, Content, build, calibration_of, make_identity, tree


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
    assert np.array_equal(ours.audit().crops, theirs.audit().crops)
    assert np.array_equal(ours.audit().logits, theirs.audit().logits)
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


def golden(name: str, folder: Path) -> tuple[LabelStore, np.ndarray]:
    """A golden store, and its labels ``[V, N, C]`` as the release that introduced it read them."""
    found = GOLDEN / name
    zipfile.ZipFile(found.with_suffix(".zip")).extractall(folder)
    return LabelStore.open(folder / found.name), np.load(found.with_suffix(".npz"))["logits"]


@pytest.mark.parametrize("codec", [None, "zstd"])
@pytest.mark.parametrize(
    "name", ["format-1/int8", "format-1/float16-mixed", "format-1/transform-mixed", "format-2/transform-top1"]
)
def test_codes_of_golden_stores_are_copied(tmp_path: Path, name: str, codec: str | None) -> None:
    old, logits = golden(name, tmp_path)
    parameters = {**old.identity.encoding, **({"codec": codec} if codec else {})}
    new = convert(old, tmp_path / "new", parameters)
    assert (new.identity.format, new.identity.encoding) == (2, parameters)
    assert check(new.path).ok
    for view in range(6):
        ours, theirs = (store.codes(view, slice(None)) for store in (new, old))
        assert np.array_equal(ours["labels"], theirs["labels"])
        if name == "format-1/int8":
            assert np.array_equal(ours["scales"], np.stack([theirs["scales"], 0 * theirs["scales"]], axis=-1))
        elif "scales" in ours:
            assert np.array_equal(ours["scales"], theirs["scales"])
        assert np.array_equal(new.read(view, slice(None)).logits, old.read(view, slice(None)).logits)
        assert np.allclose(new.read(view, slice(None)).logits, logits[view], rtol=0, atol=1e-5)
    if name == "format-1/transform-mixed":
        assert not calibration_of(new).offset_apart
        assert not json.loads((new.path / FILE).read_bytes())["offset"]
        again = convert(new, tmp_path / "again", old.identity.encoding)
        assert not calibration_of(again).offset_apart
        # What encodes the old labels again makes the old codes.
        batch, pairs = old.read(2, slice(None)), old.pairs(2, slice(None))
        codes = [store.encoding.encode(batch.logits, pairs) for store in (old, new, again)]
        assert all(np.array_equal(codes[0][part], other[part]) for other in codes[1:] for part in codes[0])
    assert new.fidelity["unmixed"]["mean"] == 1
    assert new.fidelity["unmixed"]["kl_1"] == 0
    assert not missed(new.identity.encoding, new.fidelity)
    assert not missed(old.identity.encoding, old.fidelity)


def wide(path: Path, change: Callable[[np.ndarray], None], views: int = 6) -> LabelStore:
    """Labels of 64 columns, changed in place."""
    content = Content(make_identity(encoding="float16", images=40, columns=64, block=(1, 40)), views)
    content.logits *= 4
    change(content.logits)
    return build(path, content, views)


def masks(logits: np.ndarray) -> None:
    logits[..., 20:] = -1e4


def test_masked_columns_keep_their_value_and_the_others_their_order(tmp_path: Path) -> None:
    source = wide(tmp_path / "wide", masks)
    small = convert(source, tmp_path / "small", {"name": "int8"})
    assert small.identity.encoding == {"name": "int8", "masked": -1e4}
    packed = convert(small, tmp_path / "packed", {"name": "int8", "codec": "zstd"})  # hands the value on
    assert packed.identity.encoding == {"name": "int8", "codec": "zstd", "masked": -1e4}
    coded = convert(source, tmp_path / "coded", {"name": "transform"})
    again = convert(coded, tmp_path / "again", {"name": "int8"})  # exact, so seen again
    assert again.identity.encoding == small.identity.encoding
    for store in (small, packed, coded, again):
        for view in range(6):
            exact, found = (of.read(view, slice(None)).logits for of in (source, store))
            assert np.array_equal(found[:, 20:], exact[:, 20:])
            assert np.array_equal(found[:, :20] == -1e4, np.zeros_like(found[:, :20], bool))
        about = store.fidelity["unmixed"]
        assert about["top1"] >= (0.6 if store is coded else 0.9)
        assert store is coded or not missed(store.identity.encoding, store.fidelity)
    assert np.array_equal(packed.read(3, slice(None)).logits, small.read(3, slice(None)).logits)
    assert packed.fidelity["unmixed"]["kl_1"] == 0
    plain = convert(source, tmp_path / "plain", {"name": "int8", "masked": -5e3})  # as it is asked for
    assert plain.fidelity["unmixed"]["top1"] < 0.5
    assert "top-1 agreement" in missed(plain.identity.encoding, plain.fidelity)[0]


@pytest.mark.parametrize("encoding", [{"name": "int8"}, {"name": "transform"}, {"name": "transform", "fidelity": 0.95}])
def test_an_offset_costs_nothing_that_softmax_sees(tmp_path: Path, encoding: dict[str, Any]) -> None:
    found: list[Any] = []
    for number, offset in enumerate((0, -15, 300)):

        def moves(logits: np.ndarray, offset: int = offset) -> None:
            logits += offset

        source = wide(tmp_path / f"wide{number}", moves)
        found.append(convert(source, tmp_path / f"small{number}", encoding).fidelity["unmixed"])
        assert found[-1]["mean"] >= 0.95
    for name in ("kl_1", "kl_20"):  # without an offset the fidelity alone may choose the step, and the step of int8
        values = [about[name] for about in found]
        assert max(values) < 4 * min(values)  # a few rows choose the step, which differs between CPUs
    assert min(about["top1"] for about in found) >= (0.9 if encoding["name"] == "int8" else 0.5)


def test_a_later_label_with_another_value_in_a_constant_column_is_refused(tmp_path: Path) -> None:
    def change(logits: np.ndarray) -> None:
        masks(logits)
        logits[0, 7, 33] = 2.5  # view 0 comes into no calibration

    source = wide(tmp_path / "wide", change)
    with pytest.raises(InputError, match=r"has 2.5 in column 33, which was -10000 .*--encoding int8"):
        convert(source, tmp_path / "small", {"name": "transform"})
    assert not (tmp_path / "small").exists()
    small = convert(source, tmp_path / "small", {"name": "int8"})
    assert abs(small.read(0, slice(None)).logits[7, 33] - 2.5) < 0.1


@pytest.mark.parametrize(("images", "views"), [(1, 3), (1, 8), (2, 4), (3, 8)])
def test_few_images_are_calibrated_with_or_refused_by_name(tmp_path: Path, images: int, views: int) -> None:
    content = Content(make_identity(encoding="float16", images=images, columns=64, block=(1, images)), views)
    source = build(tmp_path / "wide", content, views)
    if images == 1:
        with pytest.raises(InputError, match=r"expected at least 2 labels .* found 1; convert more views, or .*int8"):
            convert(source, tmp_path / "small", {"name": "transform"})
        assert not (tmp_path / "small").exists()
    else:
        small = convert(source, tmp_path / "small", {"name": "transform"})
        assert small.complete
        assert check(small.path).ok


@pytest.mark.parametrize(
    "draw",
    [
        lambda _rng, shape: np.zeros(shape),
        lambda _rng, shape: np.full(shape, 3.0),
        lambda _rng, shape: np.full(shape, -2e4),
        lambda rng, shape: rng.standard_normal((*shape[:2], 1)) * rng.standard_normal((1, 1, shape[2])),
        lambda rng, shape: rng.standard_normal((*shape[:2], 1)) + np.zeros(shape),
        lambda rng, shape: 1e4 * rng.standard_normal(shape),
        lambda rng, shape: 1e-6 * rng.standard_normal(shape),
        lambda rng, shape: 1e-42 * rng.standard_normal(shape),
        lambda rng, shape: rng.standard_t(1.5, shape).clip(-6e4, 6e4),
        lambda rng, shape: 1e4 * (rng.random(shape) < 1 / 64),
    ],
    ids=["zeros", "threes", "far", "rank 1", "offsets alone", "huge", "tiny", "denormal", "heavy tails", "hot"],
)
@pytest.mark.parametrize("name", ["int8", "transform"])
def test_labels_of_any_kind_are_kept_or_refused_or_what_is_missed_is_said(
    tmp_path: Path, draw: Callable[[np.random.Generator, tuple[int, ...]], np.ndarray], name: str
) -> None:
    def change(logits: np.ndarray) -> None:
        logits[...] = draw(np.random.default_rng(5), logits.shape)

    source = wide(tmp_path / "wide", change, views=8)
    try:
        small = convert(source, tmp_path / "small", {"name": name})
    except InputError as error:
        assert "int8" in str(error)  # noqa: PT017  the way out
        return
    exact, found = (
        np.concatenate([store.read(view, slice(None)).logits for view in range(8)]) for store in (source, small)
    )
    assert np.isfinite(found).all()
    about = small.fidelity["unmixed"]
    assert about["top1"] == pytest.approx(agreement(exact[:40], found[:40]).mean(), abs=1e-8)
    assert about["kl_1"] == pytest.approx(divergence(exact[:40], found[:40], 1).mean(), rel=1e-5, abs=1e-11)
    if not missed(small.identity.encoding, small.fidelity):
        least = bands_of(0.98) if name == "transform" else Int8.bands
        assert about["top1"] >= 1 - 1.5 * (1 - least.top1)
        assert about["kl_1"] <= 1.5 * least.kl_1


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

    def die(*given: Any) -> Path:
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
    with wide.lease() as writer:
        writer.raise_target(6, engine={**ENGINE, "device": "other"})
        for block in wide.missing():
            writer.write(block, content.block(wide, block))
        writer.seal()
    small = convert(wide, tmp_path / "small", {"name": "int8"})
    assert_same_crops(small, wide, 6)
    assert [version["engine"]["device"] for version in small.state.versions] == ["test", "other"]
    assert check(small.path).ok


def test_views_that_a_build_adds_are_not_said_to_be_converted(tmp_path: Path) -> None:
    small = convert(source(tmp_path / "wide"), tmp_path / "small", {"name": "int8"})
    content = Content(small.identity, 8)
    with small.lease() as writer:
        writer.raise_target(6, engine=ENGINE, renderer={"name": "test"})
        for block in small.missing():
            writer.write(block, content.block(small, block))
        writer.seal()
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
        convert(wide, target, {"name": "no-such"})
    with pytest.raises(InputError, match="is the same as SRC"):
        convert(wide, wide.path, {"name": "float16"})
    assert not target.exists()
    convert(wide, target, {"name": "int8"})
    with pytest.raises(MismatchError, match=r"different store \(encoding"):
        convert(wide, target, {"name": "float16"})
    other = build(tmp_path / "other", Content(make_identity(columns=7, seed=1), 8), 4)
    with pytest.raises(MismatchError, match=r"different store \(seed\)"):
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
