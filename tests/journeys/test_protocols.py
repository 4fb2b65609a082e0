"""The protocols of the field as commands: what GIFT and RDED do to their images is stored, replayed and trained on."""

from __future__ import annotations

from pathlib import Path

import pytest

from labelstore import LabelStore
from tests.journeys.world import World, giftwrap

RDED = ("--augment", "patch-shuffle=2", "--scale", 0.5, 1, "--mix", "cutmix", "--group", 8)
PROTOCOLS: dict[str, tuple[tuple[object, ...], tuple[object, ...]]] = {
    "gift": (("--recipe", "gift"), ("--recipe", "gift")),
    "rded": (("--recipe", "rded"), ("--recipe", "rded", "--loss", "gift")),
    "cells": (("--recipe", "gift", "--factor", 2), ()),
    "collages": (RDED, ()),
    "pairs": ((*RDED, "--mix-per", "pair"), ()),
}


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_store_of_a_protocol_is_built_verified_and_trained_from(name: str, world: World, tmp_path: Path) -> None:
    (flags, recipe), store, images = PROTOCOLS[name], tmp_path / "store", ("--images", world.images)
    built = giftwrap(*world.build_words(store, *flags))
    assert built.code == 0, built.err
    assert ("recipe" in built.out) == ("--recipe" in flags)
    assert LabelStore.open(store).bytes_per_label()["columns"] <= (36 if "cutmix" not in flags else 16)
    verified = giftwrap("pipeline", "verify", "--store", store, *images, "--weights", world.weights, "--json")
    assert verified.code == 0, verified.err
    shown = giftwrap("pipeline", "show", "--store", store, *images, "--out", tmp_path / "sheet.png")
    assert shown.code == 0, shown.err
    words = ("trainer", "train", "--store", store, *images, "--student", "convnet-d2", "--threads", 1, "--epochs", 1)
    trained = giftwrap(*words, *recipe, "--run", tmp_path / "run")
    assert trained.code == 0, trained.err
    assert "bit for bit" in trained.out
    assert ("epochs 1 (the recipe has" in trained.out) == bool(recipe)
    assert ("eval-every 1," in trained.out) == (recipe == ("--recipe", "gift"))
    again = giftwrap(*world.build_words(store))
    assert again.code == 2
    assert "plan" in again.err


def test_a_recipe_wants_its_own_store(world: World, tmp_path: Path) -> None:
    words = ("trainer", "train", "--store", world.store, "--images", world.images, "--student", "convnet-d2")
    refused = giftwrap(*words, "--recipe", "gift", "--run", tmp_path / "run")
    assert refused.code == 2
    assert "pipeline build --recipe gift" in refused.err
    assert not (tmp_path / "run" / "config.json").exists()
    unknown = giftwrap(*words, "--recipe", "rdedd", "--run", tmp_path / "run")
    assert unknown.code == 2
    assert "expected one of gift, rded, sre2l" in unknown.err
