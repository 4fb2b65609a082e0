"""Augmentations before the crop and behind the normalisation, held against the definitions in the authors' code."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor

import pipeline.plan.augment
from labelstore.command.flags import flags_of
from labelstore.errors import InputError, MismatchError
from labelstore.format.columns import CropRows
from pipeline.config import BuildConfig
from pipeline.images.manifest import scan
from pipeline.plan import draws
from pipeline.plan.augment import dsa, fingerprints, named, patch_shuffle
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from pipeline.render.audit import compare
from pipeline.render.normalise import network_input, normalise

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


def numbers(count: int) -> npt.NDArray[np.uint32]:
    return np.arange(count, dtype=np.uint32)


def rows_of(size: int, count: int, seed: int = 1) -> CropRows:
    return CropRows(dsa.columns, dsa.draw(size, seed, 0, numbers(count)).astype(np.uint16))


def shuffle_strips(image: Tensor, strips: int, order: tuple[int, ...]) -> Tensor:
    """RDED's ShufflePatches.shuffle_weight on ``[C, H, W]``, with the remainder in the last strip."""
    width = image.shape[-1] // strips
    parts = [image[..., at * width : (at + 1) * width if at < strips - 1 else None] for at in range(strips)]
    return torch.cat([parts[at] for at in order], -1)


@settings(deadline=None)
@given(st.integers(2, 8), st.integers(8, 40), st.integers(8, 40), st.integers(0, 2**31))
def test_patch_shuffle_is_the_authors(strips: int, height: int, width: int, seed: int) -> None:
    image = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8)
    for values in patch_shuffle.draw(strips, seed, 0, numbers(5)).T.tolist():
        across, down = (patch_shuffle.unrank(ranked, strips) for ranked in values[1:])
        expected = shuffle_strips(image.permute(2, 0, 1), strips, across).transpose(1, 2)
        expected = shuffle_strips(expected, strips, down).transpose(1, 2)
        assert torch.equal(patch_shuffle.arrange(image, tuple(values)), expected.permute(1, 2, 0))


def test_every_order_of_strips_has_a_number_and_comes_as_often() -> None:
    orders = list(itertools.permutations(range(4)))
    assert patch_shuffle.rank(np.array(orders)).tolist() == list(range(24))
    assert [patch_shuffle.unrank(ranked, 4) for ranked in range(24)] == orders
    drawn = patch_shuffle.draw(3, 0, 0, numbers(12_000))
    for ranked in drawn[1:]:
        assert np.bincount(ranked, minlength=6) == pytest.approx(2_000, abs=200)
    assert abs(np.corrcoef(drawn[1], drawn[2])[0, 1]) < 0.05
    assert (drawn[1:] != patch_shuffle.draw(3, 0, 1, numbers(12_000))[1:]).any()


