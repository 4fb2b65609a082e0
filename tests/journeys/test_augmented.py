"""A store of augmented crops through whole commands: built, verified, extended, and trained from at another size."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from labelstore import LabelStore
from tests.journeys.world import World, giftwrap


@pytest.fixture(scope="module")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two views of mixed crops with RandAugment and one kind of DSA."""
    store = tmp_path_factory.mktemp("augmented") / "store"
    ended = giftwrap(*words(world, store, views=2))
    assert ended.code == 0, ended.err
    return store


def words(world: World, store: Path, *, views: int) -> list[object]:
    more = ("--views", views, "--flip", 0, "--mix", "cutmix", "--group", 8)
    return world.build_words(store, *more, "--augment", "rand-augment=2,9", "dsa=one")


def test_it_is_verified_and_trained_from_at_both_sizes(world: World, store: Path, tmp_path: Path) -> None:
    names = LabelStore.open(store).identity.crop_columns
    assert names[7:13] == (
        "rand_augment_1", "rand_augment_2", "dsa_one_kind", "dsa_one_first", "dsa_one_second", "dsa_one_third",
    )  # fmt: skip
    verified = giftwrap("pipeline", "verify", "--store", store, "--images", world.images, "--weights", world.weights)
    assert verified.code == 0, verified.err
    for size in (16, 24):
        run = tmp_path / f"{size}"
        ended = giftwrap(
            "trainer", "train", "--store", store, "--images", world.images, "--student", "convnet-d2",
            "--student-args", '{"width": 8}', "--size", size, "--epochs", 2, "--batch-size", 12, "--loss", "soft_ce",
            "--relabel", "topk=2", "--threads", 1, "--run", run,
        )  # fmt: skip
        assert ended.code == 0, ended.err
        assert "relabel: softmax, then topk=2; the loss compares probabilities" in ended.out + ended.err
        losses = [json.loads(line)["loss"] for line in (run / "log.jsonl").read_text().splitlines()]
        assert len(losses) == 2
        assert np.isfinite(losses).all()


def test_other_numbers_are_another_plan(world: World, store: Path) -> None:
    others = [word if word != "rand-augment=2,9" else "rand-augment=2,10" for word in words(world, store, views=2)]
    ended = giftwrap(*others)
    assert ended.code == 2
    assert "rand-augment=2,10" in ended.err
