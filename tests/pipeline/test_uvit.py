"""U-ViT: the published sizes, the null label, and what its forward is made of."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from labelstore.errors import InputError
from pipeline.networks.backbones import BACKBONES, Shape, shape_of
from pipeline.networks.uvit import UViT, embedded

PUBLISHED = {"uvit-s": 44e6, "uvit-s-deep": 58e6, "uvit-m": 131e6, "uvit-l": 287e6, "uvit-h": 501e6}


@pytest.mark.parametrize("name", BACKBONES)
def test_sizes_have_the_published_numbers_of_parameters(name: str) -> None:
    classes = 1 if name.startswith("uvit-s") else 1000  # S and S-deep are published without classes of ImageNet
    with torch.device("meta"):
        network = UViT(BACKBONES[name], channels=4, size=32, classes=classes)
    count = sum(weight.numel() for weight in network.parameters())
    if name in PUBLISHED:
        assert abs(count / PUBLISHED[name] - 1) < 0.01
    else:
        assert 2e6 < count < 5e6


def test_a_skip_reaches_its_twin_and_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    network = UViT(Shape(16, 4, 2), channels=3, size=8, classes=3)
    x, times, labels = torch.randn(2, 3, 8, 8), torch.tensor([3, 900]), torch.tensor([1, 3])
    assert network(x, times, labels).shape == x.shape
    network(x, times, labels).square().mean().backward()
    assert all(weight.grad is not None and bool(weight.grad.isfinite().all()) for weight in network.parameters())
    assert len(network.in_blocks) == len(network.out_blocks) == 2
    seen: list[torch.Tensor] = []
    network.in_blocks[0].register_forward_hook(lambda _l, _i, out: seen.append(out))
    network.out_blocks[-1].register_forward_pre_hook(lambda _l, inputs: seen.append(inputs[1]))
    network(x, times, labels)
    assert torch.equal(*seen)  # the first block's tokens come to the last one


def test_tokens_are_label_time_and_patches_in_the_authors_order() -> None:
    network = UViT(Shape(8, 2, 2, conv=False), channels=3, size=4, classes=1)
    tokens = torch.arange(4 * 12).float().reshape(1, 4, 12)
    expected = torch.zeros(1, 3, 4, 4)
    for token in range(4):
        for row in range(2):
            for column in range(2):
                values = tokens[0, token].reshape(2, 2, 3)[row, column]
                expected[0, :, token // 2 * 2 + row, token % 2 * 2 + column] = values
    assert torch.equal(network._images(tokens), expected)
    angles = 7 * 10_000.0 ** (-np.arange(4) / 4)
    found = embedded(torch.tensor([7]), 8).double().numpy()
    np.testing.assert_allclose(found[0], [*np.cos(angles), *np.sin(angles)], rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: UViT(Shape(8, 2, 2, patch=4), channels=3, size=6, classes=1), "patches of 4 divide, found 6"),
        (lambda: shape_of("uvit-z", {}), "expected one of uvit-xs"),
        (lambda: shape_of("uvit-xs", {"width": 3}), "expected dim, depth, heads, patch, conv, found 'width'"),
        (lambda: shape_of("uvit-xs", {"depth": 5}), "even number of blocks, found 5"),
        (lambda: shape_of("uvit-xs", {"heads": 5}), "multiple of 2 x 5 heads, found 192"),
        (lambda: shape_of("uvit-xs", {"dim": "wide"}), "whole number of at least 1, found 'wide'"),
    ],
)
def test_impossible_shapes_are_refused(make: object, message: str) -> None:
    assert callable(make)
    with pytest.raises(InputError, match=message):
        make()
