"""Networks as people write them are trained, alone and by two processes, or refused in a line before the first step."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from labelstore.console import Console
from labelstore.errors import InputError
from pipeline.networks.weights import read_weights
from tests.journeys.test_torchrun import torchrun
from tests.journeys.world import SIDE, World, draw_images, giftwrap
from tests.user_networks import FLATTENING, REFUSED, TRAINED
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.trial import Counts

HOME = "tests.user_networks"


@pytest.fixture(scope="module")
def test_images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_images(tmp_path_factory.mktemp("test") / "test", per_class=4)


@pytest.fixture
def config(world: World, tmp_path: Path, test_images: Path) -> TrainConfig:
    return TrainConfig(
        store=world.store, images=world.images, student=f"{HOME}:MLP", epochs=3, batch_size=7, run=tmp_path / "run",
        optimizer="SGD", lr=0.05, weight_decay=0, test_images=test_images, eval_every=1, threads=1,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore:.*deprecated:FutureWarning")
@pytest.mark.parametrize("name", TRAINED)
def test_each_is_trained_and_goes_on_bit_for_bit(
    name: str, config: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = {"accumulate": 2, "ema": 0.5, "clip_norm": 1.0, "dtype": "bfloat16"}
    config = dataclasses.replace(config, student=f"{HOME}:{name}", checkpoint_steps=1, **options)
    loop.train(config, Console(silent=True))
    original, left = loop.step, 5

    def dying(*args: object) -> torch.Tensor:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return original(*args)

    run = dataclasses.replace(config, run=tmp_path / "stopped")
    monkeypatch.setattr(loop, "step", dying)
    with pytest.raises(KeyboardInterrupt):
        loop.train(run, Console(silent=True))
    monkeypatch.setattr(loop, "step", original)
    loop.train(run, Console(silent=True))
    if name != "Drawing":  # the states of numpy and random are not this test's
        whole, found = (read_weights(each / "last.safetensors").tensors for each in (config.run, run.run))
        assert all(torch.equal(found[key], value) for key, value in whole.items())


@pytest.mark.parametrize("name", REFUSED)
def test_others_are_refused_before_anything_is_written(name: str, config: TrainConfig) -> None:
    with pytest.raises(InputError, match=f"{name}.*{REFUSED[name]}") as error:
        loop.train(dataclasses.replace(config, student=f"{HOME}:{name}"), Console(silent=True))
    assert "\n" not in str(error.value)
    assert not (config.run / "config.json").exists()


def words(world: World, run: Path, name: str, *more: object) -> list[object]:
    return [
        "trainer", "train", "--store", world.store, "--images", world.images, "--student", f"{HOME}:{name}",
        "--epochs", 2, "--batch-size", 7, "--threads", 1, "--run", run, "--json", *more,
    ]  # fmt: skip


BY_TWO = ("conv_net", "Auxiliary", "Unused", "Unsaved")


@pytest.mark.parametrize(
    "name", [name if name in BY_TWO else pytest.param(name, marks=pytest.mark.long) for name in TRAINED]
)
def test_two_processes_train_each(name: str, world: World, test_images: Path, tmp_path: Path) -> None:
    first, second = torchrun(
        2, words(world, tmp_path / "run", name, "--accumulate", 2, "--test-images", test_images), tmp_path / "said"
    )
    assert (first.code, second.code) == (0, 0), first.err + second.err
    assert first.summary["steps"] == 8


def test_two_processes_refuse_what_one_refuses(world: World, tmp_path: Path) -> None:
    first, second = torchrun(2, words(world, tmp_path / "run", "Carrying"), tmp_path / "said")
    assert first.code == 2
    assert "a step of 2 crops fails: Trying to backward" in first.err
    assert "Traceback" not in first.err + second.err
    assert not (tmp_path / "run" / "config.json").exists()


def test_one_crop_left_over_is_found_before_the_first_step(config: TrainConfig) -> None:
    """Of 24 images, one is left over by batches of 23; of two processes, by halves of a batch of 3."""
    for name, said in (("Whole", "more than 1 value per channel.*choose another --batch-size"), ("Squeezing", r"\[3\]")):
        with pytest.raises(InputError, match=f"{name}.*{said}"):
            loop.train(dataclasses.replace(config, student=f"{HOME}:{name}", batch_size=23), Console(silent=True))
        loop.train(
            dataclasses.replace(config, student=f"{HOME}:{name}", run=config.run / name, batch_size=22, test_images=None),
            Console(silent=True),
        )
    counts = Counts.of(dataclasses.replace(config, batch_size=3), 24, 2, [])
    assert counts.training == (1, 2)
