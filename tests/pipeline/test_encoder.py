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
from pipeline.networks.projector import Design, Projector, make_head, require_used, start_from_text

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


@pytest.mark.long
def test_a_tower_of_clip_begins_as_the_zero_shot_classifier_of_a_text_matrix(tmp_path: Path) -> None:
    """The real architecture, of random weights, for smaller crops than its own."""
    pytest.importorskip("timm")
    name, side, classes = "timm:resnet50_clip.openai", 64, 5
    saved(name, tmp_path / "clip.safetensors", None, img_size=side)
    encoder = load_encoder(spec_of(name, tmp_path / "clip.safetensors", img_size=side), side, load_network)
    assert encoder.width == 1024  # of the text's space
    text = torch.randn(classes, encoder.width)
    design = Design(rank=4, alpha=4.0, lora_on=None, head="text", head_rank=3, adapt_norms=False)
    head = make_head(design, classes, encoder.width, start_from_text(text, classes, encoder.width, "--text"))
    images = torch.randn(2, 3, side, side)
    with torch.no_grad():
        features = encoder.network(images)
    projector = Projector(encoder.network, design, head)
    assert {"head.q", "head.k", "head.v", "head.proj"} < {place.name for place in projector.places}
    require_used(projector, side)
    projector.eval()
    with torch.no_grad():
        wanted = features @ nn.functional.normalize(text).T
        torch.testing.assert_close(projector(images), wanted, rtol=1e-5, atol=1e-5)


def test_a_classifier_without_a_linear_layer_at_its_end_is_refused(tmp_path: Path) -> None:
    saved("torchvision:squeezenet1_1", tmp_path / "w.safetensors", 7)
    with pytest.raises(InputError, match="expected a classifier that ends with a linear layer"):
        load_encoder(spec_of("torchvision:squeezenet1_1", tmp_path / "w.safetensors"), SIZE, load_network)


def test_crops_that_an_encoder_does_not_take_are_refused(tmp_path: Path) -> None:
    saved("convnet-d2", tmp_path / "w.safetensors", 7)
    with pytest.raises(InputError, match="do not fit the network ConvNet"):
        load_encoder(spec_of("convnet-d2", tmp_path / "w.safetensors"), 16, load_network)
