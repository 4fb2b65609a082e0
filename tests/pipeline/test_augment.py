"""Each augmentation against torchvision's own draws, and each operator against plain numpy."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from torchvision.transforms import CenterCrop, RandomCrop, RandomResizedCrop, v2

from labelstore.format.columns import CUTMIX_COLUMNS, MIXUP_COLUMNS, CropRows
from pipeline.plan import draws
from pipeline.plan.augment import MIXES, crop, cutmix, flip, mixup
from pipeline.plan.plan import PlanSpec

DRAWS = 100_000
IntArray = npt.NDArray[np.int64]


def our_boxes(spec: PlanSpec, height: int, width: int, count: int = DRAWS) -> IntArray:
    """Boxes of many images of one size, [count, 4]."""
    sides = (np.full(count, side, np.int32) for side in (height, width))
    return crop.draw(spec.crop, spec.crop_numbers, spec.seed, 3, np.arange(count, dtype=np.uint32), *sides).T


def picture(height: int, width: int) -> torch.Tensor:
    """An image without memory, for torchvision to ask for its size."""
    return torch.empty(3, height, width, device="meta")


def difference(ours: IntArray, theirs: IntArray) -> float:
    """Two-sample chi-square statistic over its critical value at p = 1e-4; cells rarer than 20 are one."""
    cells, where = np.unique(np.concatenate([ours, theirs]), return_inverse=True)
    counts = np.stack([np.bincount(part, minlength=len(cells)) for part in np.split(where.ravel(), [len(ours)])])
    rare = counts.sum(0) < 20
    counts = np.concatenate([counts[:, ~rare], counts[:, rare].sum(1, keepdims=True)], axis=1)
    counts = counts[:, counts.sum(0) > 0]
    expected = counts.sum(1, keepdims=True) * counts.sum(0) / counts.sum()
    degrees = max(counts.shape[1] - 1, 1)
    critical = degrees * (1 - 2 / (9 * degrees) + 3.719 * math.sqrt(2 / (9 * degrees))) ** 3  # Wilson-Hilferty
    return float(((counts - expected) ** 2 / expected).sum() / critical)


def features(boxes: IntArray, height: int, width: int) -> dict[str, IntArray]:
    """Numbers that, alone and in pairs, tell two distributions of boxes apart."""
    top, left, tall, wide = boxes.T
    area = tall * wide * 60 // (height * width)
    aspect = np.rint(20 * np.log(wide / tall)).astype(np.int64)
    vertical, horizontal = 8 * top // (height - tall + 1), 8 * left // (width - wide + 1)
    return {
        "top": top * 60 // height,
        "left": left * 60 // width,
        "height": tall * 60 // height,
        "width": wide * 60 // width,
        "area and aspect": area * 1000 + aspect,
        "height and place": tall * 12 // height * 100 + vertical * 10 + horizontal,
    }


@pytest.mark.parametrize(
    ("height", "width", "numbers", "count"),
    [
        (375, 500, {}, DRAWS),
        (32, 32, {}, DRAWS),
        (600, 150, {}, DRAWS // 4),  # the box often does not fit
        (30, 400, {}, DRAWS // 4),  # the fallback nearly always
        (224, 224, {"scale": (0.25, 0.6), "ratio": (0.5, 1.0)}, DRAWS),
    ],
)
def test_resized_crops_are_distributed_as_torchvisions(
    height: int, width: int, numbers: dict[str, Any], count: int
) -> None:
    spec = PlanSpec(size=224, **numbers)
    torch.manual_seed(0)
    image, scale, ratio = picture(height, width), list(spec.scale), list(spec.ratio)
    drawn = [RandomResizedCrop.get_params(image, scale, ratio) for _ in range(count)]
    ours = features(our_boxes(spec, height, width, count), height, width)
    for name, theirs in features(np.array(drawn), height, width).items():
        assert difference(ours[name], theirs) < 1, name


def test_every_box_of_a_tiny_image_is_as_likely_as_in_torchvision() -> None:
    torch.manual_seed(0)
    image = picture(6, 5)
    drawn = [RandomResizedCrop.get_params(image, [0.08, 1.0], [3 / 4, 4 / 3]) for _ in range(DRAWS)]
    one_number = np.array([1000, 100, 10, 1])
    assert difference(our_boxes(PlanSpec(size=4), 6, 5) @ one_number, np.array(drawn) @ one_number) < 1


@given(st.integers(1, 700), st.integers(1, 700), st.floats(0.01, 1), st.floats(0.2, 5), st.integers(0, 2**32 - 1))
def test_resized_crop_is_torchvisions_algorithm_step_by_step(
    height: int, width: int, scale: float, ratio: float, image: int
) -> None:
    spec = PlanSpec(size=8, scale=(scale / 2, scale), ratio=(ratio / 1.5, ratio), seed=5)
    ours = crop.draw(
        spec.crop, spec.crop_numbers, spec.seed, 9, np.array([image], np.uint32), np.array([height]), np.array([width])
    )[:, 0]
    assert tuple(ours.tolist()) == resized_crop(spec, draws.key("crop", 5, 9), image, height, width)


def resized_crop(spec: PlanSpec, key: draws.Key, image: int, height: int, width: int) -> tuple[int, int, int, int]:
    """RandomResizedCrop.get_params with its random numbers replaced by ours."""
    low, high = (math.log(r) for r in spec.ratio)
    for attempt in range(10):
        words = [int(word) for word in draws.philox(key, image, attempt)[:, 0]]
        u = [(word + 0.5) / 2**32 for word in words]
        area = height * width * (spec.scale[0] + (spec.scale[1] - spec.scale[0]) * u[0])
        aspect = math.exp(low + (high - low) * u[1])
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            return words[2] * (height - h + 1) >> 32, words[3] * (width - w + 1) >> 32, h, w
    if width / height < spec.ratio[0]:
        w, h = width, max(round(width / spec.ratio[0]), 1)
    elif width / height > spec.ratio[1]:
        w, h = max(round(height * spec.ratio[1]), 1), height
    else:
        w, h = width, height
    return (height - h) // 2, (width - w) // 2, h, w


@pytest.mark.parametrize(("height", "width"), [(1000, 10), (7, 500), (1, 1), (3, 1)])
def test_images_in_which_no_box_fits_fall_back_as_in_torchvision(height: int, width: int) -> None:
    scale, ratio = (1.0, 1.0), (1.2, 1.3)
    theirs = RandomResizedCrop.get_params(picture(height, width), list(scale), list(ratio))
    ours = our_boxes(PlanSpec(size=8, scale=scale, ratio=ratio), height, width, 50)
    assert {tuple(box) for box in ours.tolist()} == {tuple(max(n, i // 2) for i, n in enumerate(theirs))}


@pytest.mark.parametrize(("height", "width"), [(256, 256), (256, 341), (399, 256), (257, 256)])
def test_center_fit_is_resize_and_center_crop(height: int, width: int) -> None:
    spec = PlanSpec(size=224, crop="center", resize=256)
    place = torch.arange(height * width).reshape(1, height, width)
    theirs = CenterCrop(224)(place)
    for top, left, tall, wide in our_boxes(spec, height, width, 3).tolist():
        assert torch.equal(place[:, top : top + tall, left : left + wide], theirs)


def test_center_fit_keeps_its_share_at_any_resolution() -> None:
    assert our_boxes(PlanSpec(size=224, crop="center", resize=256), 1024, 2048, 1).tolist() == [[64, 576, 896, 896]]
    assert our_boxes(PlanSpec(size=224, crop="center"), 100, 64, 1).tolist() == [[18, 0, 64, 64]]
    assert our_boxes(PlanSpec(size=2, crop="center", resize=1000), 1, 3, 1).tolist() == [[0, 1, 1, 1]]


@pytest.mark.parametrize("pad", [0, 4])
def test_padded_crops_are_distributed_as_torchvisions(pad: int) -> None:
    torch.manual_seed(0)
    image = picture(32 + 2 * pad, 32 + 2 * pad)
    theirs = np.array([RandomCrop.get_params(image, (32, 32)) for _ in range(DRAWS)])
    ours = our_boxes(PlanSpec(size=32, crop="padded", pad=pad), 32, 32)
    one_number = np.array([1000, 1, 0, 0])
    assert difference(ours @ one_number, theirs @ one_number) < 1
    assert (ours[:, 2:] == 32).all()


@pytest.mark.parametrize("probability", [0, 0.3, 0.5, 1])
def test_flips_come_as_often_as_asked(probability: float) -> None:
    bits = flip.draw(probability, 0, 0, np.arange(DRAWS, dtype=np.uint32))
    assert set(np.unique(bits)) <= {0, 1}
    assert abs(bits.mean() - probability) < 4 * math.sqrt(probability * (1 - probability) / DRAWS) + 1e-12


@pytest.mark.parametrize("alpha", [0.2, 1.0])
def test_cutmix_boxes_are_distributed_as_torchvisions(alpha: float) -> None:
    torch.manual_seed(0)
    size, count = 56, 30_000
    theirs_of = v2.CutMix(alpha=alpha, num_classes=2)
    image = [torch.empty(1, 3, size, size)]
    corners = np.array([theirs_of.make_params(image)["box"] for _ in range(count)])
    left, top, right, bottom = corners.T
    ours = cutmix.draw(alpha, size, 0, 0, np.arange(count))
    for our, their in zip(ours, (top, left, bottom - top, right - left), strict=True):
        assert difference(our, their) < 1
    assert difference(ours[2] * ours[3] // 32, (bottom - top) * (right - left) // 32) < 1
    assert difference(ours[0] // 4 * 100 + ours[3] // 4, top // 4 * 100 + (right - left) // 4) < 1


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_mixup_shares_are_distributed_as_beta(alpha: float) -> None:
    torch.manual_seed(0)
    theirs = torch.distributions.Beta(alpha, alpha).sample((DRAWS,)).double().numpy()
    ours = mixup.draw(alpha, 8, 0, 0, np.arange(DRAWS))[0]
    assert ours.min() >= 0
    assert ours.max() <= 65535
    assert difference(ours // 256, np.minimum(theirs * 65536, 65535).astype(np.int64) // 256) < 1


def test_shares_round_to_the_nearest_that_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    own = np.array([0, 0.4999, 0.5001, 0.5, 65535.4, 65535.6, 65536]) / 65536
    own[3] = 0.5
    monkeypatch.setattr(draws, "beta", lambda *_: own)
    shares = mixup.draw(1.0, 8, 0, 0, np.arange(len(own)))
    assert shares.tolist() == [[0, 0, 1, 32768, 65535, 65535, 65535]]


@st.composite
def mixed_pixels(draw: st.DrawFn, names: tuple[str, ...]) -> tuple[npt.NDArray[np.uint8], CropRows, int]:
    """Crops, rows whose partners stay in their group (the last group may be smaller), and the group."""
    count, group, size = draw(st.integers(1, 7)), draw(st.integers(1, 4)), draw(st.integers(1, 6))
    pixels = draw(npst.arrays(np.uint8, (count, size, size, 3)))
    rows = np.zeros((len(names), count), np.uint16)
    for start in range(0, count, group):
        own = range(min(group, count - start))
        rows[0, start : start + group] = draw(st.permutations(own))
    if "share" in names:
        rows[1] = draw(npst.arrays(np.uint16, count))
    else:
        rows[1:3] = draw(npst.arrays(np.uint16, (2, count), elements=st.integers(0, size)))
        rows[3:] = [[draw(st.integers(0, size - int(edge))) for edge in edges] for edges in rows[1:3]]
    return pixels, CropRows(names, rows), group


@settings(deadline=None)
@given(mixed_pixels(MIXUP_COLUMNS))
def test_mixup_blends_by_the_integer_formula(
    case: tuple[npt.NDArray[np.uint8], CropRows, int],
) -> None:
    pixels, rows, group = case
    before = pixels.copy()
    mixed = MIXES["mixup"].mix(torch.from_numpy(pixels), rows, group).numpy()
    np.testing.assert_array_equal(pixels, before)
    for at, (partner, share) in enumerate(rows.values.astype(np.int64).T):
        own, other = pixels[at].astype(np.int64), pixels[at // group * group + partner].astype(np.int64)
        expected = (share * own + (65536 - share) * other + 32768) // 65536
        np.testing.assert_array_equal(mixed[at], expected)
        weight = float(rows.weights(pixels.shape[1])[at])
        assert np.abs(mixed[at] - (weight * own + (1 - weight) * other)).max() <= 0.5 + 1e-4


@settings(deadline=None)
@given(mixed_pixels(CUTMIX_COLUMNS))
def test_cutmix_fills_the_box_from_the_partner(
    case: tuple[npt.NDArray[np.uint8], CropRows, int],
) -> None:
    pixels, rows, group = case
    before = pixels.copy()
    mixed = MIXES["cutmix"].mix(torch.from_numpy(pixels), rows, group).numpy()
    np.testing.assert_array_equal(pixels, before)
    for at, (partner, top, left, height, width) in enumerate(rows.values.astype(int).T):
        expected = before[at].copy()
        box = np.s_[top : top + height, left : left + width]
        expected[box] = before[at // group * group + partner][box]
        np.testing.assert_array_equal(mixed[at], expected)


def test_weights_are_the_shares_of_the_pixels() -> None:
    """A white crop mixed with a black one is as bright as its own weight."""
    size = 16
    for mix in MIXES.values():
        shared = mix.draw(1.0, size, 0, 0, np.arange(50)).repeat(2, axis=1)
        rows = CropRows(mix.columns, np.concatenate([[[1, 0] * 50], shared]).astype(np.uint16))
        pixels = torch.zeros(100, size, size, 3, dtype=torch.uint8)
        pixels[::2] = 255
        mixed = mix.mix(pixels, rows, 2).double().mean((1, 2, 3)).numpy() / 255
        np.testing.assert_allclose(mixed[::2], rows.weights(size)[::2], atol=0.5 / 255 + 1e-6)
        np.testing.assert_allclose(1 - mixed[1::2], rows.weights(size)[1::2], atol=0.5 / 255 + 1e-6)


def test_many_crops_mix_as_few_do() -> None:
    pixels = torch.randint(0, 256, (70, 5, 5, 3), dtype=torch.uint8)
    values = np.stack([(np.arange(70) + 1) % 7, np.arange(70) * 900])
    rows = CropRows(MIXUP_COLUMNS, values.astype(np.uint16))
    together = mixup.mix(pixels, rows, 7)
    for first in range(0, 70, 7):
        part = slice(first, first + 7)
        assert torch.equal(together[part], mixup.mix(pixels[part], rows.take(part), 7))


def test_mixup_rounds_halves_up() -> None:
    pixels = torch.tensor([1, 0, 254, 255], dtype=torch.uint8).reshape(4, 1, 1, 1).expand(4, 1, 1, 3)
    rows = CropRows(MIXUP_COLUMNS, np.array([[1, 0, 1, 0], [32768] * 4], np.uint16))
    assert mixup.mix(pixels, rows, 2)[:, 0, 0, 0].tolist() == [1, 1, 255, 255]
