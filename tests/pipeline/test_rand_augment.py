"""RandAugment: torchvision's pixels for the drawn numbers, what is drawn, and its place among the other operators."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from torchvision.transforms import InterpolationMode, RandAugment
from torchvision.transforms.autoaugment import _apply_op

import pipeline.plan.augment
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.images.manifest import scan
from pipeline.plan.augment import mixup, rand_augment
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from pipeline.render.crops import change_pixels, finish
from pipeline.render.device import DeviceRenderer

Pixels = npt.NDArray[np.uint8]


def picture(side: int, seed: int = 0) -> Pixels:
    """Coarse colours with some noise, so that no operator leaves it as it is."""
    rng = np.random.default_rng([seed, side])
    coarse = Image.fromarray(rng.integers(30, 200, (3, 4, 3), np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
    return np.asarray(coarse) + rng.integers(0, 40, (side, side, 3), np.uint8)


def torchvisions(pixels: Pixels, values: list[int]) -> Pixels:
    """`torchvision.transforms.RandAugment.forward` of a Pillow image, with given numbers in place of drawn ones."""
    image, side = Image.fromarray(pixels), pixels.shape[0]
    space = list(RandAugment()._augmentation_space(31, (side, side)).items())
    for value in values:
        name, (magnitudes, signed) = space[value % 16]
        magnitude = float(magnitudes[value // 32].item()) if magnitudes.ndim > 0 else 0.0
        assert signed or value // 16 % 2 == 0
        if value // 16 % 2:
            magnitude *= -1.0
        image = _apply_op(image, name, magnitude, interpolation=InterpolationMode.NEAREST, fill=None)
    return np.asarray(image)


def test_the_table_is_torchvisions() -> None:
    space = RandAugment()._augmentation_space(31, (9, 9))
    assert [(name, signed) for name, (_, signed) in space.items()] == [
        (name, signed) for name, (signed, _) in rand_augment.OPERATORS.items()
    ]


@pytest.mark.parametrize("side", [1, 7, 32, 65])
def test_every_operator_has_torchvisions_pixels_at_every_magnitude(side: int) -> None:
    pixels = picture(side)
    before = pixels.copy()
    for number, (name, (signed, _)) in enumerate(rand_augment.OPERATORS.items()):
        for level in range(31):
            for sign in range(1 + signed):
                value = number + 16 * sign + 32 * level
                found = rand_augment.change(pixels, (value,))
                assert np.array_equal(found, torchvisions(pixels, [value])), (name, level, sign)
    assert np.array_equal(pixels, before)


@pytest.mark.parametrize("numbers", [(1, 0), (2, 9), (3, 15), (4, 30)])
def test_a_chain_is_torchvisions(numbers: tuple[int, int]) -> None:
    drawn = rand_augment.draw(numbers, 5, 2, np.arange(60, dtype=np.uint32))
    for image, values in enumerate(drawn.T.tolist()):
        pixels = picture(33, image)
        assert np.array_equal(rand_augment.change(pixels, tuple(values)), torchvisions(pixels, values))


def test_operators_and_signs_are_drawn_alike() -> None:
    images = np.arange(56_000, dtype=np.uint32)
    drawn = rand_augment.draw((3, 9), 0, 4, images)
    assert (drawn // 32 == 9).all()
    operators, negative = drawn % 16, drawn // 16 % 2
    signed = np.array([has_sign for has_sign, _ in rand_augment.OPERATORS.values()])
    assert not negative[~signed[operators]].any()
    for column, signs in zip(operators, negative, strict=True):
        assert np.bincount(column, minlength=14) == pytest.approx(4_000, abs=250)
        assert signs[signed[column]].mean() == pytest.approx(0.5, abs=0.01)
    assert np.abs(np.corrcoef(operators) - np.eye(3)).max() < 0.02
    # a function of seed, view and image alone; more operators come after the same ones
    assert np.array_equal(drawn[:2, 1_000:1_010], rand_augment.draw((2, 9), 0, 4, images[1_000:1_010]))
    for seed, view in ((0, 5), (1, 4)):
        assert (drawn != rand_augment.draw((3, 9), seed, view, images)).any(1).all()
    assert drawn.max() < 65_536


def test_it_comes_after_the_flip_and_before_the_mix_on_every_renderer(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    for number in range(12):
        Image.fromarray(picture(40, number)).save(tmp_path / "a" / f"{number:02d}.png")
    manifest = scan(tmp_path)
    spec = PlanSpec(size=24, augment=("rand-augment=2,12",), mix="mixup", group=4)
    rows = Plan(spec, manifest.heights, manifest.widths).rows(1, 0, 12)
    assert rows.names[7:9] == ("rand_augment_1", "rand_augment_2")
    plain = PlanSpec(size=24, mix="none")
    bare = Plan(plain, manifest.heights, manifest.widths).rows(1, 0, 12)
    assert np.array_equal(bare.values, rows.values[:7])
    for side in (24, 31):  # the plan's, and another one in training
        how: dict[str, Any] = {"cache_bytes": 1 << 20, "threads": 2}
        crops = make_renderer(manifest, PlanSpec(size=side), **how).render(bare)
        for row, values in enumerate(rows.values[7:9].T.tolist()):
            crops[row] = torch.from_numpy(torchvisions(crops[row].numpy(), values).copy())
        expected = mixup.mix(crops, rows, 4)
        here = PlanSpec(size=side, augment=spec.augment, mix="mixup", group=4)
        renderers = (
            make_renderer(manifest, here, **how),
            DeviceRenderer(manifest, here, torch.device("cpu"), "cpu", 2, 1 << 20),
        )
        for renderer in renderers:
            assert torch.equal(renderer.render(rows), expected)
            renderer.close()


def test_a_crop_does_not_depend_on_the_others() -> None:
    drawn = rand_augment.draw((2, 9), 0, 0, np.arange(20, dtype=np.uint32)).astype(np.uint16)
    rows = CropRows(rand_augment.columns((2, 9)), drawn)
    crops = torch.from_numpy(np.stack([picture(16, seed) for seed in range(20)]))
    with ThreadPoolExecutor(3) as pool:
        together = change_pixels(crops, rows, pool)
        alone = [change_pixels(crops[at : at + 1], rows.take(slice(at, at + 1)), pool) for at in range(20)]
        assert torch.equal(together, torch.cat(alone))
        assert not torch.equal(together, crops)
        others = CropRows(("bits",), np.zeros((1, 20), np.uint16))
        assert finish(crops, others, PlanSpec(size=16), pool) is crops
        assert len(change_pixels(crops[:0], rows.take(slice(0, 0)), pool)) == 0


class Posterised:
    """Another augmentation of pixels, as a user would write it: a file, here a class, and a line in its table."""

    prefix = "posterised_"

    @staticmethod
    def check(numbers: tuple[int, ...]) -> None:
        if len(numbers) != 1:
            raise InputError("augment posterise: expected a number of levels")

    @staticmethod
    def columns(numbers: tuple[int, ...]) -> tuple[str, ...]:
        return ("posterised_levels",) if numbers else ()

    @staticmethod
    def draw(numbers: tuple[int, ...], seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        return np.full((1, len(images)), numbers[0] + (seed + view) % 2)

    @staticmethod
    def change(pixels: Pixels, values: tuple[int, ...]) -> Pixels:
        return (pixels // values[0] * values[0]).astype(np.uint8)


def test_another_one_takes_a_file_and_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.plan.augment.PIXELS, "posterise", Posterised)
    with pytest.raises(InputError, match="augment posterise: expected a number of levels"):
        PlanSpec(size=8, augment=("posterise",))
    spec = PlanSpec(size=8, augment=("posterise=50", "rand-augment=1,3"))
    sides = np.full(5, 9, np.int32)
    rows = Plan(spec, sides, sides).rows(1, 0, 5)
    assert rows.names[7:] == ("rand_augment_1", "posterised_levels")
    assert (rows.column("posterised_levels") == 51).all()
    crops = torch.from_numpy(np.stack([picture(8, seed) for seed in range(5)]))
    with ThreadPoolExecutor(1) as pool:
        found = change_pixels(crops, rows, pool)
    for crop, value, made in zip(crops.numpy(), rows.column("rand_augment_1").tolist(), found.numpy(), strict=True):
        assert np.array_equal(made, torchvisions(crop, [value]) // 51 * 51)
