"""DSA works on all crops of a batch at once, for the sake of GPUs: pixels are those of the loops that it replaced."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import affine_grid

from labelstore.format.columns import CropRows
from pipeline.device import moving
from pipeline.device.moving import numbers_to_device
from pipeline.plan.augment import cutmix, dsa, dsa_one, mixup


def shifted_one_by_one(images: Tensor, down: Sequence[int], across: Sequence[int]) -> Tensor:
    """As it was: a slice copied to a slice, crop by crop."""
    side, moved = images.shape[-1], torch.zeros_like(images)
    for crop, (dy, dx) in enumerate(zip(down, across, strict=True)):
        to = moved[crop, :, max(-dy, 0) : side - max(dy, 0), max(-dx, 0) : side - max(dx, 0)]
        to.copy_(images[crop, :, max(dy, 0) : side + min(dy, 0), max(dx, 0) : side + min(dx, 0)])
    return moved


@settings(deadline=None)
@given(st.integers(1, 40), st.integers(1, 300), st.data())
def test_shifts_are_those_of_the_loop_bit_for_bit(side: int, size: int, data: st.DataObject) -> None:
    furthest, count = dsa.furthest_shift(size), 5
    drawn = [data.draw(st.lists(st.integers(0, 2 * furthest), min_size=count, max_size=count)) for _ in range(2)]
    images = torch.randn(count, 3, side, side)
    images[0, 0, 0, 0], images[1, 0, -1, -1] = -0.0, torch.nan
    pixels = [[(2 * (each - furthest) * side + size) // (2 * size) for each in axis] for axis in drawn]
    expected = shifted_one_by_one(images, *pixels)
    found = dsa.shifted(images, torch.tensor(drawn[0]), torch.tensor(drawn[1]), size)
    assert torch.equal(found.view(torch.int32), expected.view(torch.int32))


@pytest.mark.parametrize("side", [2, 7, 32, 224])
@pytest.mark.parametrize("align_corners", [True, False])
def test_the_grid_of_a_gpu_is_torchs_without_a_matrix_product(side: int, align_corners: bool) -> None:
    matrices = 2 * torch.rand(20, 2, 3) - 1
    expected = affine_grid(matrices.double(), [20, 3, side, side], align_corners=align_corners)
    found = dsa.grid_of(matrices, side, align_corners=align_corners)
    assert found.shape == expected.shape
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=5e-7)


def test_whole_numbers_of_any_kind_make_one_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    copied: list[torch.Size] = []

    def copy(values: Tensor, device: torch.device) -> Tensor:
        copied.append(values.shape)
        return values.to(device)

    monkeypatch.setattr(moving, "to_device", copy)
    columns: list[npt.NDArray[np.integer[Any]]] = [
        np.array([65_535], np.uint16),
        np.array([], np.int64),
        np.array([-1, 2], np.int32),
    ]
    found = numbers_to_device(columns, torch.device("cpu"))
    assert [(each.dtype, each.tolist()) for each in found] == [
        (torch.int64, [65_535]),
        (torch.int64, []),
        (torch.int64, [-1, 2]),
    ]
    assert len(copied) == 1
    count, size, group = 12, 16, 4
    images = np.arange(count, dtype=np.uint32)
    pixels = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8)
    for each in (dsa, dsa_one):
        del copied[:]
        rows = CropRows(each.columns, each.draw(size, 0, 0, images).astype(np.uint16))
        each.apply(torch.randn(count, 3, size, size), rows, size)
        assert len(copied) == 1
    for mix in (cutmix, mixup):
        del copied[:]
        values = mix.draw(1.0, size, 0, 0, np.arange(count))
        partner = np.arange(count)[::-1] % group
        rows = CropRows(mix.columns, np.concatenate([partner[None], values]).astype(np.uint16))
        mix.mix(pixels, rows, group)
        assert len(copied) == 1
