"""HeLlO's image update: its loss against a plain transcription, what it makes of images, and that stopping is safe."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import interpolate, mse_loss

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from pipeline.images.manifest import scan
from pipeline.images.provenance import read_pieces
from pipeline.networks import save_weights
from pipeline.ranks import Ranks
from pipeline.synthesis import recovering
from pipeline.synthesis.checking import check
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.hello_update import HelloUpdate, make_hello_update
from pipeline.synthesis.method import Made, Progress, Setting, StopRequestedError, Working
from pipeline.synthesis.synthesize import synthesize
from tests.journeys.world import draw_images
from tests.pipeline.synthesis.test_sre2l import ANYTHING
from tests.trainer.encoders import ENCODERS, Classifier, saved_encoder

SIDE, CROP = 16, 12
MEAN, STD = (0.4, 0.45, 0.5), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two classes of three and two images of one size."""
    folder = tmp_path_factory.mktemp("update") / "images"
    generator = np.random.default_rng(0)
    for name in ("a/0", "a/1", "a/2", "b/0", "b/1"):
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(0, 256, (SIDE, SIDE, 3), np.uint8)).save(path)
    return folder


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved_encoder("Cnn", tmp_path_factory.mktemp("encoder") / "cnn.safetensors")


def config_of(images: Path, weights: Path, **others: Any) -> SynthesizeConfig:
    flags: dict[str, Any] = {
        "method": "hello-update", "images": images, "out": images.parent / "set", "update_steps": 6,
        "encoder": "tests.trainer.encoders:Cnn", "encoder_weights": str(weights), "encoder_size": CROP,
        "encoder_mean": MEAN, "encoder_std": STD, "device": "cpu",
    }  # fmt: skip
    return from_flags(SynthesizeConfig, **{**flags, **others})


def opened(images: Path, weights: Path, **others: Any) -> HelloUpdate:
    manifest = scan(images)
    method = make_hello_update(
        Setting(
            config=config_of(images, weights, **others),
            manifest=manifest,
            targets=np.arange(len(manifest.classes)),
            console=Console(silent=True),
            ranks=Ranks(),
        )
    )
    assert isinstance(method, HelloUpdate)
    return method


def make(
    method: HelloUpdate,
    job: int = 0,
    file: Path = Path("/nowhere"),
    progress: Progress = lambda *_args: None,
    stopping: Callable[[], bool] = lambda: False,
) -> Made:
    return method.make(method.jobs[job], Working(file, ANYTHING, progress, stopping))


def pixels_of(path: Path) -> Any:
    return np.asarray(Image.open(path))


def loss_by_hand(weights: Path, original: Any, moved: Any, cells: int, small: int) -> float:
    """The mean over patches of MSE(E(p), E(p^)), by torch's own resizes, of one image."""
    encoder = ENCODERS["Cnn"]()
    encoder.load_state_dict(load_file(weights))
    encoder.eval()
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))

    def sized(images: torch.Tensor, size: int) -> torch.Tensor:
        return interpolate(images, size=(size, size), mode="bilinear", antialias=True)

    side, losses = SIDE // cells, []
    for row in range(cells):
        for column in range(cells):
            cut = (slice(row * side, (row + 1) * side), slice(column * side, (column + 1) * side))
            p, q = (torch.tensor(image[cut]).permute(2, 0, 1)[None] / 255 for image in (original, moved))
            copy = sized(sized(q, small), CROP)
            with torch.no_grad():
                losses.append(mse_loss(encoder((copy - mean) / std), encoder((sized(p, CROP) - mean) / std)))
    return float(torch.stack(losses).mean())


@pytest.mark.parametrize(("cells", "small"), [(1, 8), (2, 4)])
def test_the_loss_is_the_papers_and_falls(cells: int, small: int, images: Path, weights: Path) -> None:
    method = opened(images, weights, update_cells=cells, update_steps=40)
    made = make(method)
    files = sorted(images.glob("*/*"))
    assert made.pieces["sources"][:, 0].tolist() == [0, 1, 2, 3, 4]
    for index, (file, image) in enumerate(zip(files, made.images, strict=True)):
        original = pixels_of(file)
        before, after = (made.pieces[name][index] for name in ("feature_losses_before", "feature_losses"))
        assert before == pytest.approx(loss_by_hand(weights, original, original, cells, small), rel=1e-3)
        assert after == pytest.approx(loss_by_hand(weights, original, image, cells, small), rel=1e-3, abs=1e-7)
        assert after < before / 2


def test_images_begin_as_they_are_and_share_nothing_in_a_batch(images: Path, weights: Path) -> None:
    still = make(opened(images, weights, update_lr=1e-9))
    for file, image in zip(sorted(images.glob("*/*")), still.images, strict=True):
        assert np.array_equal(pixels_of(file), image)
    whole, alone = make(opened(images, weights)), make(opened(images, weights, batch=1), job=3)
    assert np.abs(np.subtract(whole.images[3], alone.images[0], dtype=np.int16)).max() <= 1


def test_each_image_has_one_unless_ipc_says_otherwise(images: Path, weights: Path) -> None:
    every = opened(images, weights, batch=2)
    assert [(job.targets.tolist(), job.numbers.tolist()) for job in every.jobs] == [
        ([0, 0], [0, 1]),
        ([0, 1], [2, 0]),
        ([1], [1]),
    ]
    first = opened(images, weights, ipc=2)
    assert [job.targets.tolist() for job in first.jobs] == [[0, 0, 1, 1]]
    with pytest.raises(InputError, match=r"at least 3 images in each class, found fewer in b \(2\)"):
        opened(images, weights, ipc=3)


