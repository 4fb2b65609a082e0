"""What weights were trained with: their record, networks' own configurations, and normalisations that cannot be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from labelstore.durable.removing import require
from labelstore.errors import InputError
from pipeline.networks import read_weights, save_weights
from pipeline.networks.normalisation import exchanged, require_normalisation
from pipeline.networks.settling import normalisation, require_network
from pipeline.networks.trained import RECORD_KEY, Trained, own_configuration, recorded_in, same_network
from pipeline.networks.weights import packed, weights_like

STATE = {"b": torch.arange(3.0), "a": torch.zeros(2, 2)}
RECORD = Trained(
    source="run",
    version="0.2.0",
    network="convnet-d3",
    args={"width": 16, "norm": "batch"},
    size=32,
    mean=(0.1, 0.2, 0.3),
    std=(0.4, 0.5, 0.6),
    resize=36,
    interpolation="bicubic",
    columns=3,
    classes=("ä", "b\n", "c"),
    class_columns=(2, 0, 1),
)
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def test_a_record_is_read_again_and_its_bytes_do_not_change(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    contents = {packed(STATE, None, RECORD) for _ in range(5)}
    assert len(contents) == 1
    save_weights(STATE, path, trained=RECORD)
    found = recorded_in(str(path))
    assert found is not None
    assert {**found.to_json()} == {**RECORD.to_json()}
    assert found.source == str(path)
    assert read_weights(path).class_names == ("b\n", "c", "ä")
    with safe_open(path, framework="pt") as file:
        assert list(file.metadata()) == [RECORD_KEY]


def test_columns_without_a_class_leave_the_others_without_names() -> None:
    assert Trained(source="", columns=4, classes=("a", "b"), class_columns=(3, 1)).column_names is None
    assert Trained(source="", columns=2, classes=("a", "b")).column_names == ("a", "b")
    assert Trained(source="").column_names is None


@pytest.mark.parametrize(
    "record",
    ["[]", "7", "{", '{"size": "32"}', '{"size": true}', '{"size": -1}', '{"mean": [1, 2]}', '{"mean": [0, 0, NaN]}',
     '{"mean": 3}', '{"classes": [1]}', '{"classes": ["a"], "class_columns": [0, 1]}', '{"class_columns": ["a"]}',
     '{"args": []}', '{"network": 3}', '{"std": ["x", "y", "z"]}', "[" * 100_000],
)  # fmt: skip
def test_another_record_under_the_key_is_refused_by_name(record: str, tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path, {RECORD_KEY: record})
    for read in (lambda: recorded_in(str(path)), lambda: read_weights(path)):
        with pytest.raises(InputError, match=r"w\.safetensors.*'giftwrap'"):
            read()


def test_a_record_of_a_later_version_may_say_more(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(STATE, path, {RECORD_KEY: json.dumps({"size": 8, "mood": "good"})})
    found = recorded_in(str(path))
    assert found is not None
    assert found.size == 8


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("record") / "w.safetensors"


@given(st.one_of(st.binary(max_size=60), st.binary(max_size=60).map(lambda b: len(b).to_bytes(8, "little") + b)))
def test_other_files_have_no_record(file: Path, content: bytes) -> None:
    file.write_bytes(content)
    assert recorded_in(str(file)) is None
    assert recorded_in("timm:pretrained") is None


def test_weights_are_written_over_weights_of_the_same_network_alone(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    ours = packed(STATE, None, RECORD)
    other = {"b": torch.ones(3), "a": torch.ones(2, 2)}
    names = list(RECORD.column_names or ())
    older = Trained.of_json({**RECORD.to_json(), "version": "0.1.9"}, "")
    for kept in (packed(other, None, RECORD), packed(other, names), packed(other, None, older)):
        path.write_bytes(kept)
        require(path, weights_like(ours))
    elsewhere = Trained.of_json({**RECORD.to_json(), "size": 64}, "")
    long = {"b": torch.ones(4), "a": torch.ones(2, 2)}
    for refused in (
        packed(other, None, elsewhere), packed(other, names[::-1]), packed(other, None), packed(long, None, RECORD),
        ours + b"\0", ours[:-1], b"", b"\xff" * 20, b"\x02" + bytes(7) + b"[]", b"mine",
    ):  # fmt: skip
        path.write_bytes(refused)
        with pytest.raises(InputError):
            require(path, weights_like(ours))
    save_file(other, path, {"format": "pt"})
    with pytest.raises(InputError):
        require(path, weights_like(packed(STATE, None)))


# --- normalisations ---

NORMALISATIONS = {
    "ImageNet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "CIFAR-10": ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)),
    "Inception": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "CLIP": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "none": ((0, 0, 0), (1, 1, 1)),
    "pixels of 0 to 255": ((0, 0, 0), (1 / 255, 1 / 255, 1 / 255)),
    "Caffe's means": ((123.68 / 255, 116.78 / 255, 103.94 / 255), (1 / 255, 1 / 255, 1 / 255)),
    "MNIST, one channel": ((0.1307,), (0.3081,)),
}


@pytest.mark.parametrize("name", NORMALISATIONS)
def test_normalisations_in_use_are_taken(name: str) -> None:
    require_normalisation(*NORMALISATIONS[name])


@pytest.mark.parametrize(
    ("mean", "std", "said"),
    [
        ((123.7, 116.3, 103.5), (0.2, 0.2, 0.2), r"--mean: .* divide by 255, --mean 0\.4851 0\.4561 0\.4059"),
        ((0.485, 0.456, 0.406), (58.4, 57.1, 57.4), r"--std: .* divide by 255, --std 0\.229 0\.2239 0\.2251"),
        ((0.4, 0.4, 103.5), (0.2, 0.2, 0.2), r"divide by 255, --mean 0\.4 0\.4 0\.4059"),
        ((-0.1, 0.4, 0.4), (0.2, 0.2, 0.2), "--mean: expected numbers 0 to 1.*was trained with"),
        ((0.5, 0.5, 0.5), (0.2, 0, 0.2), "--std: expected numbers above 0, up to 1"),
        ((0.5, 0.5, 0.5), (0.2, -0.2, 0.2), "--std"),
        ((0.5, 0.5, float("nan")), (0.2, 0.2, 0.2), "--mean"),
        ((0.5, 0.5, 0.5), (0.2, 0.2, float("inf")), "--std"),
        ((300.0, 300.0, 300.0), (0.2, 0.2, 0.2), "--mean: .*was trained with"),
    ],
)
def test_what_pixels_cannot_have_is_refused_and_the_form_named(mean: Any, std: Any, said: str) -> None:
    with pytest.raises(InputError, match=said):
        require_normalisation(mean, std)


@given(st.tuples(*[st.integers(0, 255)] * 3 * 8).map(lambda v: [v[i : i + 3] for i in range(0, 24, 3)]))
def test_means_and_deviations_of_images_are_taken(images: list[tuple[int, ...]]) -> None:
    pixels = torch.tensor(images).double() / 255
    std = pixels.std(0, correction=0)
    require_normalisation(pixels.mean(0).tolist(), std.clamp(min=1e-9).tolist())
    assert exchanged(pixels.mean(0).tolist(), std.clamp(min=1e-9).tolist()) is None


def test_exchanged_means_and_deviations_are_doubted() -> None:
    doubted = [name for name, (mean, std) in NORMALISATIONS.items() if exchanged(std, mean)]
    assert doubted == ["ImageNet", "CIFAR-10", "CLIP", "Caffe's means"]  # others are conventions
    assert not any(exchanged(*each) for each in NORMALISATIONS.values())
    told = normalisation({"mean": (0.229, 0.224, 0.225), "std": (0.485, 0.456, 0.406)}, [None]).warnings
    assert "exchanged they could be right" in told[0]


# --- what networks say of themselves ---


def test_timm_and_torchvision_say_what_their_weights_take() -> None:
    pytest.importorskip("timm")
    found = own_configuration("timm:vit_tiny_patch16_224", {}, "w.safetensors")
    assert found is not None
    assert (found.mean, found.std, found.size) == ((0.5,) * 3, (0.5,) * 3, 224)
    assert (found.interpolation, found.resize) == ("bicubic", 249)
    changed: dict[str, Any] = {"pretrained_cfg_overlay": {"mean": [0.1, 0.2, 0.3]}}
    overlaid = own_configuration("timm:vit_tiny_patch16_224", changed, "w.safetensors")
    assert overlaid is not None
    assert overlaid.mean == (0.1, 0.2, 0.3)
    swag = own_configuration("torchvision:vit_b_16", {}, "torchvision:IMAGENET1K_SWAG_E2E_V1")
    assert swag is not None
    assert (swag.size, swag.resize, swag.interpolation, swag.mean) == (384, 384, "bicubic", IMAGENET["mean"])
    for name, weights in (
        ("timm:no_such", "w"), ("torchvision:resnet18", "w"), ("convnet-d3", "w"),
        ("torchvision:no_such", "torchvision:DEFAULT"), ("torchvision:resnet18", "torchvision:NONE"),
    ):  # fmt: skip
        assert own_configuration(name, {}, weights) is None


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("convnet-d3", "convnet-d3", True),
        ("convnet-d3", "convnet-d4", False),
        ("timm:vit_tiny_patch16_224", "timm:vit_tiny_patch16_224.augreg_in21k", True),
        ("timm:resnet18", "torchvision:resnet18", False),
        ("mine:Net", "package.mine:Net", True),
        ("mine:Net", "mine:Other", False),
        ("mine:resnet18", "torchvision:resnet18", False),
    ],
)
def test_the_same_network_under_two_names(one: str, other: str, same: bool) -> None:
    assert same_network(one, other) is same_network(other, one) is same


def trained(source: str, mean: float | None, std: float | None = 0.2) -> Trained:
    return Trained(source=source, mean=None if mean is None else (mean,) * 3, std=None if std is None else (std,) * 3)


def test_flags_win_and_differences_are_said() -> None:
    none = {"mean": None, "std": None}
    own = normalisation(none, [trained("w", 0.5)])
    assert (own.mean, own.std, own.warnings) == ((0.5,) * 3, (0.2,) * 3, ())
    assert own.text == "normalisation: mean 0.5 0.5 0.5, std 0.2 0.2 0.2 (w)"
    told = normalisation({"mean": (0.4, 0.4, 0.4), "std": None}, [trained("w", 0.5)])
    assert (told.mean, told.std) == ((0.4,) * 3, (0.2,) * 3)
    assert told.warnings == ("--mean 0.4 0.4 0.4: w has 0.5 0.5 0.5; the flag is taken",)
    assert normalisation({"mean": (0.5001,) * 3, "std": None}, [trained("w", 0.5)]).warnings == ()
    unknown = normalisation(none, [None, trained("w", None, None)])
    assert (unknown.mean, unknown.std) == (None, None)
    shared = normalisation(none, [None, trained("w", 0.5)])
    assert shared.mean == (0.5,) * 3
    assert [warning.partition(" is taken")[2] for warning in shared.warnings] == [
        " for all networks; 1 of 2 weights do not record theirs"
    ] * 2
    with pytest.raises(InputError, match=r"0\.5 0\.5 0\.5 in a and 0\.4 0\.4 0\.4 in b"):
        normalisation(none, [trained("a", 0.5), trained("b", 0.4)])
    flags = {"mean": (0.5,) * 3, "std": (0.2,) * 3}
    assert len(normalisation(flags, [trained("a", 0.5), trained("b", 0.4)]).warnings) == 1


def test_another_network_than_the_weights_are_of_is_refused() -> None:
    flags = ("--student", "--student-args")
    assert require_network(RECORD, None, None, flags) == ("convnet-d3", RECORD.args)
    assert require_network(RECORD, "convnet-d3", {"norm": "batch", "width": 16}, flags)[1] == RECORD.args
    assert require_network(None, "x", {"a": 1}, flags) == ("x", {"a": 1})
    with pytest.raises(InputError, match="--student convnet-d4: the weights run are of convnet-d3"):
        require_network(RECORD, "convnet-d4", None, flags)
    with pytest.raises(InputError, match="--student-args"):
        require_network(RECORD, "convnet-d3", {"width": 32}, flags)
    with pytest.raises(InputError, match="give --student"):
        require_network(None, None, None, flags)
