"""Digests, the comparison of renderers, batches out of groups, and normalising."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from labelstore.errors import MismatchError
from labelstore.format.columns import CROP_COLUMNS, CropRows
from labelstore.spec import Json
from pipeline.render.audit import compare, pixels_digest
from pipeline.render.batches import render_batches
from pipeline.render.normalise import at_once, normalise

OURS: Json = {"backend": "dali", "device": "cpu", "versions": {"Pillow": "12.0"}}
THEIRS: Json = {"backend": "dali", "device": "cuda", "versions": {"Pillow": "12.0"}}


def pixels(count: int = 6) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(50, 200, (count, 8, 8, 3), dtype=np.uint8))


def test_the_digest_is_of_the_first_four_crops() -> None:
    crops = pixels()
    expected = hashlib.blake2b(crops[:4].numpy().tobytes(), digest_size=8).hexdigest()
    assert pixels_digest(crops) == pixels_digest(crops[:4].numpy()) == expected
    assert pixels_digest(crops[:, :, ::2]) == pixels_digest(crops[:, :, ::2].clone())  # whatever the strides
    changed = crops.clone()
    changed[4] += 1
    assert pixels_digest(changed) == expected
    changed[3, 7, 7, 2] += 1
    assert pixels_digest(changed) != expected


def test_the_same_renderer_makes_the_same_pixels() -> None:
    stored = pixels()
    assert compare(stored.clone(), stored.numpy(), OURS, OURS).maximum == 0
    ours = stored.clone()
    ours[5, 0, 0, 0] += 1
    with pytest.raises(MismatchError, match=r"expected equal pixels.*0\.001 levels on average and 1 at most.*'cpu'"):
        compare(ours, stored, OURS, OURS)


def test_another_renderer_stays_within_the_band() -> None:
    stored = pixels()
    ours = stored.clone()
    ours[0, 0, 0, 0] += 40
    ours[1:3] -= 1
    difference = compare(ours, stored, THEIRS, OURS)
    assert difference.maximum == 40
    assert difference.mean == pytest.approx((40 + 2 * 192) / (6 * 192))


@pytest.mark.parametrize("case", ["one pixel too far", "all a little too far"])
def test_more_than_another_renderer_explains_is_refused(case: str) -> None:
    stored = pixels()
    ours = stored.clone()
    if case == "one pixel too far":
        ours[0, 0, 0, 0] -= 41
    else:
        ours += 1
        ours[0, 0, 0, 0] += 1
    with pytest.raises(MismatchError, match=r"at most 1\.0 on average and 40 anywhere") as refused:
        compare(ours, stored, THEIRS, OURS)
    message = str(refused.value)
    assert str(THEIRS) in message
    assert str(OURS) in message
    assert "they differ first in device" in message


def test_crops_of_another_size_are_refused() -> None:
    with pytest.raises(MismatchError, match=r"expected \[6, 8, 8, 3\] as in the store, found \[5, 8, 8, 3\]"):
        compare(pixels()[:5], pixels(), OURS, OURS)


class Numbers:
    """A renderer whose crops are one pixel: the image index."""

    def __init__(self, group: int) -> None:
        self.id: dict[str, Json] = {}
        self.group = group
        self.calls: list[int] = []

    def render(self, rows: CropRows) -> torch.Tensor:
        assert rows.image[0] % self.group == 0, "from the start of a group"
        self.calls.append(len(rows))
        return torch.from_numpy(rows.image.astype(np.uint8))[:, None, None, None].expand(-1, 1, 1, 3).clone()

    def close(self) -> None:
        """Nothing to release."""


@given(
    lengths=st.lists(st.integers(1, 60), min_size=1, max_size=4),
    batch=st.integers(1, 50),
    group=st.integers(1, 20),
)
def test_batches_hold_every_crop_once_and_in_order(lengths: list[int], batch: int, group: int) -> None:
    rows = []
    for length in lengths:
        values = np.zeros((len(CROP_COLUMNS), length), np.uint16)
        values[0] = np.arange(length)
        rows.append(CropRows(CROP_COLUMNS, values))
    renderer = Numbers(group)
    streamed = list(render_batches(renderer, rows, batch, group))
    batches = [crops for crops, _ in streamed]
    assert all(np.array_equal(part.image, crops[:, 0, 0, 0]) for crops, part in streamed)
    assert [len(crops) for crops in batches[:-1]] == [batch] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= batch
    found = torch.cat(batches)[:, 0, 0, 0].tolist()
    assert found == [position for length in lengths for position in range(length)]
    assert max(renderer.calls) <= max(batch, group)
    remaining = iter(renderer.calls)
    for length in lengths:  # whole groups, but for the last ones of rows that do not divide
        while length > 0:
            call = next(remaining)
            assert call % group == 0 or call == length
            length -= call


def test_nothing_is_rendered_before_it_is_asked_for() -> None:
    values = np.zeros((len(CROP_COLUMNS), 100), np.uint16)
    renderer = Numbers(1)
    batches = render_batches(renderer, [CropRows(CROP_COLUMNS, values)], 10, 1)
    assert renderer.calls == []
    next(batches)
    assert renderer.calls == [10]


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_normalising_is_the_usual_formula(dtype: torch.dtype, channels_last: bool) -> None:
    crops = pixels()
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    found = normalise(crops, mean, std, dtype, channels_last=channels_last)
    expected = (crops.numpy() / 255 - np.array(mean)) / np.array(std)
    tolerance = 1e-6 if dtype == torch.float32 else 1e-2
    np.testing.assert_allclose(found.float().numpy(), expected.transpose(0, 3, 1, 2), atol=tolerance, rtol=tolerance)
    assert found.dtype == dtype
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
    assert torch.equal(crops, pixels())


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_gpus_one_pass_gives_the_same(dtype: torch.dtype, channels_last: bool) -> None:
    scale, shift = torch.tensor([0.017, 0.0175, 0.0174]), torch.tensor([-2.1, -2.0, -1.8])
    found = at_once(pixels(), scale, shift, dtype, channels_last)
    expected = (pixels() * scale + shift).to(dtype).permute(0, 3, 1, 2)
    torch.testing.assert_close(found, expected, rtol=1e-6 if dtype == torch.float32 else 1e-2, atol=1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)
