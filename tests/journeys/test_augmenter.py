"""A store whose crops DALI made: every command uses it without a flag."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import pytest
import torch

from labelstore import LabelStore
from pipeline.render import augmenter_of, dali, dali_crops
from pipeline.render.normalise import normalise
from pipeline.replay.source import open_source
from tests.journeys.world import World, giftwrap
from trainer.replay import Replay

pytestmark = pytest.mark.skipif(dali.load() is None, reason="no DALI here")


def test_a_store_made_by_dali_is_verified_shown_extended_and_trained_with(world: World, tmp_path: Path) -> None:
    store = tmp_path / "store"
    words = (store, "--augmenter", "dali", "--mix", "cutmix", "--group", 4)
    planned = giftwrap(*world.build_words(*words, "--views", 1, "--dry-run"))
    assert planned.code == 0, planned.err
    built = giftwrap(*world.build_words(*words, "--views", 1))
    assert built.code == 0, built.err
    views = LabelStore.open(store).state.views_sealed
    extended = giftwrap(*world.build_words(store, "--mix", "cutmix", "--group", 4, "--views", views + 1))
    assert extended.code == 0, extended.err
    opened = LabelStore.open(store)
    assert opened.state.views_sealed > views
    assert augmenter_of(opened.identity.require("renderer")) == "dali"
    assert len(opened.state.versions) == 1

    own = ("--store", store, "--images", world.images)
    verified = giftwrap("pipeline", "verify", *own, "--weights", world.weights, "--threads", 1, "--json")
    assert verified.code == 0, verified.err
    assert verified.summary["pixels_equal"] is True
    other = giftwrap("pipeline", "verify", *own, "--augmenter", "pillow", "--json")
    assert "Traceback" not in other.err
    assert other.summary.get("pixels_equal", False) is False

    sheet = giftwrap("pipeline", "show", *own, "--out", tmp_path / "sheet.png", "--count", 6)
    assert sheet.code == 0, sheet.err
    run = ("--student", "convnet-d2", "--epochs", 1, "--batch-size", 8)
    trained = giftwrap("trainer", "train", *own, *run, "--run", tmp_path / "run", "--test-images", world.images)
    assert trained.code == 0, trained.err
    assert "bit for bit" in trained.out + trained.err
    fresh = giftwrap(
        "trainer", "train", "--images", world.images, *run, "--run", tmp_path / "fresh", "--labels", "none", "--loss",
        "ce", "--size", 16, "--augmenter", "dali",
    )  # fmt: skip
    assert fresh.code == 0, fresh.err


def test_batches_that_are_streamed_have_their_own_crops_and_labels(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = tmp_path / "store"
    built = giftwrap(*world.build_words(store, "--augmenter", "dali", "--mix", "cutmix", "--group", 4, "--views", 2))
    assert built.code == 0, built.err
    monkeypatch.setattr(dali_crops, "CHUNK_CROPS", 5)  # several under way
    source = open_source(store, world.images, threads=1)
    with closing(source), closing(Replay(store, world.images, batch_size=7, threads=1)) as replay:
        batches = [batch for _ in range(2) for batch in replay]
        assert len(batches) == 8
        for batch in batches:
            view, positions = int(batch.view[0]), batch.position.numpy()
            pixels = source.crops(view, 0, 24)[batch.position]
            wanted = normalise(pixels, replay.crops.mean, replay.crops.std, torch.float32, channels_last=False)
            assert torch.equal(batch.images, wanted)
            stored = torch.from_numpy(source.store.read(view, positions).logits)
            assert torch.equal(batch.logits, stored.float())


def test_a_decoder_of_a_gpu_is_refused_without_one(world: World, tmp_path: Path) -> None:
    ended = giftwrap(*world.build_words(tmp_path / "store", "--augmenter", "dali", "--decoder", "gpu"))
    assert ended.code == 2
    assert "works on a GPU" in ended.err
    assert not (tmp_path / "store").exists()
