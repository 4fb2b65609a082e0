"""The programs of examples/, at toy size, as their users run them."""

from __future__ import annotations

import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import demo
from examples import digits, own_loop, read_store
from labelstore import LabelStore
from pipeline.images.manifest import scan
from pipeline.networks import read_weights
from pipeline.plan.augment import INPUTS
from tests.journeys.world import World, draw_images, giftwrap


def test_the_loop_continues_where_it_stopped(world: World, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    last = own_loop.train(world.store, world.images, whole, 3)
    own_loop.train(world.store, world.images, parts, 1)
    assert own_loop.train(world.store, world.images, parts, 3) == last
    first, second = (torch.load(path, weights_only=True) for path in (whole, parts))
    assert first["replay"] == second["replay"]
    assert all(torch.equal(first["student"][name], second["student"][name]) for name in first["student"])


def test_an_augmentation_and_a_teacher_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = draw_images(tmp_path / "images")
    ended = giftwrap("examples.own_augmentation", images, tmp_path / "store")
    assert ended.code == 0, ended.err
    store = LabelStore.open(tmp_path / "store")
    (found,) = re.findall(r"^(\d+) of 24 crops of a view are inverted$", ended.out, re.MULTILINE)
    columns = [store.read(view, slice(None)).rows.column("invert") for view in range(store.state.views_sealed)]
    assert int(found) in [int(column.sum()) for column in columns]
    assert 0.3 < np.concatenate(columns).mean() < 0.7

    monkeypatch.setitem(INPUTS, "invert", INPUTS["dsa"])  # importing the example puts its own there; undone at the end
    import_module("examples.own_augmentation")
    invert, rows = INPUTS["invert"], store.read(0, slice(0, 4)).rows
    normalised = torch.randn(4, 3, 8, 8)
    signs = torch.from_numpy(1 - 2 * rows.column("invert").astype(np.float32))
    assert torch.equal(invert.apply(normalised, rows, 8), normalised * signs[:, None, None, None])


def test_a_store_is_read(world: World) -> None:
    ended = giftwrap("examples.read_store", world.store, 7)
    assert ended.code == 0, ended.err
    store = LabelStore.open(world.store)
    labels = [store.read(view, slice(None)) for view in range(store.state.views_sealed)]
    right = np.mean([batch.logits.argmax(1) == batch.targets for batch in labels])
    assert read_store.agreement(store) == pytest.approx(right)
    assert f"on {100 * right:.2f} % of the crops" in ended.out
    own = torch.from_numpy(np.concatenate([batch.logits[batch.rows.image == 7] for batch in labels])).double()
    np.testing.assert_allclose(read_store.mean_prediction(store, 7), own.softmax(1).mean(0), rtol=1e-12)


def test_the_data_of_the_quickstart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sklearn")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TEACHER_EPOCHS", 0)
    assert digits.main() == 0
    small = scan(demo.ROOT / "small", digests=False)
    assert (len(small), len(small.classes)) == (100, 10)
    assert read_weights(demo.ROOT / "teacher.safetensors").class_names == small.classes
