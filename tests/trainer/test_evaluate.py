"""Evaluation: counting against a plain sort, images paired with their own targets, and real teachers."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.images.manifest import Manifest, scan
from pipeline.networks import build_network, load_network, save_weights
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD
from pipeline.plan.plan import PlanSpec
from pipeline.render import make_renderer
from tests.journeys.world import giftwrap
from trainer.evaluate import EvalResult, count_hits, evaluate, evaluate_network
from trainer.evaluate_config import EvaluateConfig
from trainer.metrics import ranks

SPEC = PlanSpec(size=8, crop="center", flip=0)
MEAN, STD = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)


@settings(deadline=None)
@given(st.lists(st.lists(st.sampled_from([-1.0, 0.0, 0.5, 2.0, math.nan]), min_size=3, max_size=3)), st.data())
def test_ranks_are_places_in_a_plain_sort(rows: list[list[float]], data: st.DataObject) -> None:
    targets = [data.draw(st.integers(0, 2)) for _ in rows]
    found = ranks(torch.tensor(rows).reshape(-1, 3), torch.tensor(targets, dtype=torch.int64))
    for rank, row, target in zip(found.tolist(), rows, targets, strict=True):
        if any(map(math.isnan, row)):
            assert rank >= 5
        else:
            assert rank == sorted(range(3), key=lambda c: (-row[c], c)).index(target)


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """Seven classes of plain colour, 2 to 8 images each; the red level says the class, the green the image."""
    root = tmp_path_factory.mktemp("images")
    for label in range(7):
        (root / f"class{label}").mkdir()
        for image in range(2 + label):
            Image.new("RGB", (8, 8), (30 * label, 10 * image, 0)).save(root / f"class{label}" / f"{image}.png")
    return scan(root, digests=False)


class ByRed(nn.Module):
    """A network that reads the class from the red level; it errs by one class where it is told to."""

    def __init__(self, shift: int = 0, classes: int = 7) -> None:
        super().__init__()
        self.shift, self.classes = shift, classes
        self.modes: list[bool] = []
        self.dtypes: set[torch.dtype] = set()
        self.weight = nn.Parameter(torch.eye(classes))

    def forward(self, inputs: Tensor) -> Tensor:
        self.modes.append(self.training)
        red = (inputs[:, 0, 0, 0].double() * STD[0] + MEAN[0]) * 255
        label = (red / 30).round().long()
        hot = nn.functional.one_hot((label + self.shift) % self.classes, self.classes)
        output = hot.float() @ self.weight
        self.dtypes.add(output.dtype)
        return output


@pytest.mark.parametrize("batch", [1, 5, 1000])
@pytest.mark.parametrize("training", [True, False])
def test_every_image_is_counted_once_with_its_own_target(images: Manifest, batch: int, training: bool) -> None:
    renderer = make_renderer(images, SPEC)
    network = ByRed().train(training)
    result = evaluate(network, images, SPEC, renderer, mean=MEAN, std=STD, batch=batch)
    assert (result.images, result.top1, result.top5) == (35, 100.0, 100.0)
    assert result.loss == pytest.approx(math.log(math.e + 6) - 1)  # of a one-hot logit
    assert result.class_images == result.class_hits == (2, 3, 4, 5, 6, 7, 8)
    assert not any(network.modes)
    assert network.training is training
    assert len(network.modes) == -(-35 // batch)
    wrong = evaluate(ByRed(shift=1), images, SPEC, renderer, mean=MEAN, std=STD, batch=batch)
    assert wrong.top1 == 0
    assert wrong.class_hits == (0,) * 7
    renderer.close()


def test_top5_and_shares(images: Manifest) -> None:
    """A network that always says 0, then 1, 2, ...: hits are the sizes of the first classes."""
    renderer = make_renderer(images, SPEC)
    seen: list[int] = []
    constant = -torch.arange(7.0)
    result = count_hits(lambda p: constant.expand(len(p), 7), images, SPEC, renderer, 4, seen.append)
    assert result.top1 == pytest.approx(100 * 2 / 35)
    assert result.top5 == pytest.approx(100 * (2 + 3 + 4 + 5 + 6) / 35)
    assert result.class_hits == (2, 0, 0, 0, 0, 0, 0)
    assert seen == [4] * 8 + [3]
    renderer.close()


def test_columns_of_a_wider_network(images: Manifest) -> None:
    """Class k has column 9 - k; the others are louder, and are not looked at."""
    renderer = make_renderer(images, SPEC)
    network = ByRed()
    network.weight = nn.Parameter(torch.cat([torch.full((7, 3), 2.0), torch.eye(7).flip(1)], 1))
    columns = [9 - label for label in range(7)]
    result = evaluate(network, images, SPEC, renderer, mean=MEAN, std=STD, columns=columns)
    assert (result.images, result.top1, result.top5) == (35, 100.0, 100.0)
    renderer.close()


def test_bfloat16_runs_under_autocast(images: Manifest) -> None:
    renderer = make_renderer(images, SPEC)
    network = ByRed()
    evaluate(network, images, SPEC, renderer, mean=MEAN, std=STD, dtype="bfloat16")
    assert network.dtypes == {torch.bfloat16}
    assert next(network.parameters()).dtype == torch.float32
    renderer.close()


def test_an_evaluation_leaves_no_trace_in_the_student(images: Manifest) -> None:
    network = nn.Sequential(nn.Conv2d(3, 7, 8), nn.BatchNorm2d(7), nn.Flatten())
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random = torch.get_rng_state()
    renderer = make_renderer(images, SPEC)
    evaluate(network, images, SPEC, renderer, mean=MEAN, std=STD)
    renderer.close()
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    network(torch.zeros(2, 3, 8, 8)).sum().backward()


def test_another_number_of_columns_is_refused(images: Manifest) -> None:
    renderer = make_renderer(images, SPEC)
    with pytest.raises(InputError, match=r"expected logits \[n, 7\].*found \[35, 9\]"):
        evaluate(ByRed(classes=9), images, SPEC, renderer, mean=MEAN, std=STD)
    renderer.close()


class Recorder:
    """A renderer that notes which images it was asked for."""

    id: dict[str, Json] = {}  # noqa: RUF012

    def __init__(self) -> None:
        self.asked: list[int] = []

    def render(self, rows: CropRows) -> Tensor:
        self.asked += rows.image.tolist()
        return torch.zeros(len(rows), 8, 8, 3, dtype=torch.uint8)

    def close(self) -> None:
        """Nothing is held."""


def test_images_are_read_in_manifest_order(images: Manifest) -> None:
    recorder = Recorder()
    count_hits(lambda p: torch.zeros(len(p), 7), images, SPEC, recorder, 4)
    assert recorder.asked == list(range(35))


def measure(**flags: Any) -> EvalResult:
    """What `python -m trainer evaluate` does, in this process."""
    return evaluate_network(from_flags(EvaluateConfig, **flags), Console(as_json=True))


@pytest.fixture
def weights_of_seven(tmp_path: Path) -> Path:
    """A random ConvNet of seven columns."""
    torch.manual_seed(0)
    path = tmp_path / "w.safetensors"
    save_weights(build_network("convnet-d1", {"width": 4}, 7, size=8).state_dict(), path)
    return path


def test_the_command_prints_what_the_function_finds(images: Manifest, weights_of_seven: Path) -> None:
    words = f"trainer evaluate --json --student convnet-d1 --size 8 --batch 8 --weights {weights_of_seven}"
    flags = ["--student-args", '{"width": 4}', "--images", images.location]
    flags += ["--mean", *map(str, MEAN), "--std", *map(str, STD)]
    done = giftwrap(*words.split(), *flags)
    assert done.code == 0, done.err
    network, _ = load_network("convnet-d1", {"width": 4}, str(weights_of_seven), classes=7, size=8)
    renderer = make_renderer(images, SPEC)
    result = evaluate(network, images, SPEC, renderer, mean=MEAN, std=STD, batch=8)
    renderer.close()
    assert done.summary == {"images": 35, **result.numbers}
    assert "35/35 images" in done.err


def test_the_command_names_its_own_flag(images: Manifest, weights_of_seven: Path) -> None:
    flags: dict[str, Any] = {"student": "convnet-d1", "weights": (str(weights_of_seven),), "size": 8}
    flags |= {"student_args": '{"width": 4}', "mean": MEAN, "std": STD}
    with pytest.raises(InputError, match=r"^--classes: index 9 of a network of 7 columns"):
        measure(**flags, images=Path(images.location), classes="0,2,9")
    with pytest.raises(InputError, match=r"7 class folders .*found 2 columns.*give --classes$"):
        measure(**flags, images=Path(images.location), classes="0,2")
    with pytest.raises(InputError, match="--csv: expected the name of a file in a folder that is there"):
        measure(**flags, images=Path(images.location), csv=weights_of_seven.parent / "none" / "classes.csv")


def cifar(data: Path, network: str) -> dict[str, Any]:
    """The flags of a bundled CIFAR-10 teacher on the lossless test images."""
    weights = data / "models" / f"{network.replace('cifar-', 'cifar10-')}.safetensors"
    normalisation = {"mean": IMAGENET_MEAN, "std": IMAGENET_STD}
    return {
        "student": network, "weights": (str(weights),), "images": data / "cifar10" / "test", "size": 32, **normalisation
    }  # fmt: skip


def test_a_real_teacher_sees_what_pillow_decodes(data: Path) -> None:
    flags = cifar(data, "cifar-resnet20")
    some = scan(flags["images"], digests=False)
    some = some.subset(np.arange(0, len(some), 40))
    network, _ = load_network(flags["student"], {}, flags["weights"][0], classes=10, size=32)
    pixels = np.stack([np.asarray(Image.open(some.place(image)).convert("RGB")) for image in range(len(some))])
    inputs = (torch.from_numpy(pixels).double().permute(0, 3, 1, 2) / 255 - 0.45) / 0.22
    with torch.inference_mode():
        top = network.eval().double()(inputs).topk(5).indices.numpy() == some.targets[:, None]
    spec = PlanSpec(size=32, crop="center", flip=0)
    renderer = make_renderer(some, spec)
    found = evaluate(network.float(), some, spec, renderer, mean=(0.45,) * 3, std=(0.22,) * 3)
    renderer.close()
    shares = 100 * top[:, 0].mean(), 100 * top.any(1).mean()
    assert (found.images, found.top1, found.top5) == (len(some), *map(pytest.approx, shares))
    assert 80 < found.top1 < 100


@pytest.mark.long
@pytest.mark.parametrize(("network", "correct"), [("cifar-resnet20", 9155), ("cifar-resnet56", 9320)])
def test_cifar_teachers_reach_their_accuracy(data: Path, network: str, correct: int) -> None:
    """Lossless images: rounding may turn two of them, no more."""
    result = measure(**cifar(data, network))
    assert result.images == 9980
    assert abs(round(result.top1 * 99.8) - correct) <= 2


COLUMNS = "0,217,482,491,497,566,569,571,574,701"


@pytest.mark.long
@pytest.mark.parametrize(
    ("images", "flags", "top1", "off"),
    [
        ("imagenet-samples", {"resize": 256}, 86.5, 0.5),
        ("imagenette/val", {"classes": COLUMNS}, 98.8, 0.5),
        ("imagenette/val", {"classes": COLUMNS, "resize": 256}, 98.8, 0.5),
    ],
)
def test_mobilenet_reaches_its_accuracy(
    data: Path, images: str, flags: dict[str, Any], top1: float, off: float
) -> None:
    pytest.importorskip("timm")
    result = measure(
        student="timm:mobilenetv2_100",
        student_args='{"pad_type": "same"}',
        weights=(str(data / "models" / "imagenet-mobilenetv2_100.fp16.safetensors"),),
        images=data / images,
        size=224,
        interpolation="bicubic",
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        **flags,
    )
    assert abs(result.top1 - top1) <= off + 1e-9
