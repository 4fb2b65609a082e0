"""Sets drawn from a model: prefixes of each other, whatever else is drawn; continued, checked, chosen by a teacher."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from labelstore.command.console import Console, Stopped
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.networks import build_network
from pipeline.networks.autoencoders import Pixels
from pipeline.networks.backbones import Shape
from pipeline.networks.noise import DiffusionSpec
from pipeline.networks.uvit import UViT
from pipeline.networks.weights import save_weights
from pipeline.render.normalise import normalise
from pipeline.synthesis import diffusion, making
from pipeline.synthesis.checking import check
from pipeline.synthesis.config import DiffusionOptions, SynthesizeConfig
from pipeline.synthesis.generator import description
from pipeline.synthesis.synthesize import synthesize
from tests.pipeline.synthesis.toys import tree

CLASSES, SIDE = ("ant", "bee", "cat"), 8
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model whose weights are random."""
    folder, shape = tmp_path_factory.mktemp("model"), Shape(16, 2, 2, patch=4)
    torch.manual_seed(0)
    network = UViT(shape, channels=3, size=SIDE, classes=len(CLASSES))
    save_weights(network.state_dict(), folder / "last.safetensors")
    latents: dict[str, Json] = {"mean": [0.5] * 3, "std": [0.5] * 3}
    made = description(
        classes=CLASSES,
        size=SIDE,
        backbone="uvit-xs",
        shape=shape,
        vae=Pixels(),
        spec=DiffusionSpec(noise_steps=100),
        latents=latents,
    )
    (folder / "generator.json").write_text(json.dumps(made))
    return folder


