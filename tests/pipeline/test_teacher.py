"""The teacher: the same bits whatever fills the batch, and columns that are the folders."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import functional

from labelstore.errors import InputError
from pipeline.networks import build_network, load_weights, read_weights, save_weights
from pipeline.teacher.class_order import agreement, check_classes, select_columns
from pipeline.teacher.labeller import BrokenLogitsError
from pipeline.teacher.teacher import Member, Teacher, TeacherSpec, make_teacher

CLASSES = ("cat", "dog", "eel", "fox", "gnu")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a convnet with the class names CLASSES."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    network = build_network("convnet-d3", {"norm": "batch"}, len(CLASSES), size=16)
    save_weights(network.state_dict(), path, classes=CLASSES)
    return path


def teacher_of(weights: Path, folders: Sequence[str] = CLASSES, **options: Any) -> Teacher:
    spec = TeacherSpec(
        members=(Member(name="convnet-d3", args={"norm": "batch"}, weights=str(weights)),),
        **{"mean": MEAN, "std": STD, "batch": 16, **options},
    )
    return make_teacher(spec, size=16, classes=folders)


def crops(count: int, size: int = 16) -> Tensor:
    return torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("channels_last", [True, False])
def test_labels_do_not_depend_on_the_fill_of_the_batch(weights: Path, dtype: str, channels_last: bool) -> None:
    teacher = teacher_of(weights, dtype=dtype, channels_last=channels_last)
    pixels = crops(16)
    whole = teacher.logits(pixels)
    assert whole.dtype == torch.float32
    for count in (1, 5, 15, 16):
        assert torch.equal(teacher.logits(pixels[:count]), whole[:count])
    others = torch.cat([pixels[:3], crops(13)])
    assert torch.equal(teacher.logits(others)[:3], whole[:3])
    assert teacher.logits(pixels[:0]).shape == (0, 5)


@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("bfloat16", 3e-2)])
def test_logits_against_torchvision_preprocessing(weights: Path, dtype: str, tolerance: float) -> None:
    teacher = teacher_of(weights, dtype=dtype)
    network = build_network("convnet-d3", {"norm": "batch"}, len(CLASSES), size=16)
    load_weights(network, read_weights(weights))
    network.double().eval()
    pixels = crops(16)
    images = functional.normalize(pixels.permute(0, 3, 1, 2).double() / 255, list(MEAN), list(STD))
    with torch.no_grad():
        torch.testing.assert_close(teacher.logits(pixels), network(images).float(), rtol=tolerance, atol=tolerance)


def test_selected_columns(weights: Path) -> None:
    pixels = crops(4)
    whole = teacher_of(weights).logits(pixels)
    chosen = teacher_of(weights, ("fox", "cat"), classes="3,0")
    assert torch.equal(chosen.logits(pixels), whole[:, [3, 0]])
    assert (chosen.columns, chosen.class_names) == (2, ("fox", "cat"))
    assert chosen.identity["columns"] == [3, 0]
    named = teacher_of(weights, ("fox", "cat"), classes="fox, cat")
    assert dict(named.identity) == dict(chosen.identity)


def test_identity_and_engine_say_what_matters(weights: Path) -> None:
    teacher = teacher_of(weights, threads=torch.get_num_threads())
    identity, engine = teacher.identity, teacher.engine
    assert json.loads(json.dumps([identity, engine])) == [identity, engine]
    assert {**identity, "weights": None} == {
        "name": "convnet-d3",
        "args": {"norm": "batch"},
        "weights": None,
        "mean": list(MEAN),
        "std": list(STD),
        "columns": None,
        "size": 16,
    }
    assert engine["threads"] == torch.get_num_threads()
    assert str(engine["device"]).startswith("cpu ")
    assert str(weights) not in json.dumps([identity, engine])
    other = teacher_of(weights, dtype="bfloat16", batch=8)
    assert other.identity == identity
    assert {key for key in engine if engine[key] != other.engine[key]} == {"dtype", "batch"}


class Broken(nn.Module):
    """NaN for a white first pixel, infinity for a black one."""

    def forward(self, images: Tensor) -> Tensor:
        return torch.stack([torch.log(images[:, 0, 0, 0]), 1 / (1 - images[:, 0, 0, 0])], dim=1)


def test_nan_and_infinity_are_named_by_row(weights: Path) -> None:
    sound = teacher_of(weights, mean=(0, 0, 0), std=(1, 1, 1))
    teacher = dataclasses.replace(sound, run=dataclasses.replace(sound.run, network=Broken()), columns=2)
    pixels = crops(6).clamp(1, 254)
    assert teacher.logits(pixels).isfinite().all()  # padding may be anything
    pixels[2], pixels[5] = 0, 255
    with pytest.raises(BrokenLogitsError, match="gave -inf for class 0 of row 2 of a batch"):
        teacher.logits(pixels)


@pytest.mark.parametrize(
    "pixels", [crops(17), crops(3, 8), crops(3).float(), crops(3).permute(0, 3, 1, 2), crops(1)[0]]
)
def test_other_crops_are_refused(weights: Path, pixels: Tensor) -> None:
    with pytest.raises(InputError, match=r"expected uint8 \[at most 16, 16, 16, 3\], found"):
        teacher_of(weights).logits(pixels)


def test_spec_refuses_what_cannot_run(weights: Path) -> None:
    bad: list[tuple[dict[str, Any], str]] = [
        ({"dtype": "float64"}, "float64"),
        ({"std": (0.2, 0.0, 0.2)}, "above 0"),
        ({"mean": (0.2, 0.1)}, "three"),
        ({"mean": (0.2, 0.1, float("nan"))}, "0 to 1"),
        ({"batch": 0}, "batch: expected at least 1, found 0"),
        ({"threads": 0}, "threads"),
        ({"device": "gpu"}, "'gpu'"),
        ({"device": "mps"}, "'mps'"),
        ({"device": "cuda:99"}, "usable CUDA devices"),
        ({"cuda_graph": True}, "--cuda-graph: expected --device cuda, found cpu"),
        ({"members": ()}, "at least one network"),
        ({"members": (Member(name="convnet-d3", weights=str(weights), args={"size": 32}),)}, "classifier.weight"),
    ]
    for options, message in bad:
        with pytest.raises(InputError, match=message):
            make_teacher(
                TeacherSpec(**{"members": (Member(name="convnet-d3", weights=str(weights)),), **options}),
                size=16,
                classes=CLASSES,
            )


def test_networks_without_logits_are_refused(tmp_path: Path) -> None:
    torch.save({"weight": torch.zeros(3, 3, 1, 1), "bias": torch.zeros(3)}, tmp_path / "w.pt")
    args = {"in_channels": 3, "out_channels": 3, "kernel_size": 1}
    member = Member(name="torch.nn:Conv2d", args=args, weights=str(tmp_path / "w.pt"))
    spec = TeacherSpec(members=(member,))
    with pytest.raises(InputError, match=r"expected logits \[1, C\] for one crop, found \[1, 3, 8, 8\]"):
        make_teacher(spec, size=8, classes=("a", "b", "c"))
    broken = dataclasses.replace(spec, members=(dataclasses.replace(member, args={**args, "dilation": 0}),))
    with pytest.raises(InputError, match="gives no logits for crops of 8 x 8 px"):
        make_teacher(broken, size=8, classes=CLASSES)


def test_columns_must_be_the_folders(weights: Path) -> None:
    both = "--teacher-classes 3,0 to keep only these columns, or --class-columns 3,0 to keep all"
    with pytest.raises(InputError, match=rf"2 class folders \(fox, cat\), found 5 columns.*{both}"):
        teacher_of(weights, ("fox", "cat"))
    with pytest.raises(InputError, match=r"6 class folders \(a, b, c, d, e, \.\.\.\), found 5.*name the 6 columns"):
        teacher_of(weights, tuple("abcdef"))
    with pytest.raises(InputError, match=r"column 1 of the network is 'dog', folder 1 is 'eel'.*0,2,1,3,4$"):
        teacher_of(weights, ("cat", "eel", "dog", "fox", "gnu"))
    teacher_of(weights, ("cat", "eel", "dog", "fox", "gnu"), classes="0,2,1,3,4")
    (warning,) = teacher_of(weights, ("cat", "dog", "eel", "fox", "hen")).warnings
    assert "only 4 of the 5 folders" in warning
    assert teacher_of(weights).warnings == ()
    (warning,) = teacher_of(weights, tuple("abcde")).warnings
    assert (
        "no folder has the name of a class of the network: column 0 of the network is 'cat', folder 0 is 'a'" in warning
    )
    assert teacher_of(weights, tuple("abcde"), classes="1,0,2,3,4").warnings == ()
    with pytest.raises(
        InputError, match=r"column 1 of the network is 'dog', folder 1 is 'eel'; give --teacher-classes$"
    ):
        teacher_of(weights, ("cat", "eel", "fox", "gnu", "zebra"))  # one renamed moves those behind it
    (warning,) = teacher_of(weights, ("cat", "eel", "fox", "gnu", "zebra"), classes="0,2,3,4,1").warnings
    assert "only 4 of the 5 folders" in warning
    assert check_classes(range(5), None, tuple("abcde")) is None


def test_the_remedy_for_selected_columns_counts_as_the_selection_does(weights: Path) -> None:
    for selection in ("0,3", "1,2"):  # the folders' columns in another order, and others
        with pytest.raises(InputError, match=r"give --teacher-classes 3,0$"):
            teacher_of(weights, ("fox", "cat"), classes=selection)
    with pytest.raises(InputError, match=r"found 3 columns; .*give --teacher-classes 3,0$"):
        teacher_of(weights, ("fox", "cat"), classes="0,1,2")
    with pytest.raises(
        InputError, match=r"column 2 of the network is 'cat', folder 1 is 'eel'; give --class-columns 0,1"
    ):
        teacher_of(weights, ("fox", "eel"), classes="3,2,0", class_columns="0,2")


def test_class_columns_keep_the_others(weights: Path) -> None:
    pixels = crops(4)
    whole = teacher_of(weights).logits(pixels)
    for selection in ("3,0", "fox,cat"):
        teacher = teacher_of(weights, ("fox", "cat"), class_columns=selection)
        assert torch.equal(teacher.logits(pixels), whole)
        assert (teacher.columns, teacher.class_columns) == (5, (3, 0))
        assert dict(teacher.identity) == dict(teacher_of(weights).identity)
    some = teacher_of(weights, ("fox", "cat"), classes="4,3,0", class_columns="fox,cat")
    assert torch.equal(some.logits(pixels), whole[:, [4, 3, 0]])
    assert (some.columns, some.class_columns) == (3, (1, 2))
    assert teacher_of(weights).class_columns == ()


def test_many_classes_in_another_order_are_told_to_use_a_file() -> None:
    names = [f"class {i}" for i in range(200)]
    with pytest.raises(InputError, match="a file with the folder names"):
        check_classes(range(200), names, names[::-1])


@given(st.lists(st.integers(0, 999), min_size=1, max_size=1000, unique=True))
def test_indexes_select_themselves(columns: list[int]) -> None:
    assert select_columns(",".join(map(str, columns)), None, 1000) == tuple(columns)


def test_selecting_columns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = ("cat", "crane", "a,b", "crane", "7")
    Path("list.txt").write_bytes(b"\xef\xbb\xbfa,b\r\n\r\n cat \r\n4\n")
    Path("3").write_text("cat")
    for selection, expected in (("list.txt", (2, 0, 4)), ("3", (3,)), ("cat", (0,)), ("cat, 2,", (0, 2))):
        assert select_columns(selection, names, 5) == expected
    Path("bytes").write_bytes(b"\xff\xfe\x00")
    Path("empty").touch()
    bad = [
        ("0,5", "index 5 of a network of 5 columns; expected 0 to 4"),
        ("0,1,0", r"columns \[0\] more than once"),
        ("crane,cat", r"'crane' names the columns \[1, 3\]"),
        ("cats", "none of the network's 5 classes; near it: cat"),
        ("x" * 5000, "not a readable text file|none of"),
        ("bytes", "not a readable text file"),
        ("empty", "no class at all"),
        ("-1", "'-1'"),
    ]
    for selection, message in bad:
        with pytest.raises(InputError, match=message):
            select_columns(selection, names, 5)
    with pytest.raises(InputError, match=r"--classes: 'cat' is no index and no file.*unknown"):
        select_columns("cat", None, 5, flag="--classes")


def choices_to_logits(choices: np.ndarray, classes: int) -> np.ndarray:
    return np.eye(classes, dtype=np.float32)[choices]


@pytest.mark.parametrize(
    ("classes", "accuracy", "warns"),
    [
        (10, 0.9, False),
        (10, 0.3, False),
        (10, 0.1, True),
        (10, 0.0, True),
        (2, 0.9, False),
        (2, 0.55, True),
        (1000, 0.1, False),
        (1000, 0.001, True),
    ],
)
def test_agreement_near_chance_warns(classes: int, accuracy: float, warns: bool) -> None:
    random = np.random.default_rng(0)
    targets = random.integers(0, classes, 4096)
    right = random.random(4096) < accuracy
    choices = np.where(right, targets, (targets + random.integers(1, classes, 4096)) % classes)
    report = agreement(choices_to_logits(choices, classes), targets, [f"c{i}" for i in range(classes)])
    assert report.top1 == pytest.approx(100 * right.mean())
    assert report.chance == pytest.approx(100 / classes)
    assert (report.warning is not None) == warns
    assert f"{report.top1:.2f} % of 4,096 crops" in report.text


def test_few_crops_say_nothing() -> None:
    assert agreement(np.eye(10)[:5], np.arange(5)[::-1], [f"c{i}" for i in range(10)]).warning is None


@pytest.mark.parametrize(("ours", "theirs"), [("bytes", "numeric"), ("numeric", "bytes")])
@pytest.mark.parametrize("count", [11, 100])
def test_the_other_order_of_integer_folders_is_named(ours: str, theirs: str, count: int) -> None:
    names = [str(i) for i in range(count)]
    orders = {"numeric": names, "bytes": sorted(names)}
    random = np.random.default_rng(1)
    targets = random.integers(0, count, 4096)
    choices = np.array([orders[theirs].index(name) for name in orders[ours]])[targets]
    choices = np.where(random.random(4096) < 0.8, choices, random.integers(0, count, 4096))
    report = agreement(choices_to_logits(choices, count), targets, orders[ours])
    assert report.warning is not None
    assert f"--class-order {theirs}" in report.warning
    right = agreement(choices_to_logits(choices, count), targets, orders[theirs])
    assert right.warning is None or f"--class-order {theirs}" not in right.warning


# Real teachers on real images.


def label(teacher: Teacher, pixels: list[np.ndarray]) -> np.ndarray:
    stacked = torch.from_numpy(np.stack(pixels))
    return np.concatenate([teacher.logits(part).numpy() for part in stacked.split(teacher.batch)])


def first_of_each(folder: Path, count: int, classes: int | None = None) -> tuple[list[Path], np.ndarray, list[str]]:
    folders = sorted(path for path in folder.iterdir() if path.is_dir())[:classes]
    files = [file for path in folders for file in sorted(path.iterdir())[:count]]
    return files, np.repeat(np.arange(len(folders)), count), [path.name for path in folders]


@pytest.mark.parametrize(("depth", "accuracy"), [(20, 91.73), (56, 93.39)])
def test_cifar_teachers_reach_their_accuracy(data: Path, depth: int, accuracy: float) -> None:
    files, targets, classes = first_of_each(data / "cifar10" / "test", 40)
    weights = data / "models" / f"cifar10-resnet{depth}.safetensors"
    spec = TeacherSpec(members=(Member(name=f"cifar-resnet{depth}", weights=str(weights)),), batch=128)
    teacher = make_teacher(spec, size=32, classes=classes)
    logits = label(teacher, [np.asarray(Image.open(file).convert("RGB")) for file in files])
    report = agreement(logits, targets, classes)
    assert abs(report.top1 - accuracy) < 4 * 100 * (0.92 * 0.08 / len(files)) ** 0.5
    assert report.warning is None
    swapped = agreement(logits[:, ::-1], targets, classes)
    assert swapped.warning is not None


def mobilenet(data: Path, classes: Sequence[str], selection: str | None) -> Teacher:
    pytest.importorskip("timm")
    member = Member(
        name="timm:mobilenetv2_100",
        args={"pad_type": "same"},
        weights=str(data / "models" / "imagenet-mobilenetv2_100.fp16.safetensors"),
    )
    spec = TeacherSpec(
        members=(member,),
        classes=selection,
        mean=(0.5, 0.5, 0.5),
        std=(0.5, 0.5, 0.5),
        batch=20,
    )
    return make_teacher(spec, size=224, classes=classes)


def test_imagenet_teacher_on_ten_columns(data: Path) -> None:
    files, targets, classes = first_of_each(data / "imagenette" / "val", 6)
    columns = "0,217,482,491,497,566,569,571,574,701"
    with pytest.raises(InputError, match=r"10 class folders.*1000 columns.*--teacher-classes"):
        mobilenet(data, classes, None)
    teacher = mobilenet(data, classes, columns)
    assert dict(mobilenet(data, classes, "imagenet").identity) == dict(teacher.identity)
    logits = label(teacher, [np.asarray(Image.open(file).convert("RGB")) for file in files])
    assert agreement(logits, targets, classes).top1 >= 93  # 98.8 % on all


def test_imagenet_teacher_on_all_columns(data: Path) -> None:
    files, targets, classes = first_of_each(data / "imagenet-samples", 1)
    pixels = []
    for file in files[::20]:
        image = Image.open(file).convert("RGB")
        scale = 256 / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        left, top = (image.width - 224) // 2, (image.height - 224) // 2
        pixels.append(np.asarray(image.crop((left, top, left + 224, top + 224))))
    report = agreement(label(mobilenet(data, classes, None), pixels), targets[::20], classes)
    assert report.top1 >= 66  # 86.5 % on all, less 4 standard deviations of 50 images
    assert report.warning is None
