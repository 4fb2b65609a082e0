"""LoRA against its definition in float64, without an effect at the start, merged, and on what bypasses forward."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from labelstore.errors import InputError
from pipeline.networks.lora import Lora, Place, adapt, choose, listed, made, merge, places

RANK, SCALE = 4, 0.5


class FusedAttention(nn.Module):
    """Attention that hands its weights to functions, as CLIP's pooling does: no layer's forward is called."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)

    def forward(self, tokens: Tensor) -> Tensor:
        q, k, v = functional.linear(tokens, self.qkv.weight, self.qkv.bias).chunk(3, -1)
        mixed = functional.scaled_dot_product_attention(q, k, v)
        return functional.linear(mixed, self.proj.weight, self.proj.bias)


class Tiny(nn.Module):
    """Convolutions of all kinds, then attention of two kinds."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1, dilation=2)
        self.depthwise = nn.Conv2d(8, 8, 3, padding=1, groups=8)
        self.grouped = nn.Conv2d(8, 8, 3, padding=1, groups=2, padding_mode="reflect")
        self.attention = FusedAttention()
        self.multihead = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, images: Tensor) -> Tensor:
        tokens = self.grouped(self.depthwise(self.stem(images))).flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens)
        return (tokens + self.multihead(tokens, tokens, tokens, need_weights=False)[0]).mean(1)


def adapted(network: nn.Module, pattern: str | None = None, *, random: bool = True) -> dict[Place, Lora]:
    chosen = made(network, choose(network, pattern, RANK), RANK, SCALE)
    if random:
        for lora in chosen.values():
            nn.init.normal_(lora.b)
    adapt(network, chosen)
    return chosen


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(5, 6, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(5, 6, (3, 1), stride=(1, 2), padding=(1, 0), bias=False),
        nn.Conv2d(5, 6, 3, padding="same", padding_mode="circular"),
        nn.Conv2d(6, 8, 3, padding=2, dilation=2, groups=2),
        nn.Conv2d(6, 8, 3, padding=1, groups=2, padding_mode="replicate"),
        nn.Conv1d(5, 6, 3, stride=2),
    ],
)
def test_a_convolution_against_its_definition(layer: Any) -> None:
    """A is a convolution like the layer to r channels, B one of 1 x 1 that is grouped as the layer is."""
    torch.manual_seed(0)
    layer = layer.double()
    kind, kernel = type(layer), layer.kernel_size
    a = kind(
        layer.in_channels, RANK, kernel, layer.stride, layer.padding, layer.dilation, bias=False,
        padding_mode=layer.padding_mode,
    ).double()  # fmt: skip
    b = kind(RANK, layer.out_channels, 1, groups=layer.groups, bias=False).double()
    images = torch.randn(2, layer.in_channels, *[11] * (layer.weight.ndim - 2), dtype=torch.float64)
    with torch.no_grad():
        wanted = layer(images) + SCALE * b(a(images))
        network = nn.Sequential(layer)
        [lora] = adapted(network).values()
        lora.a.copy_(a.weight)
        lora.b.copy_(b.weight.flatten(1))
        torch.testing.assert_close(network(images), wanted, rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore")  # peft warns of groups, and what it imports of more
@pytest.mark.parametrize("groups", [1, 2])
def test_a_convolution_against_peft(groups: int) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=groups), nn.Flatten(), nn.Linear(32, 4))
    network = network.double()
    images = torch.randn(2, 6, 4, 4, dtype=torch.float64)
    plain = {name: value.clone() for name, value in network.state_dict().items()}
    theirs = peft.get_peft_model(
        network, peft.LoraConfig(r=RANK, lora_alpha=SCALE * RANK, target_modules=["0", "2"], init_lora_weights=False)
    ).double()
    ours = nn.Sequential(nn.Conv2d(6, 8, 3, stride=2, padding=1, groups=groups), nn.Flatten(), nn.Linear(32, 4))
    ours.double().load_state_dict(plain)
    for place, lora in adapted(ours).items():
        layer = theirs.get_submodule(f"base_model.model.{place.module}")
        with torch.no_grad():
            lora.a.copy_(layer.lora_A["default"].weight)
            lora.b.copy_(layer.lora_B["default"].weight.flatten(1))
    torch.testing.assert_close(ours(images), theirs(images), rtol=1e-9, atol=1e-9)


def test_fused_linear_layers_against_their_definition() -> None:
    torch.manual_seed(0)
    network, tokens = nn.Sequential(FusedAttention()).double(), torch.randn(2, 5, 8, dtype=torch.float64)
    attention: Any = network[0]
    plain = [layer.weight.detach().clone() for layer in (attention.qkv, attention.proj)]
    chosen = adapted(network)
    qkv, proj = (
        weight + SCALE * lora.b @ lora.a for weight, lora in zip(plain, chosen.values(), strict=True)
    )  # in the order of the network
    q, k, v = (tokens @ qkv.T + attention.qkv.bias).chunk(3, -1)
    mixed = (q @ k.transpose(1, 2) / 8**0.5).softmax(-1) @ v
    torch.testing.assert_close(network(tokens), mixed @ proj.T + attention.proj.bias, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("grad", [True, False], ids=["autograd", "fast path"])
def test_no_effect_at_the_start_an_effect_of_each_and_none_of_merging(dtype: torch.dtype, grad: bool) -> None:
    torch.manual_seed(0)
    network, images = Tiny().to(dtype).eval(), torch.randn(2, 3, 9, 9, dtype=dtype)
    with torch.set_grad_enabled(grad):
        plain = network(images).detach()
        chosen = adapted(network, random=False)
        assert [place.name for place in chosen] == [
            "stem", "grouped", "attention.qkv", "attention.proj", "multihead.in_proj_weight", "multihead.out_proj",
        ]  # fmt: skip
        assert torch.equal(network(images), plain)
        for place, lora in chosen.items():
            with torch.no_grad():
                nn.init.normal_(lora.b)
            assert not torch.allclose(network(images), plain), place
            nn.init.zeros_(lora.b)
        for lora in chosen.values():
            nn.init.normal_(lora.b)
        beside = network(images).detach()
        merge(network, chosen)
        merged = network(images).detach()
    if dtype == torch.float64:
        torch.testing.assert_close(merged, beside, rtol=1e-9, atol=0)
    assert (merged - beside).norm() <= 1e-4 * beside.norm()
    assert type(network.stem) is nn.Conv2d
    assert type(network.multihead) is nn.MultiheadAttention
    assert not any(parameter.requires_grad for parameter in network.parameters())


def test_only_the_matrices_get_gradients() -> None:
    torch.manual_seed(0)
    network = Tiny()
    chosen = adapted(network)
    network(torch.randn(2, 3, 9, 9)).square().mean().backward()
    trained = {id(parameter) for lora in chosen.values() for parameter in lora.parameters()}
    for name, parameter in network.named_parameters():
        assert (parameter.grad is not None) == (id(parameter) in trained), name
    assert len({id(p) for p in network.parameters()} & trained) == 2 * len(chosen)
    for lora in chosen.values():
        assert lora.a.grad is not None
        assert lora.b.grad is not None
        assert lora.a.grad.abs().sum() > 0


def test_what_is_chosen() -> None:
    network = Tiny()
    assert [place.name for place in choose(network, "attention", RANK)] == ["attention.qkv", "attention.proj"]
    assert next(iter(choose(network, "^stem$|proj", RANK))).name == "stem"
    assert sum(place.parameters(RANK) for place in choose(network, None, RANK)) == sum(
        parameter.numel() for lora in made(network, choose(network, None, RANK), RANK, 1).values()
        for parameter in lora.parameters()
    )  # fmt: skip
    lines = listed(choose(network, None, RANK), RANK)
    assert lines[0].startswith("low-rank matrices: rank 4 on 6 weights, ")
    assert any("multihead.in_proj_weight" in line and f"{RANK * (8 + 24)}" in line for line in lines)
    assert [place.name for place in places(network) if place.depthwise] == ["depthwise"]


@pytest.mark.parametrize(
    ("pattern", "rank", "message"),
    [
        ("nothing", 4, "--lora-on 'nothing': expected convolutions or linear layers .* it has stem, depthwise"),
        ("(", 4, "expected a regular expression"),
        (None, 9, r"--rank 9: expected 1 to 8, the width of stem \[8, 3, 3, 3\]"),
        ("grouped", 3, "--rank 3: expected a multiple of 2, the groups of grouped"),
        ("depthwise", 4, "--rank 4: expected a multiple of 8"),
    ],
)
def test_what_cannot_be_adapted_is_refused(pattern: str | None, rank: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        choose(Tiny(), pattern, rank)


def test_a_weight_that_is_made_of_others_is_refused() -> None:
    with pytest.warns(FutureWarning):
        layer = nn.utils.weight_norm(nn.Linear(8, 8))
    with pytest.raises(InputError, match="the weight of 0 is made of other parameters"):
        choose(nn.Sequential(layer), None, RANK)
