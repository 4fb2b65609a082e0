"""Encoders: classifiers of any library without their last layer, and networks as they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from labelstore.errors import InputError
from pipeline.networks import build_network, load_network, lora, save_weights
from pipeline.networks.encoder import EncoderSpec, Features, features_of, load_encoder

SIZE = 32
IMAGES = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def spec_of(name: str, weights: Path, features: Features | None = None, **args: Any) -> EncoderSpec:
    return EncoderSpec(name=name, weights=str(weights), args=args, features=features_of(name, features))


def saved(name: str, path: Path, classes: int | None, **args: Any) -> nn.Module:
    """A network with random weights, and a file of them."""
    torch.manual_seed(0)
    network = build_network(name, args, classes, size=SIZE).eval()
    save_weights(network.state_dict(), path)
    return network


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("convnet-d2", "classifier"),
        ("cifar-resnet20", "linear"),
        ("torchvision:mobilenet_v3_small", "classifier.3"),
        ("timm:test_resnet", "fc"),
        ("timm:test_vit", "head"),
    ],
)
def test_the_features_of_a_classifier_are_what_its_last_layer_gets(name: str, head: str, tmp_path: Path) -> None:
    """Of whatever number of classes the weights are: only the head differs then."""
    if name.startswith("timm"):
        pytest.importorskip("timm")
    args: dict[str, Any] = {"img_size": SIZE} if name == "timm:test_vit" else {}
    network = saved(name, tmp_path / "w.safetensors", 7, **args)
    found: Any = network.get_submodule(head) if head in dict(network.named_modules()) else None
    if found is None:
        found = [layer for layer in network.modules() if isinstance(layer, nn.Linear)][-1]
    encoder = load_encoder(spec_of(name, tmp_path / "w.safetensors", **args), SIZE, load_network)
    with torch.no_grad():
        torch.testing.assert_close(found(encoder.network(IMAGES)), network(IMAGES))
    assert encoder.width == found.in_features
    assert not encoder.network.training
    assert encoder.bytes == sum(value.nbytes for value in encoder.weights.tensors.values())


def test_every_adapted_layer_of_a_vit_of_timm_has_an_effect(tmp_path: Path) -> None:
    """Query, key and value are one layer there."""
    pytest.importorskip("timm")
    saved("timm:test_vit", tmp_path / "w.safetensors", 7, img_size=SIZE)
    spec = spec_of("timm:test_vit", tmp_path / "w.safetensors", img_size=SIZE)
    network = load_encoder(spec, SIZE, load_network).network
    chosen = lora.made(network, lora.choose(network, None, 4), 4, 1.0)
    with torch.no_grad():
        plain = network(IMAGES)
        lora.adapt(network, chosen)
        assert torch.equal(network(IMAGES), plain)
        assert any(place.name.endswith("attn.qkv") for place in chosen)
        for place, each in chosen.items():
            nn.init.normal_(each.b)
            assert not torch.equal(network(IMAGES), plain), place
            nn.init.zeros_(each.b)


def test_what_a_tower_of_clip_gives_are_its_features() -> None:
    assert features_of("timm:resnet50_clip.openai", None) == "output"
    assert features_of("timm:vit_base_patch16_clip_quickgelu_224.openai", None) == "output"
    assert features_of("timm:mobilenetv2_100", None) == "penultimate"
    assert features_of("timm:resnet50_clip.openai", "penultimate") == "penultimate"
    assert features_of("mine:Encoder", None) == "output"
    assert features_of("convnet-d3", None) == features_of("torchvision:resnet18", None) == "penultimate"


def test_a_classifier_without_a_linear_layer_at_its_end_is_refused(tmp_path: Path) -> None:
    saved("torchvision:squeezenet1_1", tmp_path / "w.safetensors", 7)
    with pytest.raises(InputError, match="expected a classifier that ends with a linear layer"):
        load_encoder(spec_of("torchvision:squeezenet1_1", tmp_path / "w.safetensors"), SIZE, load_network)


def test_crops_that_an_encoder_does_not_take_are_refused(tmp_path: Path) -> None:
    saved("convnet-d2", tmp_path / "w.safetensors", 7)
    with pytest.raises(InputError, match="do not fit the network ConvNet"):
        load_encoder(spec_of("convnet-d2", tmp_path / "w.safetensors"), 16, load_network)
