"""Online labels: of the same boxes at the teacher's own size and normalisation, and by a recipe from end to end."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.format.columns import CropRows
from pipeline.networks import build_network, load_network, save_weights
from pipeline.networks.weights import read_weights
from pipeline.ranks import Ranks
from pipeline.teacher.engine import precision as arithmetic
from tests.journeys.world import CLASSES, SIDE, TEACHER, World, giftwrap
from trainer import train as loop
from trainer.config import TrainConfig
from trainer.material import open_material
from trainer.step import step as take_step

LARGER = 24
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
ARGS: dict[str, Any] = {"width": 8, "norm": "batch"}


@pytest.fixture(scope="module")
def larger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a teacher for crops of another size."""
    torch.manual_seed(1)
    path = tmp_path_factory.mktemp("larger") / "larger.safetensors"
    network = build_network("convnet-d2", ARGS, classes=len(CLASSES), size=LARGER)
    save_weights(network.state_dict(), path)
    return path


def by_pillow(world: World, rows: CropRows, side: int) -> Tensor:
    """The crops of some rows, by Pillow alone, normalised as the teacher's, float32 ``[n, 3, S, S]``."""
    files = [path for name in CLASSES for path in sorted((world.images / name).iterdir())]
    crops = []
    for image, (top, left, height, width), flip in zip(rows.image, rows.boxes(), rows.flip, strict=True):
        whole = Image.open(files[image]).convert("RGB")
        crop = whole.crop((left, top, left + width, top + height)).resize((side, side), Image.Resampling.BILINEAR)
        pixels = np.asarray(crop)[:, ::-1] if flip else np.asarray(crop)
        crops.append(torch.from_numpy(pixels.copy()).permute(2, 0, 1))
    scale = [torch.tensor(numbers)[:, None, None] for numbers in (MEAN, STD)]
    return (torch.stack(crops) / 255 - scale[0]) / scale[1]


@pytest.mark.parametrize("crops", ["fresh", "replayed"])
def test_a_teacher_of_another_size_and_normalisation_labels_the_same_boxes(
    crops: str, larger: Path, world: World, tmp_path: Path
) -> None:
    """Against Pillow and the network alone; a store's crops keep the normalisation of the teacher that made it."""
    flags: dict[str, Any] = {
        "images": world.images, "run_folder": tmp_path / "run", "student": "convnet-d2", "epochs": 1,
        "batch_size": 7, "threads": 1, "labels": "online", "teacher": ("convnet-d2",), "weights": (str(larger),),
        "teacher_args": (json.dumps(ARGS),), "teacher_size": LARGER, "mean": MEAN, "std": STD,
        "loss": "kl",
    }  # fmt: skip
    source = {"size": SIDE, "scale": (0.2, 1.0)} if crops == "fresh" else {"store": world.store}
    material = open_material(from_flags(TrainConfig, **flags, **source), Ranks(), None)
    network, _ = load_network("convnet-d2", ARGS, str(larger), classes=len(CLASSES), size=LARGER)
    with closing(material), closing(material.loader) as loader:
        batches = list(loader)
        for batch in batches:
            assert batch.images.shape[2:] == (SIDE, SIDE)
            rows = loader.crops.rows(int(batch.view[0]), batch.position.numpy())
            with torch.no_grad():
                wanted = network.eval()(by_pillow(world, rows, LARGER))
            torch.testing.assert_close(batch.logits, wanted, rtol=1e-3, atol=1e-4)
            assert len(batch) == 1 or (wanted - wanted.roll(1, 0)).abs().max() > 0.01
            own = by_pillow(world, rows, SIDE)
            if crops == "fresh":
                torch.testing.assert_close(batch.images, own)
            else:
                assert not torch.allclose(batch.images, own)


def test_a_recipe_with_online_labels_trains_the_student_of_its_store(world: World, tmp_path: Path) -> None:
    """GIFT's own protocol, and the stored one, from the command line: the same tensors, bit for bit."""
    teacher = ("--weights", world.weights, *TEACHER)
    both = ("--recipe", "gift", "--images", world.images, "--threads", 1)
    store, plan = tmp_path / "store", ("--size", SIDE, "--views", 2)
    more = ("--batch", 12, "--encoding", "float16", "--store", store)
    built = giftwrap("giftwrap", "build", *both, *teacher, *plan, *more)
    assert built.code == 0, built.err
    words = (
        "giftwrap", "train", *both, "--student", "convnet-d2", "--student-args", '{"width": 8}', "--epochs", 3,
        "--view-order", "cycle",
    )  # fmt: skip
    runs = tmp_path / "stored", tmp_path / "online"
    stored = giftwrap(*words, "--store", store, "--run-folder", runs[0])
    online = giftwrap(
        *words, *plan, "--labels", "online", *teacher, "--teacher-batch", 12, "--run-folder", runs[1]
    )  # fmt: skip
    assert (stored.code, online.code) == (0, 0), (stored.err, online.err)
    assert "augment dsa" in online.out
    assert "labels online" in online.out
    found, wanted = (read_weights(run / "last.safetensors").tensors for run in runs)
    assert all(torch.equal(found[name], value) for name, value in wanted.items())


def test_a_teacher_changes_nothing_for_the_student(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Settings are one for all threads: those of the teacher hold from before the first batch to the end of the run."""
    begun: list[bool] = []
    exchanged = arithmetic._exchange

    def exchange(products: Any) -> Any:
        assert not begun
        return exchanged(products)

    def step(run: Any, batch: Any) -> Any:
        begun.append(True)
        assert arithmetic._is_set("ieee")
        return take_step(run, batch)

    monkeypatch.setattr(torch.backends.cudnn, "deterministic", False)  # unlike a teacher's, whatever ran before
    monkeypatch.setattr(arithmetic, "_exchange", exchange)
    monkeypatch.setattr(loop, "step", step)
    config = from_flags(
        TrainConfig, images=world.images, run_folder=tmp_path / "run", student="convnet-d2", epochs=2, batch_size=7,
        threads=1, size=SIDE, labels="online", teacher=("convnet-d2",), weights=(str(world.weights),),
        teacher_args=(TEACHER[-1],), loss="kl",
    )  # fmt: skip
    loop.train(config, Console(silent=True))
    assert begun
    assert not arithmetic._is_set("ieee")