@pytest.mark.parametrize("stopped_by", ["signal", "kill"])
def test_a_stopped_batch_continues_to_the_same_images(
    stopped_by: str, images: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    method, file = opened(images, weights), tmp_path / "job.working"
    whole = make(method)
    if stopped_by == "signal":
        left = iter([False, False, True])
        with pytest.raises(StopRequestedError):
            make(method, file=file, stopping=lambda: next(left))
    else:
        monkeypatch.setattr(recovering, "SAVE_SECONDS", -1.0)

        def killed(done: int, _total: int, _binding: str = "") -> None:
            if done == 4:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            make(method, file=file, progress=killed)
    with np.load(file) as kept:
        assert 0 < kept["step"] < 6
    again = make(opened(images, weights), file=file)
    assert all(map(np.array_equal, whole.images, again.images))
    assert all(np.array_equal(whole.pieces[name], again.pieces[name]) for name in whole.pieces)


def test_the_set_is_recorded_continued_and_checked(images: Path, weights: Path, tmp_path: Path) -> None:
    config = config_of(images, weights, out=tmp_path / "set", batch=2)
    found = synthesize(config, Console(silent=True))
    assert (found["images"], found["made"]) == (5, 5)
    record = json.loads((tmp_path / "set" / "synthesis.json").read_text())
    assert record["teacher"]["encoder"]["name"] == "tests.trainer.encoders:Cnn"
    assert (record["parameters"]["cells"], record["parameters"]["small"], record["fewer"]) == (1, 8, {})
    pieces = read_pieces(tmp_path / "set" / "pieces.npz")
    assert pieces.arrays["sources"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert synthesize(config, Console(silent=True))["made"] == 0
    found = check(from_flags(SynthesizeConfig, check=tmp_path / "set", images=images), Console(silent=True))
    assert (found["ok"], found["made_again"]) == (True, 0)


def test_cells_are_those_of_rdeds_collages(weights: Path, tmp_path: Path) -> None:
    real, teacher = draw_images(tmp_path / "real", per_class=4), tmp_path / "teacher.safetensors"
    save_weights(Classifier(num_classes=3).state_dict(), teacher)
    rded = from_flags(
        SynthesizeConfig, method="rded", images=real, out=tmp_path / "rded", ipc=1, size=SIDE, factor=2, pool=4,
        teacher=("tests.trainer.encoders:Classifier",), weights=(str(teacher),), teacher_args=('{"num_classes": 3}',),
        device="cpu",
    )  # fmt: skip
    synthesize(rded, Console(silent=True))
    assert opened(tmp_path / "rded", weights).parameters["cells"] == 2
    assert opened(tmp_path / "rded", weights, update_cells=1).parameters["cells"] == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"encoder": None}, "needs an encoder; give --encoder and --encoder-weights"),
        ({"encoder_size": None, "encoder_weights": "absent.pth"}, r"weights absent\.pth: no such file"),
        ({"encoder_size": None}, "--encoder-size: .* does not record which crops"),
        ({"update_cells": 3}, "--update-cells 3, --update-scale 0.5: expected patches whose side is a whole number"),
        ({"update_scale": 0.01}, "expected patches .* and smaller copies of them"),
        ({"update_scale": 1.0}, "--update-scale: expected a number above 0 and below 1, found 1.0"),
        ({"update_steps": 0}, "--update-steps: expected at least 1 step"),
        ({"iterations": 5}, "--iterations: is a flag of sre2l, found method hello-update"),
        ({"method": "random", "ipc": 1, "encoder": None, "encoder_weights": None}, "is a flag of hello-update"),
    ],
)
def test_bad_flags_are_refused_in_one_line(flags: Any, message: str, images: Path, weights: Path) -> None:
    with pytest.raises(InputError, match=message) as error:
        opened(images, weights, **flags)
    assert len(str(error.value).splitlines()) == 1


def test_encoders_without_vectors_and_images_of_several_sizes_are_refused(
    images: Path, weights: Path, tmp_path: Path
) -> None:
    maps = saved_encoder("Maps", tmp_path / "maps.safetensors")
    with pytest.raises(InputError, match="expected feature vectors"):
        opened(images, weights, encoder="tests.trainer.encoders:Maps", encoder_weights=str(maps))
    (tmp_path / "odd" / "a").mkdir(parents=True)
    for name, size in (("0", (8, 8)), ("1", (8, 6))):
        Image.new("RGB", size).save(tmp_path / "odd" / "a" / f"{name}.png")
    with pytest.raises(InputError, match=re.escape("expected a square image of 8 px, the height of the first")):
        opened(tmp_path / "odd", weights)
    assert opened(tmp_path / "odd", weights, size=8).parameters["side"] == 8


def test_pixels_that_are_no_numbers_are_named(images: Path, weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    method = opened(images, weights)
    assert method._eye is not None
    for parameter in method._eye.encoder.network.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(InputError, match=r"found NaN; give a smaller --update-lr"):
        make(method)


def test_steps_that_are_too_large_are_refused_or_warned_of(
    images: Path, weights: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"found 100 % of them at these limits; give a smaller --update-lr"):
        make(opened(images, weights, update_lr=1e30))
    monkeypatch.setattr(recovering, "MOST_CLIPPED", 1.0)
    method = opened(images, weights, update_lr=1e30, batch=1)
    method._setting = replace(method._setting, console=Console())
    for job in range(2):
        make(method, job)
    assert capsys.readouterr().err.count("the loss has not fallen") == 1