@pytest.fixture(scope="module")
def teacher(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("teacher") / "weights.safetensors"
    torch.manual_seed(1)
    save_weights(build_network("convnet-d1", {"width": 8}, classes=3, size=SIDE).state_dict(), path)
    return {
        "teacher": ("convnet-d1",), "teacher_args": ('{"width": 8}',), "weights": (str(path),), "size": SIDE,
        "mean": MEAN, "std": STD,
    }  # fmt: skip


def make(model: Path, out: Path, **flags: Any) -> Mapping[str, Json]:
    values = {"ipc": 2, "steps": 3, "image_batch": 5, "threads": 1, **flags}
    config = from_flags(SynthesizeConfig, method="diffusion", model=str(model), out=out, **values)
    return synthesize(config, Console(silent=True))


def make_with(out: Path, flags: Mapping[str, Any]) -> None:
    synthesize(from_flags(SynthesizeConfig, method="diffusion", out=out, **flags), Console(silent=True))


def images_in(folder: Path) -> dict[str, np.ndarray[Any, Any]]:
    return {path.relative_to(folder).as_posix(): np.asarray(Image.open(path)) for path in folder.rglob("*.png")}


def test_a_smaller_set_is_the_beginning_of_a_larger_one(model: Path, tmp_path: Path) -> None:
    assert make(model, tmp_path / "large", ipc=5)["images"] == 15
    make(model, tmp_path / "small", ipc=2)
    make(model, tmp_path / "one", ipc=5, drop_classes=("ant", "cat"))
    large, small, one = (images_in(tmp_path / name) for name in ("large", "small", "one"))
    assert len(small) == 6
    assert all(np.array_equal(small[name], large[name]) for name in small)
    assert {*one} == {f"bee/{number:05d}.png" for number in range(5)}
    assert all(np.array_equal(one[name], large[name]) for name in one)
    assert len({image.tobytes() for image in large.values()}) == 15
    make(model, tmp_path / "other", ipc=2, seed=1)
    assert not any(np.array_equal(image, large[name]) for name, image in images_in(tmp_path / "other").items())
    record = json.loads((tmp_path / "large" / "synthesis.json").read_text())
    assert record["parameters"]["batch"] == 5
    assert record["images"]["images"] == 0


@pytest.mark.parametrize("flags", [{}, {"guidance": 1.0, "sampler": "ddim"}, {"model_dtype": "bfloat16"}])
def test_other_batches_give_the_same_images_but_for_rounding(
    model: Path, tmp_path: Path, flags: dict[str, Any]
) -> None:
    make(model, tmp_path / "five", **flags)
    make(model, tmp_path / "seven", image_batch=7, **flags)
    five, seven = images_in(tmp_path / "five"), images_in(tmp_path / "seven")
    assert max(int(abs(five[name].astype(int) - seven[name]).max()) for name in five) <= 1


def test_a_killed_command_is_continued_to_the_same_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make(model, tmp_path / "a" / "set", ipc=4)
    job, left = making.make_job, [1, 1]

    def killed(*args: Any) -> Any:
        if not left[-1]:
            left.pop()
            raise KeyboardInterrupt
        left[-1] -= 1
        return job(*args)

    for _ in range(2):
        with monkeypatch.context() as patch:
            patch.setattr(making, "make_job", killed)
            with pytest.raises(KeyboardInterrupt):
                make(model, tmp_path / "b" / "set", ipc=4)
    assert make(model, tmp_path / "b" / "set", ipc=4)["made"] < 12
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize("select", ["ce", "kcenter"])
def test_a_teacher_chooses_among_candidates(model: Path, teacher: dict[str, Any], tmp_path: Path, select: str) -> None:
    make(model, tmp_path / "set", candidates=3, select=select, **teacher)
    make(model, tmp_path / "all", ipc=6, image_batch=5)
    network = build_network("convnet-d1", {"width": 8}, classes=3, size=SIDE)
    network.load_state_dict(load_file(teacher["weights"][0]))
    chosen, candidates = images_in(tmp_path / "set"), images_in(tmp_path / "all")
    for target, name in enumerate(CLASSES):
        whole = np.stack([candidates[f"{name}/{number:05d}.png"] for number in range(6)])
        with torch.no_grad():
            logits = network.eval()(normalise(torch.from_numpy(whole), MEAN, STD, torch.float32, channels_last=False))
        losses = torch.nn.functional.cross_entropy(logits.double(), torch.full((6,), target), reduction="none").numpy()
        kept = np.sort(np.argsort(losses)[:2]) if select == "ce" else farthest(logits.double().numpy(), 2)
        for place, candidate in enumerate(kept):  # of batches of other mates: equal but for rounding
            found = chosen[f"{name}/{place:05d}.png"].astype(int)
            assert int(abs(found - whole[candidate]).max()) <= 1
    config = from_flags(SynthesizeConfig, check=tmp_path / "set", threads=1)
    assert check(config, Console(silent=True))["ok"]


def test_candidates_that_are_drawn_are_kept_when_the_command_is_stopped(
    model: Path, teacher: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags: dict[str, Any] = {"candidates": 6, "select": "ce", "image_batch": 4, **teacher}
    make(model, tmp_path / "a" / "set", **flags)
    drawn, calls = diffusion.Diffusion._draw, [0]

    def stopped(self: Any, batch: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return drawn(self, batch)

    monkeypatch.setattr(diffusion.Diffusion, "_draw", stopped)
    with pytest.raises(Stopped):
        make(model, tmp_path / "b" / "set", **flags)
    make(model, tmp_path / "b" / "set", **flags)
    assert calls[0] == 9  # of three classes three batches each: none is drawn twice
    assert tree(tmp_path / "a") == tree(tmp_path / "b")


@pytest.mark.parametrize(
    ("ipc", "candidates", "image_batch", "expected"),
    [(10, 1, 64, 64), (10, 2, 64, 20), (50, 2, 64, 50), (1, 2, 1, 1), (10, 5, 49, 25), (7, 3, 5, 5)],
)
def test_no_more_candidates_are_drawn_than_are_chosen_from(
    ipc: int, candidates: int, image_batch: int, expected: int
) -> None:
    select: Any = "ce" if candidates > 1 else "none"
    options = DiffusionOptions(candidates=candidates, image_batch=image_batch, select=select)
    assert diffusion.batch_of(ipc, options) == expected


def farthest(points: np.ndarray[Any, Any], count: int) -> list[int]:
    """k-centres, one comparison at a time."""
    centre = sum(points) / len(points)
    chosen = [min(range(len(points)), key=lambda row: (np.linalg.norm(points[row] - centre), row))]
    while len(chosen) < count:
        others = [row for row in range(len(points)) if row not in chosen]
        away = {row: min(np.linalg.norm(points[row] - points[each]) for each in chosen) for row in others}
        chosen.append(max(others, key=lambda row: away[row]))
    return sorted(chosen)


@settings(deadline=None, max_examples=15)
@given(points=st.integers(3, 9), count=st.integers(1, 9), seed=st.integers(0, 99))
def test_centres_are_far_from_each_other(points: int, count: int, seed: int) -> None:
    features, count = np.random.default_rng(seed).normal(size=(points, 3)), min(count, points)
    assert diffusion.k_centers(features, count).tolist() == farthest(features, count)


def test_a_check_draws_every_image_again(model: Path, tmp_path: Path) -> None:
    make(model, tmp_path / "set", ipc=3)
    config = from_flags(SynthesizeConfig, check=tmp_path / "set", threads=1)
    found = check(config, Console(silent=True))
    assert (found["ok"], found["made_again"]) == (True, 9)
    pixels = np.asarray(Image.open(tmp_path / "set" / "bee" / "00001.png")).copy()
    pixels[0, 0] ^= 128
    Image.fromarray(pixels).save(tmp_path / "set" / "bee" / "00001.png")
    assert check(config, Console(silent=True))["different_images"] == 1


def test_the_rate_is_printed_beside_that_of_the_backbone(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = from_flags(
        SynthesizeConfig, method="diffusion", model=str(model), out=tmp_path / "set", ipc=1, steps=2, threads=1
    )
    synthesize(config, Console())
    line = next(text for text in capsys.readouterr().out.splitlines() if text.startswith("generated: "))
    assert "images/s in full batches of 64, files included, " in line
    assert "of what 2 calls of the backbone alone allow" in line
    assert " % of the time is decoding; " in line
    assert line.endswith("the ECCV 2024 challenge allows 10 min 00 s")


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"guidance": -1.0}, "--guidance: expected a number >= 0, found -1"),
        ({"steps": 101}, r"--steps: expected 1 to 100, .* found 101"),
        ({"steps": 0}, "--steps: expected 1 to 1,000"),
        ({"size": 16}, "--size: expected 8, the side of the model's images"),
        ({"images": Path("somewhere")}, "--images somewhere: diffusion needs none"),
        ({"candidates": 3}, "--candidates 3, --select none: expected both"),
        ({"candidates": 3, "select": "ce"}, "--select ce: needs a teacher"),
        ({"drop_classes": ("dog",)}, "found no 'dog' among them"),
        ({"vae": "taef2:/nowhere"}, "no such file"),
        ({"model": "/nowhere"}, "expected a folder of train-generator"),
        ({"model": None}, "--model: missing"),
    ],
)
def test_what_no_set_can_be_made_of_is_refused_and_leaves_nothing(
    flags: dict[str, Any], message: str, model: Path, tmp_path: Path
) -> None:
    values = {"model": str(model), "ipc": 1, "steps": 2, **flags}
    with pytest.raises(InputError, match=message):
        synthesize(
            from_flags(SynthesizeConfig, method="diffusion", out=tmp_path / "set", **values), Console(silent=True)
        )
    assert not [*tmp_path.iterdir()]


def test_latents_that_are_no_numbers_are_one_line(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(UViT, "forward", lambda _self, x, _times, _labels: torch.full_like(x, torch.nan))
    with pytest.raises(InputError, match="expected finite latents, found others"):
        make(model, tmp_path / "set")
    monkeypatch.setattr(UViT, "forward", lambda *_args: (_ for _ in ()).throw(torch.OutOfMemoryError("out of memory")))
    with pytest.raises(Exception, match=r"out of memory while images are generated .* a smaller --image-batch"):
        make(model, tmp_path / "set")
