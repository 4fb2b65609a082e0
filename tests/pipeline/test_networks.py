"""Networks by name: layers, key names, arguments, errors."""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelstore.errors import InputError
from pipeline.networks import build_network, load_network, save_weights
from pipeline.networks.cifar_resnet import BasicBlock
from pipeline.networks.families import FAMILIES
from pipeline.networks.load import library_version


def parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@pytest.mark.parametrize(
    ("name", "expected"),
    [  # published counts, or those of the field's own implementations, for 10 classes and 32 px
        ("convnet-d3", 320_010),
        ("cifar-resnet20", 269_722),
        ("cifar-resnet32", 464_154),
        ("cifar-resnet44", 658_586),
        ("cifar-resnet56", 853_018),
        ("cifar-resnet110", 1_727_962),
        ("resnet18-modified", 11_173_962),
        ("resnet101-modified", 42_512_970),
    ],
)
def test_parameters_of_each_family(name: str, expected: int) -> None:
    assert parameters(build_network(name, {}, 10, size=32)) == expected


NETWORKS: dict[str, Callable[..., Any]] = {}  # as the file of a family has them


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_has_the_networks_of_its_line(family: str) -> None:
    assert [*import_module(family).NETWORKS] == [*FAMILIES[family]]


def test_a_family_is_one_file_and_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    own = nn.Sequential(nn.Flatten(), nn.Linear(3 * 8 * 8, 5))
    monkeypatch.setitem(FAMILIES, __name__, ("tiny-4",))
    monkeypatch.setitem(NETWORKS, "tiny-4", lambda num_classes, size: own if (num_classes, size) == (5, 8) else None)
    assert build_network("tiny-4", {}, 5, size=8) is own
    with pytest.raises(InputError, match=r"expected one of convnet-d1, .*, tiny-4, torchvision:NAME"):
        build_network("tiny-5", {}, 5, size=8)


@pytest.mark.parametrize("depth", [1, 2, 3, 4, 5, 6])
def test_convnet_keys_and_head(depth: int) -> None:
    state = build_network(f"convnet-d{depth}", {"width": 16}, 7, size=70).state_dict()
    layers = [f"features.{4 * d + i}" for d in range(depth) for i in (0, 1)]
    assert [*state] == [f"{key}.{kind}" for key in [*layers, "classifier"] for kind in ("weight", "bias")]
    side = 70
    for _ in range(depth):
        side //= 2
    assert state["classifier.weight"].shape == (7, 16 * side * side)


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_convnet_against_its_definition(norm: str) -> None:
    network = build_network("convnet-d2", {"width": 8, "norm": norm, "channels": 1}, 5, size=11).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.copy_(torch.randn_like(parameter))
    images = torch.randn(3, 1, 11, 11)
    state = network.state_dict()

    def layer(x: Tensor, conv: str, norm_key: str) -> Tensor:
        x = functional.conv2d(x, state[f"{conv}.weight"], state[f"{conv}.bias"], padding=1)
        if norm == "instance":
            x = (x - x.mean((2, 3), keepdim=True)) / (x.var((2, 3), correction=0, keepdim=True) + 1e-5).sqrt()
        else:
            x = x / (1 + 1e-5) ** 0.5  # running mean 0, variance 1
        x = x * state[f"{norm_key}.weight"][:, None, None] + state[f"{norm_key}.bias"][:, None, None]
        x = x.clamp(min=0)
        return torch.stack(
            [x[:, :, i : 2 * (x.shape[2] // 2) : 2, j : 2 * (x.shape[3] // 2) : 2] for i in (0, 1) for j in (0, 1)]
        ).mean(0)

    x = layer(layer(images, "features.0", "features.1"), "features.4", "features.5")
    expected = x.flatten(1) @ state["classifier.weight"].T + state["classifier.bias"]
    with torch.no_grad():
        torch.testing.assert_close(network(images), expected, rtol=1e-4, atol=1e-4)


def test_option_a_shortcut_takes_every_second_pixel_and_pads_channels() -> None:
    block = BasicBlock(4, 8).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(2, 4, 6, 6)
    out = block(x)
    assert torch.equal(out[:, 2:6], x[:, :, ::2, ::2])
    assert not out[:, :2].any()
    assert not out[:, 6:].any()


def test_resnet18_modified_keeps_the_resolution_in_its_stem() -> None:
    network = build_network("resnet18-modified", {}, 4, size=32).eval()
    shapes: list[torch.Size] = []
    network.get_submodule("layer1").register_forward_hook(lambda _m, _i, out: shapes.append(out.shape))
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 4)
    assert shapes == [(1, 64, 32, 32)]


def test_libraries_and_modules() -> None:
    assert build_network("torchvision:squeezenet1_1", {}, 6, size=64).num_classes == 6
    assert build_network("torchvision:squeezenet1_1", {"num_classes": 3}, 6, size=64).num_classes == 3
    module = build_network("pipeline.networks.convnet:ConvNet", {"depth": 2, "size": 8, "width": 4}, 9, size=32)
    assert module.state_dict()["classifier.weight"].shape == (9, 16)
    assert isinstance(build_network("torch.nn:Flatten", {}, 5, size=32), nn.Flatten)
    assert library_version("convnet-d3") == {}
    assert library_version("pipeline.networks.convnet:ConvNet") == {}
    assert library_version("resnet18-modified").keys() == {"torchvision"}


def test_timm() -> None:
    timm = pytest.importorskip("timm")
    network = build_network("timm:mobilenetv3_small_050", {"pad_type": "same"}, 4, size=32)
    assert network.num_classes == 4
    assert library_version("timm:mobilenetv3_small_050") == {"timm": timm.__version__}


def test_without_timm_the_error_names_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"pip install 'giftwrap\[timm\]'"):
        build_network("timm:resnet18", {}, 10, size=32)


@pytest.mark.parametrize(
    ("name", "args", "message"),
    [
        ("convnet-d9", {}, "expected one of convnet-d1, .*torchvision:NAME"),
        ("torchvision:", {}, "expected one of"),
        ("torchvision:resnet19", {}, "resnet19"),
        ("torchvision:resnet18", {"depth": 3}, "depth"),
        ("convnet-d3", {"norm": "layer"}, "'layer'"),
        ("convnet-d3", {"size": 7}, "need at least 8 px, found 7 px"),
        ("no_such_module_here:Net", {}, "no_such_module_here"),
        ("torch.nn:NoSuchLayer", {}, "NoSuchLayer"),
        ("sys:path", {}, "not a callable"),
        ("argparse:Namespace", {}, r"expected a torch.nn.Module, found Namespace"),
    ],
)
def test_what_cannot_be_made_is_named(name: str, args: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_network(name, args, 10, size=32)


def test_head_has_the_classes_of_its_weights_whatever_the_images(tmp_path: Path) -> None:
    trained = build_network("convnet-d1", {"width": 4}, 9, size=8)
    save_weights(trained.state_dict(), tmp_path / "w.safetensors")
    file = str(tmp_path / "w.safetensors")
    network, _ = load_network("convnet-d1", {"width": 4}, file, classes=4, size=8)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(network(images), trained(images))
    with pytest.raises(InputError, match=r"classifier.weight \(network float32 \[4, 64\], weights float32 \[9, 64\]\)"):
        load_network("convnet-d1", {"width": 4, "num_classes": 4}, file, classes=4, size=8)
    with pytest.raises(InputError, match=r"\[4, 256\].*\[9, 64\].*--size"):
        load_network("convnet-d1", {"width": 4}, file, classes=4, size=16)
