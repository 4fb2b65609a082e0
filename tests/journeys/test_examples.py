"""The programs of examples/, at toy size, as their users run them."""

from __future__ import annotations

import shlex
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

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

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_loop_continues_where_it_stopped(world: World, tmp_path: Path) -> None:
    whole, parts = tmp_path / "whole.pt", tmp_path / "parts.pt"
    last = own_loop.train(world.store, world.images, whole, 3)
    own_loop.train(world.store, world.images, parts, 1)
    assert own_loop.train(world.store, world.images, parts, 3) == last
    first, second = (torch.load(path, weights_only=True) for path in (whole, parts))
    assert first["replay"] == second["replay"]
    assert all(torch.equal(first["student"][name], second["student"][name]) for name in first["student"])


def test_an_augmentation_and_a_teacher_from_outside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_images(tmp_path / "runs/demo/small", classes=tuple("0123456789"), per_class=2)
    page = (EXAMPLES / "own_augmentation.py").read_text().split('"""')[1].replace("\\\n", " ")
    commands = [shlex.split(line)[2:] for line in page.splitlines() if line.startswith("    python -m ")]
    assert [words[1] for words in commands] == ["weights", "build", "train"]
    for words in commands:
        ended = giftwrap(*words, cwd=tmp_path)
        assert ended.code == 0, (words, ended)
    store = LabelStore.open(tmp_path / "runs/inverted")
    columns = [store.read(view, slice(None)).rows.column("invert") for view in range(store.state.views_sealed)]
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
    datasets = pytest.importorskip("sklearn.datasets")
    whole = datasets.load_digits()
    some = SimpleNamespace(images=whole.images[:300], target=whole.target[:300])
    monkeypatch.setattr(datasets, "load_digits", lambda: some)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TEACHER_EPOCHS", 0)
    assert digits.main() == 0
    small = scan(demo.ROOT / "small", digests=False)
    assert (len(small), len(small.classes)) == (100, 10)
    assert read_weights(demo.ROOT / "teacher.safetensors").class_names == small.classes


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("own_loop",), "expected 2 or 3 arguments, found 0; usage: python -m examples.own_loop STORE IMAGES [EPOCHS]"),
        (("own_loop", "STORE", "IMAGES", "three"), "EPOCHS: expected a whole number of at least 1, found 'three'"),
        (("own_loop", "none", "IMAGES"), "none: no such folder"),
        (("read_store",), "expected 1 or 2 arguments, found 0; usage: python -m examples.read_store"),
        (("read_store", "STORE", "9999"), "IMAGE: expected 0 to "),
        (("own_augmentation", "weights", "x"), "expected 3 arguments, found 2; usage: "),
    ],
)
def test_mistakes_end_in_one_line(world: World, tmp_path: Path, words: tuple[str, ...], message: str) -> None:
    places = {"STORE": world.store, "IMAGES": world.images}
    program, *more = words
    ended = giftwrap(f"examples.{program}", *(places.get(word, word) for word in more), cwd=tmp_path)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1)
    assert ended.err.startswith(f"error: {message}")


@pytest.mark.parametrize("content", [b"no checkpoint", b"", None])
def test_a_stale_checkpoint_is_named(world: World, tmp_path: Path, content: bytes | None) -> None:
    checkpoint = tmp_path / own_loop.CHECKPOINT
    checkpoint.parent.mkdir(parents=True)
    if content is None:
        torch.save({"student": {}}, checkpoint)
    else:
        checkpoint.write_bytes(content)
    ended = giftwrap("examples.own_loop", world.store, world.images, 1, cwd=tmp_path)
    assert (ended.code, len(ended.err.splitlines())) == (2, 1), ended.err
    assert f"error: {own_loop.CHECKPOINT}: does not continue with this store" in ended.err
    checkpoint.unlink()
    assert giftwrap("examples.own_loop", world.store, world.images, 1, cwd=tmp_path).code == 0
    assert checkpoint.exists()
    again = giftwrap("examples.own_loop", world.store, world.images, 1, cwd=tmp_path)
    assert (again.code, "nothing left to train" in again.out) == (0, True)
