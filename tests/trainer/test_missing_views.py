"""Views that lack blocks are not trained on; adopted labels and the largest columns alone are refused by name."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from labelstore import LabelStore
from labelstore.errors import InputError, NotStoredError
from labelstore.operations.convert import converted_block
from labelstore.operations.repair import repair
from pipeline.replay.source import open_source
from tests.journeys.world import World, giftwrap
from trainer import Replay
from trainer.losses import LossSpec
from trainer.replay import in_runs, normalisation_of


@pytest.fixture
def broken(world: World, tmp_path: Path) -> LabelStore:
    """The finished store without its last block."""
    path = tmp_path / "store"
    shutil.copytree(world.store, path)
    last = LabelStore.open(path).sealed_blocks()[-1]
    shard = path / f"labels/c.{last.i}.{last.j}.0"
    data = bytearray(shard.read_bytes())
    data[3] ^= 1
    shard.write_bytes(data)
    assert repair(path).removed == (last,)
    return LabelStore.open(path)


def test_views_that_lack_a_block_are_not_played_and_the_others_are(world: World, broken: LabelStore) -> None:
    first, stop = broken.block_views(broken.missing()[0])
    with pytest.raises(NotStoredError, match=rf"views {in_runs(range(first, stop))} lack blocks .* --views {first}$"):
        Replay(broken, world.images, batch_size=8)
    replay = Replay(broken, world.images, batch_size=8, views=first)
    assert sum(len(batch) for batch in replay) == broken.identity.images
    replay.close()


def test_the_build_fills_them_and_all_views_are_played(world: World, broken: LabelStore) -> None:
    ended = giftwrap(*world.build_words(broken.path))
    assert ended.code == 0, ended.err
    replay = Replay(broken.path, world.images, batch_size=8)
    assert replay.order.views == broken.state.views_sealed
    replay.close()


@pytest.mark.parametrize(
    ("numbers", "words"), [([3], "3"), ([0, 1, 2], "0 to 2"), ([0, 2, 3, 4, 9], "0, 2 to 4, 9"), ([5, 7], "5, 7")]
)
def test_runs_of_views_in_words(numbers: list[int], words: str) -> None:
    assert in_runs(numbers) == words


@pytest.mark.parametrize("name", ["gift", "cosine", "mse", "mse+ce"])
def test_losses_on_all_logits_refuse_the_largest_columns_alone(name: Any) -> None:
    with pytest.raises(InputError, match=r"needs the logits of all columns.*content topk"):
        LossSpec(name=name).require_content("topk")
    LossSpec(name=name).require_content("logits")


@pytest.mark.parametrize("name", ["kl", "soft_ce", "soft_ce+ce", "ce"])
def test_losses_on_probabilities_take_them(name: Any) -> None:
    LossSpec(name=name).require_content("topk")


def adopted(store: Path, into: Path, **unknown: Any) -> LabelStore:
    """The same labels as a store that somebody else made."""
    source = LabelStore.open(store)
    identity = replace(source.identity, origin="adopted", **unknown)
    copy = LabelStore.create(
        into, identity, image_digests=source.image_digests, targets=source.targets, views=source.state.views_sealed
    )
    with copy.lease() as writer:
        for block in copy.missing():
            views = range(*copy.block_views(block))
            labels = iter([source.read(view, slice(*copy.positions(block))) for view in views])
            writer.write(block, replace(converted_block(source, copy, block, labels), codes=None))
        writer.seal()
    return copy


def test_labels_without_a_plan_cannot_be_replayed(world: World, tmp_path: Path) -> None:
    store = adopted(world.store, tmp_path / "adopted", plan=None)
    with pytest.raises(InputError, match="plan: the labels of this store were made elsewhere, and their plan is not"):
        open_source(store, world.images)


def test_labels_without_a_teacher_are_trained_on_with_a_normalisation_that_is_given(
    world: World, tmp_path: Path
) -> None:
    store = adopted(world.store, tmp_path / "adopted", teacher=None, engine=None)
    with pytest.raises(InputError, match="teacher: the labels of this store were made elsewhere"):
        Replay(store, world.images, batch_size=8)
    assert normalisation_of(store, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)) == ((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    replay = Replay(store, world.images, batch_size=8, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    batch = next(iter(replay))
    wanted = LabelStore.open(world.store).read(int(batch.view[0]), batch.position.numpy()).logits
    assert np.abs(batch.logits.numpy() - wanted).max() < 0.1
    replay.close()
