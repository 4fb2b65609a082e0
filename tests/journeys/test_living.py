"""Living with a store: extend it, also on another engine, convert it, export it."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import numpy as np
import pytest

from labelstore import AuditRows, LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import MismatchError
from pipeline.build import continuing
from pipeline.build.build import build
from pipeline.config import BuildConfig
from tests.journeys.test_stops import wait_for
from tests.journeys.world import SIDE, TEACHER, World, giftwrap, start, with_audit
from tests.labelstore.making import tree

BLOCK_FILES = ("labels/c", "scales/c", "rows/c", "markers/", "audit/", "images/")


@pytest.mark.parametrize(("encoding", "codec"), [("int8", "raw"), ("float16", "zstd")])
def test_an_extended_store_is_the_one_that_was_built_at_once(
    world: World, tmp_path: Path, encoding: str, codec: str
) -> None:
    kind = ("--encoding", encoding, "--codec", codec, "--json")
    first = giftwrap(*world.build_words(tmp_path / "grown", "--views", 170, *kind))
    assert first.code == 0, first.err
    before = tree(tmp_path / "grown")
    views = 2 * first.summary["views"]  # the blocks of a store of so many views have the same shape
    longer = [giftwrap(*world.build_words(tmp_path / name, "--views", views, *kind)) for name in ("grown", "whole")]
    assert [ended.code for ended in longer] == [0, 0], longer
    assert longer[0].summary["views"] == longer[1].summary["views"] == views == 340
    grown, whole = tree(tmp_path / "grown"), tree(tmp_path / "whole")
    for files in (before, whole):
        kept = {name: digest for name, digest in files.items() if name.startswith(BLOCK_FILES)}
        assert kept.items() <= grown.items()
    info = giftwrap("labelstore", "info", tmp_path / "grown", "--json").summary
    assert (info["encoding"].get("codec", "raw"), info["codec"], info["complete"]) == (codec, codec, True)


def test_another_engine_must_give_the_audit_rows_again(world: World, tmp_path: Path) -> None:
    opened = LabelStore.open(world.store)
    audit = opened.audit()
    views = opened.state.views_sealed + 1
    words = ("--views", views, "--batch", 16, "--allow-engine-change")
    moved = with_audit(opened, tmp_path / "moved", AuditRows(audit.crops, audit.logits + np.float16(1)))
    for more in ((), ("--dry-run",)):
        refused = giftwrap(*world.build_words(moved, *words, *more))
        assert refused.code == 2
        assert "another engine gives other labels: expected errors of at most" in refused.err
        assert "Traceback" not in refused.err
    changed = with_audit(opened, tmp_path / "changed", AuditRows(audit.crops ^ np.uint8(64), audit.logits))
    refused = giftwrap(*world.build_words(changed, *words))
    assert refused.code == 2
    assert "pixels of 24 audit crops" in refused.err
    assert LabelStore.open(moved).state == LabelStore.open(changed).state == opened.state
    store = with_audit(opened, tmp_path / "store", audit)
    done = giftwrap(*world.build_words(store, *words))
    assert done.code == 0, done.err
    assert "another engine: pixels of" in done.out
    after = LabelStore.open(store)
    assert after.state.views_sealed >= views
    assert [version["engine"]["batch"] for version in after.state.versions] == [32, 16]
    again = giftwrap(*world.build_words(store, "--views", views, "--batch", 32))  # nothing to write, nothing to consent
    assert again.code == 0, again.err


def test_a_store_that_a_gpu_decodes_for_is_rendered_again_before_it_grows(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = LabelStore.open(world.store)
    audit = opened.audit()
    views = opened.state.views_sealed + 1
    store = with_audit(opened, tmp_path / "store", AuditRows(audit.crops ^ np.uint8(1), audit.logits))
    config = from_flags(
        BuildConfig,
        images=world.images,
        teacher=(TEACHER[1],),
        teacher_args=(TEACHER[3],),
        weights=(str(world.weights),),
        size=SIDE,
        views=views,
        batch=32,
        threads=1,
        store=store,
    )
    monkeypatch.setattr(continuing, "decoder_of", lambda _renderer: "gpu")
    with pytest.raises(MismatchError, match="pixels of 24 audit crops: expected equal pixels from an equal renderer"):
        build(config, Console(silent=True))
    assert LabelStore.open(store).state == opened.state
    monkeypatch.undo()
    build(config, Console(silent=True))  # a CPU decodes alike, whatever else it does
    assert LabelStore.open(store).state.views_sealed >= views


def test_a_converted_store_is_verified_trained_from_and_extended(world: World, tmp_path: Path) -> None:
    wide, small = tmp_path / "wide", tmp_path / "small"
    built = giftwrap(*world.build_words(wide, "--encoding", "float16", "--mix", "cutmix", "--group", 8))
    assert built.code == 0, built.err
    words = ("labelstore", "convert", wide, small, "--encoding", "int8", "--json")
    ended = giftwrap(*words)
    assert ended.code == 0, ended.err
    assert ended.summary["complete"] is True
    assert ended.summary["converted_from"]["encoding"] == {"name": "float16"}
    assert ended.summary["fidelity"]["mixed"]["mean"] > 0.999
    files = tree(small)
    assert giftwrap(*words).code == 0
    assert tree(small) == files
    assert giftwrap("labelstore", "check", small).code == 0
    verified = giftwrap(
        "pipeline", "verify", "--store", small, "--images", world.images, "--weights", world.weights, "--json"
    )
    assert verified.code == 0, verified.err
    assert verified.summary["pixels_equal"] is True
    trained = giftwrap(
        "trainer", "train", "--store", small, "--images", world.images, "--student", "convnet-d2", "--epochs", 1,
        "--threads", 1, "--run", tmp_path / "run",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    views = LabelStore.open(small).state.views_sealed + 1
    grown = giftwrap(*world.build_words(small, "--views", views, "--mix", "cutmix", "--group", 8))
    assert grown.code == 0, grown.err
    versions = LabelStore.open(small).state.versions
    assert ["converted_from" in version for version in versions] == [True, False]


def test_a_killed_conversion_goes_on_to_the_same_bytes(world: World, tmp_path: Path) -> None:
    whole, small = tmp_path / "whole", tmp_path / "small"
    words = ("labelstore", "convert", world.store, small, "--encoding", "float16", "--codec", "zstd")
    assert giftwrap(*(whole if word == small else word for word in words)).code == 0
    running = start(tmp_path, *words)
    wait_for(small / "zarr.json", running)
    assert running.process.pid
    os.kill(running.process.pid, signal.SIGKILL)
    running.process.join()
    ended = giftwrap(*words)
    assert ended.code == 0, ended.err
    assert tree(small) == tree(whole)


def test_export_for_strangers(world: World, tmp_path: Path) -> None:
    out = tmp_path / "labels.npy"
    words = ("labelstore", "export", world.store, out, "--views", 2)
    ended = giftwrap(*words, "--json")
    assert ended.code == 0, ended.err
    assert ended.summary["shape"] == [2, 24, 3]
    store = LabelStore.open(world.store)
    expected = np.stack([store.read_images(view, np.arange(24)).logits for view in range(2)])
    assert np.array_equal(np.load(out), expected.astype(np.float16))
    refused = giftwrap(*words)
    assert refused.code == 2
    assert "exists already" in refused.err
    soft = giftwrap("labelstore", "export", world.store, tmp_path / "soft.npy", "--view", 1, "--probabilities")
    assert soft.code == 0, soft.err
    np.testing.assert_allclose(np.load(tmp_path / "soft.npy").sum(axis=1, dtype=np.float64), 1, atol=2e-3)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("convert", "STORE", "OUT", "--encoding", "int8", "--fidelity", "0.9"), "belongs to --encoding transform"),
        (("convert", "STORE", "OUT", "--encoding", "int8", "--codec", "pcodec"), "expected raw or zstd"),
        (("convert", "STORE", "OUT", "--encoding", "int8", "--views", "0"), "at least 1"),
        (("convert", "STORE", "STORE", "--encoding", "int8"), "is the same as SRC"),
        (("export", "STORE", "OUT.npy", "--view", "1", "--views", "1"), "found both"),
        (("export", "STORE", "OUT.npy", "--temperature", "2"), "belongs to"),
        (("export", "STORE", "OUT.npy", "--view", "100000"), "found 100000"),
        (("export", "STORE", "OUT.npy", "--format", "parquet"), "expected a name that ends in .parquet"),
        (("export", "STORE", "OUT.npy", "--images", "STORE"), "belong to --format fkd, found --format npy"),
        (("info", "STORE", "--weights", "OUT"), "expected a file"),
    ],
)
def test_bad_input_ends_with_a_message(world: World, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    places = {"STORE": world.store, "OUT": tmp_path / "out", "OUT.npy": tmp_path / "out.npy"}
    ended = giftwrap("labelstore", *(places.get(word, word) for word in words))
    assert ended.code == 2
    assert message in " ".join(ended.err.replace("│", "").split())
    assert "Traceback" not in ended.err
    assert list(tmp_path.iterdir()) == []
