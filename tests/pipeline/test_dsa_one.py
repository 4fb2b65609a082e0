"""`dsa=one` against no-distillation's DiffAugment, whose random numbers are those of the rows."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from labelstore.format.columns import CropRows
from pipeline.plan.augment import dsa_one, fingerprints
from pipeline.plan.augment.dsa_one import COLOR, CUTOUT, FLIP, KINDS, ROTATE, SCALE, SHIFT


def rows_of(size: int, count: int, seed: int = 1) -> CropRows:
    images = np.arange(count, dtype=np.uint32)
    return CropRows(dsa_one.columns, dsa_one.draw(size, seed, 0, images).astype(np.uint16))


def sampled(x: Tensor, theta: list[list[float]]) -> Tensor:
    if x.shape[2] == 1:
        return x
    grid = functional.affine_grid(torch.tensor([theta], dtype=torch.float), list(x.shape), align_corners=True)
    return functional.grid_sample(x, grid, align_corners=True)


def diff_augment(x: Tensor, kind: str, first: int, second: int, third: int) -> Tensor:
    """softlabel/utils.py, DiffAugment with aug_mode "S", of one image ``[1, 3, S, S]``; ``u`` are its torch.rand."""
    u = [number / 65536 for number in (first, second, third)]
    side = x.shape[2]
    if kind == "color":
        x = x + (u[0] - 0.5) * 1.0
        x_mean = x.mean(dim=1, keepdim=True)
        x = (x - x_mean) * (u[1] * 2.0) + x_mean
        x_mean = x.mean(dim=[1, 2, 3], keepdim=True)
        return (x - x_mean) * (u[2] + 0.5) + x_mean
    if kind == "crop":
        shift = int(side * 0.125 + 0.5)
        grid_x, grid_y = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
        grid_x = torch.clamp(grid_x + (first - shift) + 1, 0, side + 1)
        grid_y = torch.clamp(grid_y + (second - shift) + 1, 0, side + 1)
        x_pad = functional.pad(x, [1, 1, 1, 1, 0, 0, 0, 0])
        return x_pad.permute(0, 2, 3, 1)[:, grid_x, grid_y].permute(0, 3, 1, 2)
    if kind == "cutout":
        size = int(side * 0.5 + 0.5)
        grid_x, grid_y = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
        grid_x = torch.clamp(grid_x + first - size // 2, min=0, max=side - 1)
        grid_y = torch.clamp(grid_y + second - size // 2, min=0, max=side - 1)
        mask = torch.ones(side, side)
        mask[grid_x, grid_y] = 0
        return x * mask
    if kind == "flip":
        return x.flip(3) if first else x
    if kind == "scale":
        sy, sx = (number * (1.2 - 1.0 / 1.2) + 1.0 / 1.2 for number in u[:2])
        return sampled(x, [[sx, 0, 0], [0, sy, 0]])
    theta = (u[0] - 0.5) * 2 * 15.0 / 180 * math.pi
    return sampled(x, [[math.cos(theta), math.sin(-theta), 0], [math.sin(theta), math.cos(theta), 0]])


@pytest.mark.parametrize("size", [1, 2, 7, 16, 32])
def test_each_kind_is_the_authors(size: int) -> None:
    rows, images = rows_of(size, 60), torch.randn(60, 3, size, size, generator=torch.Generator().manual_seed(size))
    before = images.clone()
    found = dsa_one.apply(images, rows, size)
    assert {*rows.column("dsa_one_kind").tolist()} == {*range(6)}
    for crop, (kind, *numbers) in enumerate(rows.values.T.tolist()):
        expected = diff_augment(images[crop : crop + 1], KINDS[kind], *numbers)[0]
        exact = kind in (SHIFT, CUTOUT, FLIP)
        torch.testing.assert_close(found[crop], expected, rtol=0, atol=0 if exact else 2e-5)
    assert torch.equal(images, before)
    assert found.is_contiguous()


@pytest.mark.parametrize("size", [1, 9, 32])
def test_it_draws_what_the_authors_draw(size: int) -> None:
    drawn = dsa_one.draw(size, 0, 3, np.arange(60_000, dtype=np.uint32))
    kinds, numbers = drawn[0], drawn[1:]
    assert np.bincount(kinds, minlength=6) / 60_000 == pytest.approx(1 / 6, abs=0.01)
    shift, hole = int(size * 0.125 + 0.5), int(size * 0.5 + 0.5)
    whole = {SHIFT: (2, 2 * shift + 1), CUTOUT: (2, size + 1 - hole % 2), FLIP: (1, 2)}
    for kind in range(6):
        of_kind = numbers[:, kinds == kind]
        count, below = whole.get(kind, ({COLOR: 3, SCALE: 2, ROTATE: 1}.get(kind, 0), 65_536))
        assert not of_kind[count:].any()
        for column in of_kind[:count]:
            assert (column.mean() + 0.5) / below == pytest.approx(0.5, abs=0.02)
            assert column.min() >= 0
            assert column.max() < below
            assert below > 100 or {*column.tolist()} == {*range(below)}
        if count > 1 and below > 1:
            assert np.abs(np.corrcoef(of_kind[:count]) - np.eye(count)).max() < 0.05
    assert np.array_equal(drawn[:, 7:9], dsa_one.draw(size, 0, 3, np.array([7, 8], np.uint32)))
    assert (drawn[0] != dsa_one.draw(size, 0, 4, np.arange(60_000, dtype=np.uint32))[0]).any()


def test_a_crop_does_not_depend_on_its_batch() -> None:
    rows, images = rows_of(16, 24), torch.randn(24, 3, 16, 16)
    alone = [dsa_one.apply(images[at : at + 1], rows.take(slice(at, at + 1)), 16) for at in range(24)]
    torch.testing.assert_close(torch.cat(alone), dsa_one.apply(images, rows, 16), rtol=0, atol=1e-6)


def test_at_another_side_lengths_are_scaled() -> None:
    rows = rows_of(16, 200)
    exact = rows.take(np.flatnonzero(np.isin(rows.column("dsa_one_kind"), [SHIFT, CUTOUT, FLIP]))[:30])
    images = torch.randn(30, 3, 16, 16)
    double = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = dsa_one.apply(images, exact, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    assert torch.equal(dsa_one.apply(double, exact, 16), expected)


def test_its_fingerprint_sees_every_kind() -> None:
    assert {*dsa_one.draw(16, 0, 0, np.arange(16, dtype=np.uint32))[0].tolist()} == {*range(6)}
    made = fingerprints(dsa_one.columns, torch.device("cpu"))
    assert list(made) == ["dsa=one"]
    assert len(made["dsa=one"]) == 16 * 4
