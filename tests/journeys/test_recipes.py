"""The protocols of the field as commands: what GIFT and RDED do to their images is stored, replayed and trained on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore
from tests.journeys.world import World, giftwrap

GIFT = ("--crop", "factor", "--factor", 2, "--augment", "dsa")
RDED = ("--augment", "patch-shuffle=2", "--scale", 0.5, 1, "--mix", "cutmix", "--group", 8)


@pytest.mark.parametrize("flags", [GIFT, RDED, (*RDED, "--mix-per", "pair")], ids=["gift", "rded", "pairs"])
def test_a_store_of_a_protocol_is_built_verified_and_trained_from(
    flags: tuple[object, ...], world: World, tmp_path: Path
) -> None:
    store, images = tmp_path / "store", ("--images", world.images)
    built = giftwrap(*world.build_words(store, *flags))
    assert built.code == 0, built.err
    columns = LabelStore.open(store).bytes_per_label()["columns"]
    verified = giftwrap("pipeline", "verify", "--store", store, *images, "--weights", world.weights, "--json")
    assert verified.code == 0, verified.err
    assert verified.summary["max_error"] == 0 if "max_error" in verified.summary else True
    shown = giftwrap("pipeline", "show", "--store", store, *images, "--out", tmp_path / "sheet.png")
    assert shown.code == 0, shown.err
    trained = giftwrap(
        "trainer", "train", "--store", store, *images, "--student", "convnet-d2", "--epochs", 1, "--threads", 1,
        "--run", tmp_path / "run",
    )  # fmt: skip
    assert trained.code == 0, trained.err
    assert "bit for bit" in trained.out
    assert np.isfinite(columns)
    again = giftwrap(*world.build_words(store, *flags[:-2]))
    assert again.code == 2
    assert "another plan" in again.err or "plan" in again.err
