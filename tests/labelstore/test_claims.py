"""What a store says of itself: adopted labels, notes, states that cannot be, and stores of format 1."""

from __future__ import annotations

import json
import time
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore, check
from labelstore.durable import documents
from labelstore.errors import DamagedError, FormatError, GiftwrapError, InputError
from labelstore.format.arrays import group_metadata
from labelstore.operations.convert import convert
from labelstore.operations.export import export
from labelstore.operations.info import info, lines
from labelstore.operations.repair import repair
from tests.labelstore.making import GOLDEN, Content, build, create, make_identity, tree


def edited(path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    """Change the root's attributes as somebody does who knows about the stamp."""
    attributes = json.loads((path / "zarr.json").read_bytes())["attributes"]
    del attributes["crc32c"]
    change(attributes)
    (path / "zarr.json").write_bytes(group_metadata(documents.stamp(attributes)))


STATES = {
    "views_sealed below 0": ({"views_sealed": -2}, "state.views_sealed"),
    "views_sealed above the target": ({"views_target": 2}, "state.views_sealed"),
    "views_sealed in the middle of a block": ({"views_sealed": 3}, "state.views_sealed"),
    "a thousand million views": ({"views_target": 10**9}, "state.views_target"),
    "views beyond any number": ({"views_target": 10**400}, "state.views_target"),
    "views of float": ({"views_sealed": 4.0}, "state.views_sealed"),
    "views of bool": ({"views_sealed": True}, "state.views_sealed"),
    "no versions": ({"versions": []}, "state.versions"),
    "versions of numbers": ({"versions": [1]}, r"state.versions\[0\]"),
    "versions of text": ({"versions": "abc"}, "state.versions"),
    "missing blocks that are not sealed": ({"missing": [[2, 0]]}, "state.missing"),
    "missing blocks out of order": ({"missing": [[1, 0], [0, 1]]}, "state.missing"),
    "missing blocks of text": ({"missing": ["0.1"]}, "state.missing"),
    "an extension from more views": ({"views_before": 6}, "state.views_before"),
}


@pytest.mark.parametrize("name", STATES)
def test_a_state_that_cannot_be_is_damage(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s"
    build(path, Content(make_identity(block=(2, 4)), 4), 4)
    changes, field = STATES[name]
    edited(path, lambda attributes: attributes["state"].update(changes))
    with pytest.raises(DamagedError, match=rf"zarr\.json: {field}: expected"):
        LabelStore.open(path)
    report = check(path)
    assert [damage.file for damage in report.damaged] == ["zarr.json"]


def test_a_target_far_away_costs_nothing_to_look_at(tmp_path: Path) -> None:
    path = tmp_path / "s"
    build(path, Content(make_identity(block=(2, 4)), 4), 4)
    edited(path, lambda attributes: attributes["state"].update(views_target=10_000_000))
    began = time.process_time()
    report = check(path)
    values = info(LabelStore.open(path))
    assert time.process_time() - began < 5, "millions of blocks are counted, not listed"
    assert report.missing == values["missing_blocks"] == (10_000_000 - 4) // 2 * 3
    assert {damage.file for damage in report.damaged} == {f"{name}/zarr.json" for name in ("labels", "scales", "rows")}


IDENTITIES: dict[str, dict[str, Any]] = {
    "images of bool": {"images": True},
    "columns of float": {"columns": 1.0},
    "a side beyond any crop": {"size": 10**9},
    "a block of text": {"block": {"views": "a", "positions": 4}},
    "a block of float": {"block": {"views": 2.5, "positions": 4}},
    "a block of three": {"block": {"views": 2, "positions": 4, "x": 1}},
    "classes of numbers": {"classes": [1, 2]},
    "classes of lists": {"classes": [["a"], ["b"]]},
    "half a character": {"classes": ["\udcff", "b"]},
    "a manifest of numbers": {"manifest": 7},
    "columns of numbers": {"crop_columns": [1, 2, 3]},
    "no image columns": {"crop_columns": ["a", "b"]},
    "columns twice": {"crop_columns": ["image_low", "image_high"] * 2},
    "an encoding that is a list": {"encoding": ["int8"]},
    "class columns of lists": {"class_columns": [[0], [1]]},
    "no teacher": {"teacher": None},
    "an origin of tomorrow": {"origin": "found"},
    "content of tomorrow": {"content": "ranks"},
    "something more": {"surprise": 1},
}


@pytest.mark.parametrize("name", IDENTITIES)
def test_an_identity_that_cannot_be_is_damage(tmp_path: Path, name: str) -> None:
    path = tmp_path / "s"
    build(path, Content(make_identity(block=(2, 4)), 2), 2)
    edited(path, lambda attributes: attributes["identity"].update(IDENTITIES[name]))
    (field,) = IDENTITIES[name]
    with pytest.raises(DamagedError, match=rf"zarr\.json: identity\.{field}[.\w]*: expected"):
        LabelStore.open(path)
    assert not check(path).ok


@pytest.mark.parametrize("encoding", [{"name": ["int8"]}, {"name": "int8", "codec": ["raw"]}, {"name": "int8", "x": 1}])
def test_an_encoding_that_cannot_be_is_refused(tmp_path: Path, encoding: dict[str, Any]) -> None:
    path = tmp_path / "s"
    build(path, Content(make_identity(block=(2, 4)), 2), 2)
    edited(path, lambda attributes: attributes["identity"].update(encoding=encoding))
    for use in (LabelStore.open, check):
        with pytest.raises(GiftwrapError):
            use(path)


def test_adopted_labels_may_lack_what_made_them(tmp_path: Path) -> None:
    unknown: dict[str, Any] = dict.fromkeys(("teacher", "engine", "plan", "renderer"))
    content = Content(make_identity(block=(2, 4), origin="adopted", content="topk", **unknown), 4)
    store = build(tmp_path / "s", content, 4)
    assert LabelStore.open(store.path).identity == content.identity
    assert check(store.path).ok
    assert store.version(store.sealed_blocks()[0]) == {"first_view": 0, "engine": None, "renderer": None}
    values = info(store)
    assert (values["origin"], values["teacher"], values["plan"]) == ("adopted", None, None)
    assert any("largest columns" in line for line in lines(values))
    assert any("made elsewhere" in line for line in lines(values))
    copy = convert(store, tmp_path / "c", {"name": "float16"})
    assert np.array_equal(copy.read(3, [1]).logits, store.read(3, [1]).logits.astype(np.float16))
    with pytest.raises(InputError, match="teacher: the labels of this store were made elsewhere"):
        content.identity.require("teacher")


@pytest.mark.parametrize("name", ["teacher", "engine", "plan", "renderer"])
def test_built_labels_lack_nothing(name: str) -> None:
    with pytest.raises(InputError, match=f"{name}: expected what made the labels, found none"):
        make_identity(**dict[str, Any]({name: None}))


def test_notes_are_kept_and_never_compared(tmp_path: Path) -> None:
    content = Content(make_identity(), 2)
    notes: dict[str, Any] = {"images": {"method": "random", "seed": 3}, "by": "us"}
    LabelStore.create(
        tmp_path / "s",
        content.identity,
        image_digests=content.digests,
        targets=content.targets,
        views=2,
        notes=notes,
    )
    plain = create(tmp_path / "plain", content, 2)
    assert LabelStore.open(tmp_path / "s").identity == plain.identity
    store = build(tmp_path / "s", content, 2)
    assert LabelStore.open(store.path).notes == notes
    assert info(store)["notes"] == notes
    assert any("random" in line for line in lines(info(store)))
    assert convert(store, tmp_path / "c", {"name": "float16"}).notes == notes


@pytest.mark.parametrize("name", ["int8", "float16-mixed", "transform-mixed"])
def test_stores_of_format_1_are_converted_and_exported_and_never_extended(tmp_path: Path, name: str) -> None:
    zipfile.ZipFile(GOLDEN / "format-1" / f"{name}.zip").extractall(tmp_path)
    old = LabelStore.open(tmp_path / name)
    before = tree(old.path)
    command = rf"giftwrap convert .*{name} NEW --encoding {name.removesuffix('-mixed')}"
    for use in (lambda: old.lease().__enter__(), lambda: repair(old.path)):
        with pytest.raises(FormatError, match=rf"has format 1, which is read but not written any more; .*{command}"):
            use()
    assert export(old, tmp_path / "labels.npy") == (6, 10, old.identity.columns)
    codec = "zstd" if old.encoding.codec != "zstd" else "raw"
    new = convert(old, tmp_path / "new", {**old.identity.encoding, "codec": codec})
    assert check(new.path).ok
    assert new.identity.format == 2
    for view in range(6):
        assert np.array_equal(new.read(view, slice(None)).logits, old.read(view, slice(None)).logits)
        assert np.array_equal(new.read(view, slice(None)).rows.values, old.read(view, slice(None)).rows.values)
    assert tree(old.path) == before
    assert check(old.path).ok
