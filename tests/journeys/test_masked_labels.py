"""Teachers whose logits have columns masked out, or an offset in common: built, extended, looked at."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch

from labelstore import LabelStore
from labelstore.encodings.fidelity import agreement
from tests.journeys.world import VIEWS, World, giftwrap, random_teacher

COLUMNS, MASKED = 70, -1e4


@pytest.fixture(scope="module")
def masked(world: World, tmp_path_factory: pytest.TempPathFactory) -> World:
    """A teacher of whose 70 columns 30 are masked, and whose others have an offset."""
    folder = tmp_path_factory.mktemp("masked")
    weights = random_teacher(folder / "teacher.safetensors", columns=COLUMNS)
    state = safetensors.torch.load_file(weights)
    (bias,) = (name for name, tensor in state.items() if tensor.shape == (COLUMNS,))
    weight = bias.replace("bias", "weight")
    state[bias] -= 15
    state[bias][40:] = MASKED
    state[weight][40:] = 0
    safetensors.torch.save_file(state, weights)
    return World(folder, world.images, weights, folder / "float16")


def build(made: World, store: Path, *more: object) -> tuple[LabelStore, str]:
    ended = giftwrap(*made.build_words(store, "--class-columns", "5,0,9", *more))
    assert ended.code == 0, ended.err
    return LabelStore.open(store), ended.err


@pytest.mark.parametrize("encoding", ["int8", "transform"])
def test_masked_columns_and_offsets_cost_no_first_choice(masked: World, tmp_path: Path, encoding: str) -> None:
    exact, _ = build(masked, tmp_path / "float16", "--encoding", "float16")
    store, warnings = build(masked, tmp_path / "store", "--encoding", encoding)
    assert "labels, as" not in warnings
    if encoding == "int8":
        assert store.identity.encoding == {"name": "int8", "masked": MASKED}
    for view in (0, store.state.views_sealed - 1):
        ours, theirs = (of.read(view, slice(None)).logits for of in (store, exact))
        assert np.array_equal(ours[:, 40:], theirs[:, 40:])
        assert agreement(theirs, ours).mean() >= (0.9 if encoding == "int8" else 0.7)
    longer, _ = build(masked, store.path, "--encoding", encoding, "--views", 2 * VIEWS)
    assert longer.identity == store.identity
    assert longer.state.views_sealed > store.state.views_sealed
    ended = giftwrap("labelstore", "info", store.path)
    assert ended.code == 0
    assert "(T = 20), top-1 agreement" in ended.out
    assert "top-1 agreement" in giftwrap("labelstore", "check", store.path).out


def test_labels_that_are_not_kept_are_said(masked: World, tmp_path: Path) -> None:
    rough = giftwrap(
        "labelstore", "convert", *_float16(masked), tmp_path / "rough", "--encoding", "transform", "--step", 9
    )
    assert rough.code == 0, rough.err
    assert "warning: unmixed labels, as transform keeps them: " in rough.err
    assert "top-1 agreement" in rough.err
    again = giftwrap("labelstore", "info", tmp_path / "rough", "--json")
    assert again.summary["missed"]
    assert "warning: unmixed labels" in again.err


def _float16(made: World) -> list[Path]:
    return [build(made, made.store, "--encoding", "float16")[0].path]
