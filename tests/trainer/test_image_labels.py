"""One label an image: looked up under fresh crops, probabilities averaged where crops are mixed."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from labelstore import LabelStore
from labelstore.command.console import Console
from labelstore.command.flags import changed, from_flags
from labelstore.errors import GiftwrapError, InputError, MismatchError, NotStoredError
from pipeline.build.build import build
from pipeline.config import BuildConfig
from pipeline.ranks import Ranks
from tests.journeys.world import SIDE, TEACHER, VIEWS, World, draw_images, giftwrap
from trainer import train as loop
from trainer.batch import TrainBatch
from trainer.config import TrainConfig
from trainer.material import open_material

MIXES: list[dict[str, Any]] = [{}, {"mix": "cutmix", "group": 5}, {"mix": "mixup", "group": 8, "mix_per": "pair"}]


@pytest.fixture(scope="module")
def store(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One label an image, of its central crop."""
    path = tmp_path_factory.mktemp("image labels") / "store"
    build_into(world, path, views=1, crop="center", flip=0)
    return path


def build_into(world: World, path: Path, **flags: Any) -> None:
    config = from_flags(
        BuildConfig, images=world.images, teacher=("convnet-d2",), teacher_args=(TEACHER[3],),
        weights=(str(world.weights),), size=SIDE, batch=12, threads=1, encoding="float16", store=path, **flags,
    )  # fmt: skip
    build(config, Console(as_json=True))


def run_of(world: World, store: Path, folder: Path, **flags: Any) -> TrainConfig:
    values = {
        "store": store, "images": world.images, "labels": "image", "loss": "soft_ce", "student": "convnet-d2",
        "student_args": '{"width": 8}', "epochs": 2, "batch_size": 7, "run_folder": folder, "threads": 1, **flags,
    }  # fmt: skip
    return from_flags(TrainConfig, **values)


def batches_of(config: TrainConfig) -> list[TrainBatch]:
    with closing(open_material(config, Ranks(), config.views).loader) as loader:
        return list(loader.play(2))


@pytest.mark.parametrize("mix", MIXES, ids=["none", "cutmix", "mixup"])
def test_each_crop_has_its_images_label(mix: dict[str, Any], store: Path, world: World, tmp_path: Path) -> None:
    """Against probabilities in float64, of the pairs that the targets name."""
    labels = LabelStore.open(store).read(0, slice(None))
    by_image = {int(image): row for image, row in zip(labels.rows.image, labels.logits.astype(np.float64), strict=True)}
    for batch in batches_of(run_of(world, store, tmp_path / "run", **mix)):
        logits = np.stack([by_image[image] for image in batch.index.tolist()])
        if not mix:
            assert np.array_equal(batch.logits.numpy(), logits.astype(np.float32))
            continue
        found = batch.logits.double().exp().numpy()
        own = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        weight = batch.lam.double().numpy()[:, None]
        partner = (found - weight * own) / np.maximum(1 - weight, 1e-9)
        assert np.allclose(found.sum(1), 1, atol=1e-5)
        known = np.stack([np.exp(row) / np.exp(row).sum() for row in by_image.values()])
        for row in np.flatnonzero(weight[:, 0] < 0.9):
            assert np.abs(known - partner[row]).max(1).min() < 1e-4  # what is left is the label of some image


def test_the_recipe_trains_from_labels_of_whole_images_alone(store: Path, world: World, tmp_path: Path) -> None:
    words = (
        "train", "--recipe", "no-distillation", "--images", world.images, "--student", "convnet-d2",
        "--student-args", '{"width": 8}', "--epochs", 4, "--threads", 1,
    )  # fmt: skip
    ended = giftwrap("giftwrap", *words, "--store", store, "--run-folder", tmp_path / "run")
    assert ended.code == 0, ended.err
    assert "augment dsa=one" in ended.out
    flipped = tmp_path / "flipped"
    build_into(world, flipped, views=1, crop="center", flip=0.5)
    refused = giftwrap("giftwrap", *words, "--store", flipped, "--run-folder", tmp_path / "other")
    assert refused.code == 2
    assert "--recipe no-distillation trains on a store with flip 0.0, this one has 0.5" in refused.err


def test_a_student_is_trained_and_resumed(store: Path, world: World, tmp_path: Path) -> None:
    run = run_of(world, store, tmp_path / "run", mix="cutmix", group=5)
    assert loop.train(run, Console(as_json=True))["steps"] == 8
    assert loop.train(run, Console(as_json=True))["steps_now"] == 0
    made = json.loads((run.run / "config.json").read_text())["made_of"]
    assert made["labels"]["source"] == "image"
    assert made["labels"]["store"]["plan"]["crop"] == "center"
    assert made["crops"]["plan"]["mix"] == "cutmix"


def test_what_has_not_one_label_an_image_is_refused(store: Path, world: World, tmp_path: Path) -> None:
    def refused(kind: type[GiftwrapError], words: str, where: Path = store, **flags: Any) -> None:
        run = run_of(world, where, tmp_path / "run", **flags)
        with pytest.raises(kind, match=words):
            loop.train(run, Console(as_json=True))
        assert not run.run.exists()

    refused(InputError, f"expected a store of one view, found {VIEWS}.*--label-view 0", world.store)
    refused(NotStoredError, "has 1 sealed views, and no view 1", label_view=1)
    refused(MismatchError, "images", images=draw_images(tmp_path / "others", per_class=3))
    build_into(world, tmp_path / "mixed", views=1, mix="cutmix", group=8)
    refused(InputError, "are mixed", tmp_path / "mixed")
    chosen = run_of(world, world.store, tmp_path / "chosen", label_view=3)
    first = batches_of(chosen)[0]
    read = LabelStore.open(world.store).read(3, slice(None))
    by_image = dict(zip(read.rows.image.tolist(), torch.from_numpy(read.logits), strict=True))
    assert torch.equal(first.logits, torch.stack([by_image[image] for image in first.index.tolist()]))
    assert torch.equal(batches_of(changed(chosen, size=SIDE))[0].images, first.images)
