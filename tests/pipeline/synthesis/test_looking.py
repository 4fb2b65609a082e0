"""What the teacher makes of a set: figures against plain torch, and the warning of classes in another order."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from labelstore.command.console import Console
from labelstore.spec import Json
from pipeline.synthesis.synthesize import synthesize
from tests.journeys.world import CLASSES, draw_images
from tests.pipeline.synthesis.test_sre2l import MEAN, SIDE, STD, WIDTH, convnet, recognising
from tests.pipeline.synthesis.toys import config_of


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As many as the order of classes is judged by."""
    return draw_images(tmp_path_factory.mktemp("looking") / "images", per_class=12)


@pytest.fixture(scope="module")
def weights(images: Path) -> Path:
    return recognising(images)


def made(images: Path, weights: Path, out: Path, **flags: Any) -> dict[str, Json]:
    """The summary of 12 random images, cut to the teacher's side."""
    teacher: dict[str, Any] = {
        "teacher": ("convnet-d2",), "teacher_args": (f'{{"width": {WIDTH}, "norm": "batch"}}',),
        "weights": (str(weights),), "mean": MEAN, "std": STD, "threads": 1, "batch": 8,
    }  # fmt: skip
    config = config_of(images, out, "random", 4, take="center", size=SIDE, **{**teacher, **flags})
    return dict(synthesize(config, Console()))


def test_the_end_line_has_agreement_and_the_worst_classes(images: Path, weights: Path, tmp_path: Path) -> None:
    found: Any = made(images, weights, tmp_path / "set")["teacher"]
    files = [tmp_path / "set" / name / f"{number:05d}.png" for name in CLASSES for number in range(4)]
    pixels = np.stack([np.asarray(Image.open(file)) for file in files])
    inputs = (torch.from_numpy(pixels) / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    network = convnet().eval()
    network.load_state_dict(load_file(weights))
    with torch.no_grad():
        logits = network(inputs.permute(0, 3, 1, 2)).double()
    targets = torch.arange(len(files)) // 4
    losses = cross_entropy(logits, targets, reduction="none").view(len(CLASSES), 4).mean(1)
    assert found["agreement"] == pytest.approx(100 * float((logits.argmax(1) == targets).double().mean()), abs=0.01)
    assert found["agreement"] > 90
    assert found["cross_entropy"] == pytest.approx(float(losses.mean()), abs=1e-3)
    worst = sorted(range(len(CLASSES)), key=lambda target: -losses[target])
    assert list(found["worst"]) == [CLASSES[target] for target in worst]
    assert list(found["worst"].values()) == pytest.approx([float(losses[target]) for target in worst], abs=1e-3)
    assert 0 <= found["agreement_on_crops"] <= 100


def test_classes_in_another_order_are_warned_of_before_images_are_made(
    images: Path, weights: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made(images, weights, tmp_path / "right")
    assert "warning" not in capsys.readouterr().err
    made(images, weights, tmp_path / "wrong", teacher_classes="1,2,0")
    printed = capsys.readouterr()
    assert "the teacher agrees with the folders hardly more often than chance" in printed.err
    assert "the teacher agrees with the folders on" in printed.out
