"""Builds on other engines: several teachers, batches found, and a compiled teacher from its first block to its last."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.networks import build_network, save_weights
from pipeline.teacher.engine.batches import CPU_BATCH
from tests.journeys.world import SIDE, TEACHER, World, giftwrap

FEW, VIEWS = 20, 130  # a store of twice the latter has blocks of the same shape


def files(store: Path) -> dict[str, bytes]:
    """All that a store holds, but its root, which says how it was made."""
    return {
        str(path.relative_to(store)): path.read_bytes()
        for path in sorted(store.rglob("*"))
        if path.is_file() and path.name != "zarr.json" and not path.is_relative_to(store / "seals")
    }


def test_several_teachers_label_together_and_are_verified_so(world: World, tmp_path: Path) -> None:
    torch.manual_seed(1)
    second = tmp_path / "second.safetensors"
    network = build_network("convnet-d1", {"width": 8}, classes=3, size=SIDE)
    save_weights(network.state_dict(), second)
    both = (
        "--teacher", TEACHER[1], "convnet-d1", "--teacher-args", TEACHER[3], '{"width": 8}',
        "--weights", world.weights, second, "--teacher-weights", 0.7, 0.3, "--fold",
    )  # fmt: skip
    store = tmp_path / "store"
    ended = giftwrap(*world.build_words(store, *both))
    assert ended.code == 0, ended.err
    engine = LabelStore.open(store).identity.engine
    assert (engine["folding"], engine["compile"], engine["batch"]) == ("batch-norm", "none", 32)
    verify = ("pipeline", "verify", "--store", store, "--images", world.images, "--json", "--weights")
    ended = giftwrap(*verify, world.weights, second)
    assert ended.summary["ok"] is True
    assert ended.summary["max_error"] < 1e-3
    swapped = giftwrap(*verify, second, world.weights)
    assert swapped.code == 2
    alone = giftwrap(*world.build_words(store))
    assert alone.code == 2
    assert "different teacher (teacher.members)" in alone.err


def config(world: World, store: Path, **more: Any) -> BuildConfig:
    teacher = {"teacher": (TEACHER[1],), "teacher_args": (TEACHER[3],), "weights": (str(world.weights),)}
    plain = {"images": world.images, "size": SIDE, "views": FEW, "threads": torch.get_num_threads(), "store": store}
    return from_flags(BuildConfig, **(plain | teacher | more))


def test_a_build_goes_on_with_the_batch_of_its_store(world: World, tmp_path: Path) -> None:
    found, given = tmp_path / "found", tmp_path / "given"
    build(config(world, found), Console(as_json=True))
    assert LabelStore.open(found).identity.engine["batch"] == CPU_BATCH
    build(config(world, given, batch=48), Console(as_json=True))
    build(config(world, given, views=2 * FEW), Console(as_json=True))
    state = LabelStore.open(given).state
    assert [version["engine"]["batch"] for version in state.versions] == [48]


def test_a_compiled_store_is_continued_compiled_or_not_at_all(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from torch._dynamo import reset
    from torch._dynamo.utils import counters
    from torch._inductor import config as inductor

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    # In an empty cache these take longer to compile than the teacher does.
    monkeypatch.setattr(inductor.cpp, "vec_isa_ok", True)
    monkeypatch.setattr(inductor, "cpp_cache_precompile_headers", False)
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    build(config(world, resumed, compile="on", views=VIEWS), Console(as_json=True))
    assert "uncompiled" not in capfd.readouterr().err
    assert LabelStore.open(resumed).identity.engine["compile"] == "inductor"
    assert any((tmp_path / "cache").iterdir())

    before = files(resumed)
    with monkeypatch.context() as patch:
        patch.setenv("CXX", "/nonexistent")
        with pytest.raises(InputError, match=r"needs a C\+\+ compiler.*the store was started with one"):
            build(config(world, resumed, compile="on", views=2 * VIEWS), Console(as_json=True))
    with pytest.raises(InputError, match=r"different engine \(--compile\): the store has 'inductor'.*--compile"):
        build(config(world, resumed, views=2 * VIEWS), Console(as_json=True))
    assert files(resumed) == before

    reset()  # as another process begins
    counters.clear()
    build(config(world, resumed, compile="on", views=2 * VIEWS), Console(as_json=True))
    assert counters["inductor"]["fxgraph_cache_hit"] > 0
    assert counters["inductor"]["fxgraph_cache_miss"] == 0
    build(config(world, whole, compile="require", views=2 * VIEWS), Console(as_json=True))
    assert LabelStore.open(whole).identity.block == LabelStore.open(resumed).identity.block
    assert files(resumed) == files(whole)


def test_a_store_begun_after_a_failed_compile_goes_on_uncompiled(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("CXX", os.devnull)
        build(config(world, tmp_path / "store", compile="on"), Console(as_json=True))
    assert "warning: --compile on: the teacher runs uncompiled" in capfd.readouterr().err
    build(config(world, tmp_path / "store", compile="on", views=2 * FEW), Console(as_json=True))
    assert "the store was started with an uncompiled teacher and continues with one" in capfd.readouterr().err
    state = LabelStore.open(tmp_path / "store").state
    assert [version["engine"]["compile"] for version in state.versions] == ["none"]