def dsa_by_definition(image: npt.NDArray[np.float32], values: list[int]) -> npt.NDArray[np.float64]:
    """GIFT's DiffAug of one normalised image ``[3, S, S]``, in float64, pixel by pixel."""
    x, side = image.astype(np.float64), image.shape[-1]
    brightness, saturation, contrast = (value / 65536 for value in values[:3])
    kind, first, second, row, column = values[3:]
    x = x + (brightness - 0.5)
    x = (x - x.mean(0)) * 2 * saturation + x.mean(0)
    x = (x - x.mean()) * (contrast + 0.5) + x.mean()
    moved = np.zeros_like(x)
    if kind == dsa.SHIFT:
        furthest = int(side * 0.125 + 0.5)
        matrix, offset = np.eye(2), (first - furthest, second - furthest)
    elif kind == dsa.SCALE:
        matrix, offset = np.diag([value / 65536 * (1.2 - 1 / 1.2) + 1 / 1.2 for value in (second, first)]), (0, 0)
    else:
        angle = (first / 65536 - 0.5) * 2 * 15 / 180 * math.pi
        matrix, offset = np.array([[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]), (0, 0)
    for i, j in np.ndindex(side, side):
        across, down = matrix @ [(2 * j + 1) / side - 1, (2 * i + 1) / side - 1]
        px, py = ((across + 1) * side - 1) / 2 + offset[1], ((down + 1) * side - 1) / 2 + offset[0]
        for y, x_ in itertools.product((math.floor(py), math.floor(py) + 1), (math.floor(px), math.floor(px) + 1)):
            if 0 <= y < side and 0 <= x_ < side:
                moved[:, i, j] += (1 - abs(py - y)) * (1 - abs(px - x_)) * x[:, y, x_]
    hole = int(side * 0.5 + 0.5)
    top, left = row - hole // 2, column - hole // 2
    moved[:, max(top, 0) : max(top + hole, 0), max(left, 0) : max(left + hole, 0)] = 0
    return moved


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_dsa_is_the_authors(size: int) -> None:
    rows = rows_of(size, 24)
    images = torch.randn(24, 3, size, size)
    found = dsa.apply(images, rows, size)
    kinds = rows.column("dsa_kind")
    assert set(kinds.tolist()) == {dsa.SHIFT, dsa.SCALE, dsa.ROTATE}
    for crop in range(24):
        expected = dsa_by_definition(images[crop].numpy(), rows.values[:, crop].tolist())
        # the shift is exact but for the colours; the corners that others sample lie where float32 puts them
        np.testing.assert_allclose(found[crop].numpy(), expected, atol=1e-6 if kinds[crop] == dsa.SHIFT else 5e-5)


def test_a_crop_of_dsa_does_not_depend_on_its_batch() -> None:
    rows, images = rows_of(16, 12), torch.randn(12, 3, 16, 16)
    before = images.clone()
    alone = [dsa.apply(images[at : at + 1], rows.take(slice(at, at + 1)), 16) for at in range(12)]
    torch.testing.assert_close(torch.cat(alone), dsa.apply(images, rows, 16), rtol=0, atol=1e-6)
    assert torch.equal(images, before)


@pytest.mark.parametrize("size", [1, 9, 224])
def test_dsa_draws_what_the_authors_draw(size: int) -> None:
    values = dsa.draw(size, 0, 3, numbers(30_000))
    assert values.min() >= 0
    assert values.max() < 65536
    color, kind, moved, centres = values[:3], values[3], values[4:6], values[6:]
    assert color.mean(1) / 65536 == pytest.approx(0.5, abs=0.01)
    assert np.bincount(kind) / 30_000 == pytest.approx(1 / 3, abs=0.01)
    furthest, hole = int(size * 0.125 + 0.5), int(size * 0.5 + 0.5)
    shifts = moved[:, kind == dsa.SHIFT]
    assert (shifts.min(), shifts.max()) == (0, 2 * furthest)
    assert not moved[1, kind == dsa.ROTATE].any()
    assert (centres.min(), centres.max()) == (0, size - hole % 2)
    drawn = np.concatenate([color, centres]) if size > 1 else color
    assert np.abs(np.corrcoef(drawn) - np.eye(len(drawn))).max() < 0.05


def test_at_another_side_lengths_are_scaled() -> None:
    """A crop of twice the side, made by repeating pixels, is shifted and cut by twice as many."""
    rows = rows_of(16, 200)
    shifted = rows.take(np.flatnonzero(rows.column("dsa_kind") == dsa.SHIFT)[:8])
    images = torch.randn(8, 3, 16, 16)
    double = images.repeat_interleave(2, 2).repeat_interleave(2, 3)
    expected = dsa.apply(images, shifted, 16).repeat_interleave(2, 2).repeat_interleave(2, 3)
    torch.testing.assert_close(dsa.apply(double, shifted, 16), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_only_the_rows_that_are_given_are_augmented(dtype: torch.dtype) -> None:
    pixels, rows = torch.randint(0, 256, (6, 8, 8, 3), dtype=torch.uint8), rows_of(8, 4)
    found = network_input(pixels, rows, MEAN, STD, dtype, True)
    plain = normalise(pixels, MEAN, STD, torch.float32, False)
    assert torch.equal(found[:4], dsa.apply(plain[:4].contiguous(), rows, 8).to(dtype))
    assert torch.equal(found[4:], plain[4:].to(dtype))
    assert (found.dtype, found.is_contiguous(memory_format=torch.channels_last)) == (dtype, True)
    bare = CropRows(("bits",), np.zeros((1, 6), np.uint16))
    assert torch.equal(network_input(pixels, bare, MEAN, STD, dtype, True), normalise(pixels, MEAN, STD, dtype, True))


def test_a_plan_names_its_augmentations() -> None:
    spec = PlanSpec(size=8, augment=("dsa", "patch-shuffle=2"), mix="cutmix", group=2)
    assert PlanSpec.from_json(spec.to_json()) == spec
    assert spec.columns[7:] == (*patch_shuffle.columns, *dsa.columns, "partner", *spec.columns[-4:])
    sides = np.full(10, 9, np.int32)
    rows = Plan(spec, sides, sides).rows(3, 2, 8)
    images = rows.image
    assert np.array_equal(rows.values[7:10], patch_shuffle.draw(2, 0, 3, images))
    assert np.array_equal(rows.values[10:18], dsa.draw(8, 0, 3, images))
    plain = Plan(PlanSpec(size=8, mix="cutmix", group=2), sides, sides).rows(3, 2, 8)
    assert np.array_equal(rows.values[:7], plain.values[:7])
    assert np.array_equal(rows.values[18:], plain.values[7:])
    assert Plan(spec, sides, sides).unmixed(3, images).names == spec.columns[:18]
    assert "augment" not in PlanSpec(size=8).to_json()


@pytest.mark.parametrize(
    "augment",
    [
        ("shuffle",),
        ("dsa=1",),
        ("dsa", "dsa"),
        ("dsa", "dsa=one"),
        ("dsa=one", "dsa=one"),
        ("patch-shuffle",),
        ("patch-shuffle=9",),
        ("patch-shuffle=x",),
        ("patch-shuffle=2,3",),
        ("rand-augment",),
        ("rand-augment=2",),
        ("rand-augment=0,9",),
        ("rand-augment=17,9",),
        ("rand-augment=2,31",),
        ("rand-augment=2,-1",),
        ("rand-augment=2,9", "rand-augment=1,9"),
    ],
)
def test_what_is_no_augmentation_is_named(augment: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match=r"^augment.*expected"):
        PlanSpec(size=8, augment=augment)


@pytest.fixture
def inverted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Another augmentation: a file, here an object, and a line in its table."""
    module = SimpleNamespace(
        columns=("inverted",),
        draw=lambda _size, _seed, view, images: (images[None].astype(np.int64) + view) % 2,
        apply=lambda images, rows, _size: torch.where(
            torch.from_numpy(rows.column("inverted").astype(bool))[:, None, None, None], -images, images
        ),
    )
    monkeypatch.setitem(pipeline.plan.augment.INPUTS, "invert", module)
    return module


def test_another_one_takes_a_file_and_a_line(inverted: Any) -> None:
    assert named(["invert"]) == [("invert", ())]
    assert "invert" in flags_of(BuildConfig)["augment"].help
    spec = PlanSpec(size=8, augment=("invert",))
    sides = np.full(4, 8, np.int32)
    rows = Plan(spec, sides, sides).rows(1, 0, 4)
    assert rows.column("inverted").tolist() == ((rows.image + 1) % 2).tolist()
    pixels = torch.randint(0, 256, (4, 8, 8, 3), dtype=torch.uint8)
    plain = normalise(pixels, MEAN, STD, torch.float32, False)
    signs = torch.from_numpy(1 - 2 * rows.column("inverted").astype(np.float32))[:, None, None, None]
    assert torch.equal(network_input(pixels, rows, MEAN, STD, torch.float32, False), plain * signs)
    assert list(fingerprints(spec.columns, torch.device("cpu"))) == ["invert"]


class Interlaced:
    """A mixing augmentation as a user would write it, in a file of its own: rows of pixels alternate."""

    columns = ("partner", "share", "first_row")

    @staticmethod
    def draw(alpha: float, size: int, seed: int, view: int, counters: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        own = draws.beta(draws.key("interlaced", seed, view), alpha, counters)
        return np.stack([np.full(len(own), 65536 * (size // 2) // size), own > 0.5]).astype(np.int64)

    @staticmethod
    def mix(pixels: torch.Tensor, rows: CropRows, group: int) -> torch.Tensor:
        partners = torch.from_numpy(rows.partners(group))
        first = torch.from_numpy(rows.column("first_row").astype(np.int64))
        other = (torch.arange(pixels.shape[1]) + first[:, None]) % 2 == 1
        return torch.where(other[:, :, None, None], pixels[partners], pixels)


def test_another_mix_takes_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.plan.augment.MIXES, "interlaced", Interlaced)
    mixes = ["none", *pipeline.plan.augment.MIXES]
    assert get_args(flags_of(BuildConfig)["mix"].kind) == tuple(mixes)  # the command line takes it too
    assert mixes[-1] == "interlaced"
    with pytest.raises(InputError, match=f"mix: expected one of {', '.join(mixes)}, found 'no-such'"):
        PlanSpec(size=8, mix="no-such")
    for shade in range(6):
        (tmp_path / f"{shade % 2}").mkdir(exist_ok=True)
        Image.new("RGB", (8, 8), (40 * shade,) * 3).save(tmp_path / f"{shade % 2}" / f"{shade}.png")
    manifest = scan(tmp_path)
    spec = PlanSpec(size=8, mix="interlaced", group=3, seed=4)
    assert PlanSpec.from_json(spec.to_json()) == spec
    rows = Plan(spec, manifest.heights, manifest.widths).rows(0, 0, 6)
    assert rows.names[7:] == Interlaced.columns
    renderer = make_renderer(manifest, spec, threads=1)
    crops = renderer.render(rows).numpy()
    renderer.close()
    shades = [40 * int(Path(manifest.names[image]).stem) for image in rows.image]
    for row, partner in enumerate(rows.partners(3)):
        pair = shades[row], shades[partner]
        first = int(rows.column("first_row")[row])
        expected = np.array([pair[(line + first) % 2] for line in range(8)], np.uint8)
        assert np.array_equal(crops[row], np.broadcast_to(expected[:, None, None], (8, 8, 3)))
    assert rows.weights(8).tolist() == [0.5] * 6


class Rolled:
    """An augmentation of the image before its crop, as a user would write it: columns of pixels move to the left."""

    columns = ("rolled",)

    @staticmethod
    def check(number: int | None) -> None:
        if number is None:
            raise InputError("augment roll: expected a number of pixels")

    @staticmethod
    def draw(number: int | None, seed: int, view: int, images: npt.NDArray[np.uint32]) -> npt.NDArray[np.int64]:
        del seed, view
        return np.full((1, len(images)), number, np.int64)

    @staticmethod
    def arrange(image: Tensor, values: tuple[int, ...]) -> Tensor:
        return image.roll(-values[0], 1)


def test_another_rearrangement_takes_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(pipeline.plan.augment.REARRANGEMENTS, "roll", Rolled())
    with pytest.raises(InputError, match="augment roll: expected a number of pixels"):
        PlanSpec(size=8, augment=("roll",))
    pixels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    (tmp_path / "a").mkdir()
    Image.fromarray(pixels).save(tmp_path / "a" / "0.png")
    manifest, spec = scan(tmp_path), PlanSpec(size=8, augment=("roll=3",), crop="center", flip=0.0)
    renderer = make_renderer(manifest, spec, threads=1)
    crops = renderer.render(Plan(spec, manifest.heights, manifest.widths).rows(0, 0, 1)).numpy()
    renderer.close()
    assert np.array_equal(crops[0], np.concatenate([pixels[:, 3:], pixels[:, :3]], axis=1))


def test_an_operator_that_works_otherwise_is_refused() -> None:
    known = fingerprints(dsa.columns, torch.device("cpu"))
    assert known == fingerprints(dsa.columns, torch.device("cpu"))
    crops = np.zeros((1, 8, 8, 3), np.uint8)
    there: Any = {"model": "there", "operators": known}
    near: Any = {"model": "here", "operators": {"dsa": [number + 5e-6 for number in known["dsa"]]}}
    assert compare(crops, crops, there, near).maximum == 0
    far: Any = {"model": "here", "operators": {"dsa": [known["dsa"][0] + 1e-4, *known["dsa"][1:]]}}
    others: tuple[Any, ...] = (far, {"model": "here"})
    for other in others:
        with pytest.raises(MismatchError, match="operator dsa: expected what the store's renderer makes"):
            compare(crops, crops, there, other)


def test_factor_crops_show_a_cell_or_the_whole() -> None:
    heights, widths = np.full(40_000, 7, np.int32), np.full(40_000, 10, np.int32)
    spec = PlanSpec(size=4, crop="factor", factor=3)
    boxes = Plan(spec, heights, widths).rows(0, 0, 40_000).boxes()
    found, counts = np.unique(boxes, axis=0, return_counts=True)
    cells = [[2 * i, 3 * j, 2, 3] for i in range(3) for j in range(3)]
    assert sorted(found.tolist()) == sorted([[0, 0, 7, 10], *cells])
    assert counts / 40_000 == pytest.approx(np.where(found[:, 2] == 7, 1 / 9, 8 / 81), abs=0.008)
    whole = Plan(PlanSpec(size=4, crop="factor"), heights[:50], widths[:50]).rows(0, 0, 50).boxes()
    assert np.unique(whole, axis=0).tolist() == [[0, 0, 7, 10]]
    with pytest.raises(InputError, match=r"images of 8 pixels a side and more \(--factor\): image 0 is 7 x 10"):
        Plan(PlanSpec(size=8, crop="factor", factor=8), heights, widths)


@pytest.mark.parametrize("mix", ["cutmix", "mixup"])
def test_a_pair_has_a_weight_of_its_own(mix: Any) -> None:
    sides = np.full(64, 8, np.int32)
    shared, own = (
        Plan(PlanSpec(size=32, mix=mix, group=16, mix_per=per), sides, sides).rows(0, 0, 64)
        for per in ("group", "pair")
    )
    assert np.array_equal(shared.values[:8], own.values[:8])  # the crops and their partners
    assert len(np.unique(shared.weights(32))) <= 4 < 20 < len(np.unique(own.weights(32)))
    part = Plan(PlanSpec(size=32, mix=mix, group=16, mix_per="pair"), sides, sides).rows(0, 16, 48)
    assert np.array_equal(part.values, own.values[:, 16:48])
    assert "mix_per" not in PlanSpec(size=32, mix=mix, group=16).to_json()
