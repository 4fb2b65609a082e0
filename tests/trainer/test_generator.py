"""Generators: trained by the loop of students, continued exactly, in pixels and in cached latents."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from labelstore.command.config_file import read_config
from labelstore.command.console import Console
from labelstore.command.flags import from_flags, values_of
from labelstore.errors import GiftwrapError, InputError, MismatchError
from labelstore.spec import Json
from pipeline.images.manifest import scan
from pipeline.ranks import Ranks
from pipeline.render import make_renderer
from pipeline.synthesis import generator as models
from pipeline.synthesis.generator import Generation, load_generator
from tests.trainer.interrupting import interrupted_after
from trainer import generator_run, generator_subject
from trainer.ema import Average
from trainer.generator_config import GeneratorConfig
from trainer.generator_run import Pace, settled, train_generator
from trainer.latents import open_latents
from trainer.schedules import ScheduleSpec, lr_factor
from trainer.stopping import StopSignals

CLASSES, IMAGES, SIDE = ("one", "three", "two"), 4, 8
TOY = '{"dim": 8, "depth": 2, "heads": 2, "conv": false}'


class Halved:
    """An autoencoder that halves the side and knows how unsure it is."""

    place, factor, channels, moments = "halved", 2, 3, True
    scaling: tuple[float, float] | None = None

    def __init__(self, weights: int = 0) -> None:
        self.identity: Mapping[str, Json] = {"name": "halved", "weights": f"{weights:064d}"}
        self.encoded = 0

    def encode(self, images: Tensor) -> Tensor:
        self.encoded += len(images)
        small = avg_pool2d(images, 2) * 4 + 1
        return torch.cat([small, small - 3], 1)

    def decode(self, latents: Tensor) -> Tensor:
        return interpolate((latents - 1) / 4, scale_factor=2).clamp(0, 1)

    def to(self, device: torch.device) -> None:
        """Nothing to move."""


@pytest.fixture
def images(tmp_path: Path) -> Path:
    draw = np.random.default_rng(5)
    for number, name in enumerate(CLASSES):
        (tmp_path / "images" / name).mkdir(parents=True)
        for image in range(IMAGES):
            pixels = draw.integers(80 * number, 80 * number + 60, (SIDE, SIDE, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{image}.png")
    return tmp_path / "images"


@pytest.fixture
def config(tmp_path: Path, images: Path) -> GeneratorConfig:
    return from_flags(
        GeneratorConfig, images=images, size=SIDE, backbone="uvit-xs", backbone_args=TOY, patch=4, epochs=4,
        batch_size=5, run_folder=tmp_path / "run", threads=1, lr=1e-2, checkpoint_every=1, sheet_every=2,
    )  # fmt: skip


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> Halved:
    vae = Halved()
    for module in (generator_subject, models):
        monkeypatch.setattr(module, "open_autoencoder", lambda _place: vae)
    return vae


def trained(config: GeneratorConfig) -> dict[str, Any]:
    return dict(train_generator(config, Console(as_json=True)))


FILES = ("last.safetensors", "best.safetensors", "generator.json", "samples-000012.png")


@pytest.mark.parametrize("latents", [False, True], ids=["pixels", "latents"])
def test_a_killed_run_is_continued_to_the_same_bytes(
    latents: bool, config: GeneratorConfig, halved: Halved, tmp_path: Path
) -> None:
    if latents:
        config = replace(config, vae="halved", patch=2)
    else:
        config = replace(config, accumulate=2, dtype="bfloat16", clip_norm=1.0)
        halved.moments, halved.factor, halved.scaling = False, 1, (0.5, 0.5)
    stopped = replace(config, run=tmp_path / "stopped")
    whole = trained(config)
    for steps in (2, 5):  # within the first and a later epoch
        with interrupted_after(steps):
            trained(stopped)
    resumed = trained(stopped)
    assert whole["steps"] == resumed["steps"] == 12
    for name in ("last", "best", "evaluations", "parameters"):
        assert resumed[name] == whole[name]
    for name in FILES:
        assert (stopped.run / name).read_bytes() == (config.run / name).read_bytes(), name
    losses = [json.loads(line)["loss"] for line in (config.run / "log.jsonl").read_text().splitlines()]
    assert len(losses) == 4
    with Image.open(config.run / FILES[-1]) as sheet:
        assert sheet.width >= len(CLASSES) * 64
    assert halved.encoded == (2 * 2 * 12 if latents else 0)  # each image and its mirror image, once a run
    assert read_config(config.run / "config.toml", GeneratorConfig)["epochs"] == config.epochs
    trained(config)
    with pytest.raises(MismatchError, match=r"--drop-labels"):
        trained(replace(config, drop_labels=0.5))


def test_a_model_is_loaded_as_it_was_trained(config: GeneratorConfig, halved: Halved) -> None:
    trained(replace(config, vae="halved", patch=2))
    model = load_generator(config.run)
    assert model.classes == CLASSES
    targets, numbers = np.array([0, 2, 1]), np.array([0, 0, 7])
    noise = model.noise(3, targets, numbers)
    assert noise.shape == (3, 3, SIDE // 2, SIDE // 2)
    assert torch.equal(model.noise(3, targets[1:], numbers[1:]), noise[1:])
    assert not torch.equal(model.noise(4, targets, numbers), noise)
    many = model.noise(0, np.zeros(400, np.int64), np.arange(400))
    assert abs(float(many.mean())) < 0.02
    assert abs(float(many.std()) - 1) < 0.02
    labels = torch.from_numpy(targets)
    made = model.images(model.latents(noise, labels, Generation(steps=3)))
    assert made.shape == (3, SIDE, SIDE, 3)
    halved.identity = Halved(1).identity
    with pytest.raises(MismatchError, match="trained on latents of another autoencoder, halved with weights 0000"):
        load_generator(config.run, vae="halved")
    with pytest.raises(InputError, match=r"expected a folder of train-generator, found no generator.json"):
        load_generator(config.images)
    description = config.run / "generator.json"
    made = json.loads(description.read_text())
    made["vae"] = {"place": "halved", **halved.identity}
    made["latents"]["mean"] += [0.0]
    description.write_text(json.dumps(made))
    with pytest.raises(InputError, match=r"cannot be read \(expected mean and std of 3 channels, found 4 and 3\)"):
        load_generator(config.run)


def test_the_classes_of_a_toy_are_learnt(config: GeneratorConfig) -> None:
    draw = np.random.default_rng(0)
    for target, name in enumerate(CLASSES):  # red, green, blue
        for path in (config.images / name).iterdir():
            pixels = draw.integers(5, 55, (SIDE, SIDE, 3))
            pixels[..., target] += 190
            Image.fromarray(pixels.astype(np.uint8)).save(path)
    values = {**values_of(config), "epochs": 150, "batch_size": 12, "flip": 0.0, "lr": 3e-3, "sheet_every": 150}
    values |= {"prediction": "v", "checkpoint_every": 150, "backbone_args": '{"dim": 32, "depth": 2, "heads": 2}'}
    trained(from_flags(GeneratorConfig, **values))
    model, targets = load_generator(config.run), np.repeat(np.arange(3), 4)
    noise = model.noise(0, targets, np.tile(np.arange(4), 3))
    images = model.images(model.latents(noise, torch.from_numpy(targets), Generation(steps=20)))
    colours = images.reshape(3, 4, -1, 3).mean((1, 2))
    others = np.where(np.eye(3, dtype=bool), 0, colours)
    assert (colours.diagonal() > others.max(1) + 50).all(), colours


def test_latents_are_made_once_for_these_images_and_this_autoencoder(config: GeneratorConfig, tmp_path: Path) -> None:
    manifest, spec, path = scan(config.images), config.plan(), tmp_path / "latents.safetensors"
    renderer = make_renderer(manifest, spec, threads=1)

    def opened(vae: Halved, images: Any = manifest) -> Any:
        return open_latents(path, images, spec, vae, renderer, torch.device("cpu"))

    vae = Halved()
    found = opened(vae)
    pixels = np.stack([np.asarray(Image.open(manifest.place(image))) for image in range(len(manifest))])
    both = torch.from_numpy(np.stack([pixels, pixels[:, :, ::-1]], 1)).flatten(0, 1).permute(0, 3, 1, 2) / 255
    expected = Halved().encode(both).unflatten(0, (-1, 2)).half()
    assert torch.equal(torch.from_numpy(np.array(found.values)), expected)
    means, spread = expected.double().chunk(2, dim=2)
    draws = means + torch.exp(spread / 2) * torch.randn(2000, *means.shape, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(found.mean, means.mean((0, 1, 3, 4)).numpy(), rtol=1e-12)
    np.testing.assert_allclose(found.std, draws.std((0, 1, 2, 4, 5), correction=0).numpy(), rtol=0.02)
    assert load_file(path)["latents"].shape == found.values.shape
    assert isinstance(found.values, np.memmap)
    before = path.read_bytes()
    assert vae.encoded == len(expected) * 2
    opened(vae)
    assert vae.encoded == len(expected) * 2
    path.write_bytes(before[:-9])  # cut off
    opened(vae)
    assert (vae.encoded, path.read_bytes()) == (len(expected) * 4, before)
    opened(Halved(1))
    assert path.read_bytes() != before  # of another autoencoder
    again = Halved(1)
    Image.fromarray(pixels[0][::-1].copy()).save(manifest.place(0))
    opened(again, scan(config.images))
    assert again.encoded == len(expected) * 2  # of other images
    path.write_bytes(b"mine")
    with pytest.raises(InputError, match="nothing of yours is removed"):
        opened(Halved(2))


def test_minutes_become_epochs_that_a_run_keeps(
    config: GeneratorConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    timed = from_flags(
        GeneratorConfig, **{**values_of(config), "epochs": 0, "minutes": 0.022, "run_folder": tmp_path / "t"}
    )
    measured, paces = generator_run.pace_of, [Pace(0.1, 0.03), Pace(0.05, 0.0)]
    monkeypatch.setattr(generator_run, "PROBED_SECONDS", 0.0)

    def measure(*args: Any) -> Pace:
        found = measured(*args)
        assert found.step > 0
        assert found.sheet > 0
        return paces.pop(0)

    monkeypatch.setattr(generator_run, "pace_of", measure)
    with interrupted_after(4):
        trained(timed)
    assert trained(timed)["epochs"] == 4  # 1.32 s of 0.1 s a step, 3 steps an epoch, 0.03 s for every second epoch
    assert len(paces) == 1
    trained(config)
    for name in FILES:
        assert (timed.run / name).read_bytes() == (config.run / name).read_bytes(), name
    assert "epochs = 4" in (timed.run / "config.toml").read_text()


@pytest.mark.parametrize("every", [None, 1, 7])
@pytest.mark.parametrize(("step", "sheet"), [(0.1, 0.0), (0.1, 2.0), (0.003, 1.0), (100.0, 1.0)])
def test_minutes_have_time_for_the_sheets_too(
    step: float, sheet: float, every: int | None, config: GeneratorConfig
) -> None:
    asked = from_flags(GeneratorConfig, **{**values_of(config), "epochs": 0, "minutes": 1.0, "sheet_every": every})

    def seconds(epochs: int) -> float:
        long = from_flags(GeneratorConfig, **{**values_of(config), "epochs": epochs, "sheet_every": every})
        return epochs * 3 * step + sheet * sum(map(long.evaluates, range(epochs)))

    found = Pace(step, sheet).epochs(asked, 3)
    assert found == 1 or seconds(found) <= 60.01
    assert all(seconds(epochs) > 59.99 for epochs in range(found + 1, found + 12))


def test_a_batch_that_is_short_is_not_timed(config: GeneratorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator_run, "PROBED_SECONDS", 0.0)
    sizes: list[int] = []
    loss = generator_subject.Denoising.loss

    def seen(self: Any, called: Any, batch: Any) -> Tensor:
        sizes.append(len(batch))
        return loss(self, called, batch)

    monkeypatch.setattr(generator_subject.Denoising, "loss", seen)
    made = generator_run.make_generator_run(
        from_flags(GeneratorConfig, **{**values_of(config), "epochs": 0, "minutes": 1.0}),
        Ranks(), StopSignals(), Console(silent=True),
    )  # fmt: skip
    made.close()
    assert {*sizes} == {5}  # of 12 images


@pytest.mark.parametrize(
    ("first", "then", "message"),
    [
        ({"epochs": 0, "steps": 6}, {"epochs": 0, "steps": 12}, r"--steps 12: .* begun with 2 epochs of 3 steps"),
        ({"epochs": 2}, {"epochs": 3}, r"--epochs 3: .* continue it with --epochs 2"),
        ({"epochs": 2}, {"epochs": 0, "steps": 30}, r"--steps 30: "),
        ({"epochs": 2}, {"epochs": 2, "batch_size": 6}, r"--batch-size"),
    ],
)
def test_another_length_is_refused_by_the_flag_that_was_typed(
    first: dict[str, Any], then: dict[str, Any], message: str, config: GeneratorConfig
) -> None:
    begun = from_flags(GeneratorConfig, **{**values_of(config), "sheet_every": None, **first})
    trained(begun)
    kept = (begun.run / "last.safetensors").read_bytes()
    with pytest.raises(MismatchError, match=message):
        trained(from_flags(GeneratorConfig, **{**values_of(begun), **then}))
    assert (begun.run / "last.safetensors").read_bytes() == kept


def test_steps_are_rounded_up_and_the_warm_up_is_a_twentieth(config: GeneratorConfig) -> None:
    long = settled(config, 1000, 3)
    assert (long.epochs, long.schedule.warmup_steps) == (1000, 150)
    assert settled(config, 10**6, 3).schedule.warmup_steps == 5_000
    assert settled(replace(config, schedule=replace(config.schedule, warmup_steps=7)), 9, 3).schedule.warmup_steps == 7
    spec = ScheduleSpec(name="constant", warmup_steps=4)
    factors = [lr_factor(spec, step, 20, steps_per_epoch=3) for step in range(6)]
    assert factors == [0.2, 0.4, 0.6, 0.8, 1, 1]
    assert spec.to_json() == {"name": "constant", "warmup_steps": 4}
    with pytest.raises(InputError, match="--warmup-steps 4: cannot be combined with --schedule-per epoch"):
        ScheduleSpec(per="epoch", warmup_steps=4)


def test_the_mean_of_a_short_run_has_a_small_decay() -> None:
    network = torch.nn.Linear(1, 1, bias=False)
    mean, expected = Average(torch.nn.Linear(1, 1, bias=False), 0.5, rising=True), 0.0
    for step in range(12):
        network.weight.data.fill_(step)
        decay = min(0.5, (1 + step) / (10 + step)) if step else 0.0
        expected = decay * expected + (1 - decay) * step
        mean.update(network)
        assert mean.network.state_dict()["weight"].item() == pytest.approx(expected, rel=1e-6)
        copy = Average(torch.nn.Linear(1, 1, bias=False), 0.5, rising=True)
        copy.load_state_dict(mean.state_dict())
        mean = copy


def test_a_loss_that_is_no_number_stops_the_run_and_keeps_what_there_was(
    config: GeneratorConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    with interrupted_after(4):
        trained(config)
    kept = (config.run / "last.safetensors").read_bytes()
    monkeypatch.setattr(generator_subject.Denoising, "of", lambda *_args: torch.tensor(torch.nan, requires_grad=True))
    with pytest.raises(GiftwrapError, match="the checkpoint of step 3 is kept"):
        trained(config)
    assert (config.run / "last.safetensors").read_bytes() == kept


def test_memory_that_does_not_suffice_names_the_batch(config: GeneratorConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    full = torch.OutOfMemoryError("out of memory")
    monkeypatch.setattr(generator_subject.Denoising, "loss", Mock(side_effect=full))
    with pytest.raises(GiftwrapError, match=r"out of memory while the generator is trained .*a smaller --batch-size"):
        trained(config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"epochs": 0}, "expected one of them, found none"),
        ({"steps": 5}, "expected one of them, found --epochs and --steps"),
        ({"epochs": 0, "minutes": -1.0}, "--minutes: expected a number > 0"),
        ({"size": 0}, "--size: expected at least 1"),
        ({"drop_labels": 1.0}, "--drop-labels"),
        ({"patch": 0}, "patch: expected a whole number"),
        ({"backbone_args": '{"wide": 1}'}, "--backbone-args: expected dim, depth"),
        ({"flip": 2.0}, "flip: expected a probability"),
        ({"sheet_every": 0}, "--sheet-every"),
        ({"ema": 1.0}, "--ema"),
    ],
)
def test_flags_that_no_run_can_have_are_refused(changes: dict[str, Any], message: str, config: GeneratorConfig) -> None:
    with pytest.raises(InputError, match=message):
        from_flags(GeneratorConfig, **{**values_of(config), **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch": 3}, "expected a side that patches of 3 divide, found 8"),
        ({"patch": 16}, "expected a side that patches of 16 divide, found 8"),
        ({"vae": "sd"}, "--vae: expected none"),
        ({"vae": "diffusers:nothing"}, "cannot be loaded|needs diffusers"),
    ],
)
def test_what_does_not_fit_is_refused_and_leaves_nothing(
    changes: dict[str, Any], message: str, config: GeneratorConfig
) -> None:
    with pytest.raises(InputError, match=message):
        trained(replace(config, **changes))
    assert not config.run.exists()


def test_an_autoencoder_divides_the_size(config: GeneratorConfig, halved: Halved) -> None:
    with pytest.raises(InputError, match=r"--size: expected a multiple of 2, by which halved makes .* found 7"):
        trained(replace(config, size=7, vae="halved"))
    assert not config.run.exists()
    assert not halved.encoded
