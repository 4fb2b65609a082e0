"""Several checkpoints on the same images: a row each, against plain torch."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
from PIL import Image

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from pipeline.networks import build_network, save_weights
from tests.journeys.world import CLASSES, giftwrap
from trainer.checkpoints import compare_checkpoints
from trainer.evaluate_config import EvaluateConfig

SIDE, MEAN, STD = 8, (0.5, 0.4, 0.3), (0.25, 0.3, 0.35)
FLAGS = {"student": "convnet-d1", "student_args": '{"width": 4}', "size": SIDE, "mean": MEAN, "std": STD, "threads": 1}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, torch.Tensor, torch.Tensor]:
    """Images of the network's own side, and their pixels and targets."""
    folder = tmp_path_factory.mktemp("checkpoints")
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (15, SIDE, SIDE, 3), dtype=torch.uint8, generator=generator)
    for number, each in enumerate(pixels):
        place = folder / "images" / CLASSES[number // 5]
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(each.numpy()).save(place / f"{number:02d}.png")
    for epoch in (1, 2, 10):
        torch.manual_seed(epoch)
        network = build_network("convnet-d1", {"width": 4}, 3, size=SIDE)
        save_weights(network.state_dict(), folder / f"epoch-{epoch}.safetensors")
    return folder, pixels, torch.arange(15) // 5


def test_rows_are_those_of_plain_torch(places: tuple[Path, torch.Tensor, torch.Tensor], tmp_path: Path) -> None:
    folder, pixels, targets = places
    flags = {**FLAGS, "images": folder / "images", "batch": 4, "csv": tmp_path / "rows.csv"}
    config = from_flags(EvaluateConfig, weights=(f"{folder}/epoch-*.safetensors",), **flags)
    rows = compare_checkpoints(config, Console(silent=True))
    assert [Path(row.weights).name for row in rows] == [f"epoch-{epoch}.safetensors" for epoch in (1, 2, 10)]
    logits = []
    images = (pixels.double() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    for row in rows:
        torch.manual_seed(int(Path(row.weights).stem.partition("-")[2]))
        network = build_network("convnet-d1", {"width": 4}, 3, size=SIDE).double().eval()
        with torch.no_grad():
            logits.append(network(images.permute(0, 3, 1, 2)))
    for row, found in zip(rows, logits, strict=True):
        probability = found.softmax(1)
        assert row.top1 == pytest.approx(100 * float((found.argmax(1) == targets).double().mean()))
        assert row.top5 == 100
        assert row.loss == pytest.approx(float(torch.nn.functional.cross_entropy(found, targets)), rel=1e-4)
        assert row.entropy == pytest.approx(float(-(probability * probability.log()).sum(1).mean()), rel=1e-4)
        agreement = 100 * float((found.argmax(1) == logits[-1].argmax(1)).double().mean())
        assert row.agreement == pytest.approx(agreement, abs=1e-4)
    with (tmp_path / "rows.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [float(line["entropy"]) for line in table] == pytest.approx([row.entropy for row in rows], abs=1e-4)


def test_the_command_prints_a_row_each(places: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    folder, _, _ = places
    words = ["trainer", "evaluate", "--student", "convnet-d1", "--student-args", '{"width": 4}', "--size", SIDE,
             "--mean", *MEAN, "--std", *STD, "--images", folder / "images", "--weights"]  # fmt: skip
    several = [folder / "epoch-2.safetensors", folder / "epoch-1.safetensors"]
    ended = giftwrap(*words, *several, "--json")
    assert ended.code == 0, ended.err
    assert [row["weights"] for row in ended.summary["checkpoints"]] == [str(file) for file in several]
    assert ended.summary["checkpoints"][-1]["agreement"] == 100
    ended = giftwrap(*words, folder / "step-*.safetensors")
    assert (ended.code, ended.err.count("\n")) == (2, 1)
    assert "matches no file" in ended.err


def test_a_checkpoint_of_another_network_is_named(places: tuple[Path, torch.Tensor, torch.Tensor]) -> None:
    folder, _, _ = places
    other = folder / "other.safetensors"
    save_weights(build_network("convnet-d1", {"width": 5}, 3, size=SIDE).state_dict(), other)
    files = (str(folder / "epoch-1.safetensors"), str(other))
    config = from_flags(EvaluateConfig, weights=files, images=folder / "images", **FLAGS)
    with pytest.raises(InputError, match=r"other\.safetensors"):
        compare_checkpoints(config, Console(silent=True))
