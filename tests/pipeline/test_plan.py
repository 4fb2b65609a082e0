from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.errors import FormatError, InputError
from pipeline.plan.plan import ORDERS_KEPT, Plan, PlanSpec

GOLDEN = Path(__file__).with_name("golden_plan.json")
GOLDEN_SPECS: dict[str, dict[str, Any]] = {
    "resized": {"size": 224},
    "resized, other numbers": {
        "size": 64,
        "seed": 2**40,
        "scale": (0.5, 1.0),
        "ratio": (0.5, 2),
        "flip": 0.1,
    },
    "center": {"size": 224, "crop": "center", "resize": 256, "flip": 0.0},
    "padded": {"size": 32, "crop": "padded", "seed": 1},
    "cutmix": {"size": 224, "mix": "cutmix", "group": 4},
    "cutmix, alpha 0.5": {"size": 96, "mix": "cutmix", "alpha": 0.5, "group": 2},
    "mixup, alpha 0.2": {"size": 224, "mix": "mixup", "alpha": 0.2, "group": 3},
    "mixup, alpha 3": {"size": 224, "mix": "mixup", "alpha": 3.0, "group": 5},
    "rand-augment": {"size": 224, "augment": ("rand-augment=2,9",)},
    "dsa=one": {"size": 32, "crop": "padded", "flip": 0.0, "augment": ("dsa=one",)},
    "patch-shuffle, rand-augment, dsa, mixup": {
        "size": 64,
        "augment": ("dsa", "rand-augment=3,15", "patch-shuffle=3"),
        "mix": "mixup",
        "group": 4,
    },
}


def sides(spec: PlanSpec, images: int) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int32]]:
    """Heights and widths that differ from image to image, some extreme."""
    if spec.crop == "padded":
        return (np.full(images, spec.size, np.int32),) * 2
    index = np.arange(images)
    return (30 + index * 7919 % 971).astype(np.int32), (20 + index * 104729 % 1301).astype(np.int32)


def plan(images: int, **numbers: Any) -> Plan:
    spec = PlanSpec(**numbers)
    return Plan(spec, *sides(spec, images))


def golden() -> dict[str, Any]:
    """Rows of small plans in full, and digests of larger ones."""
    found: dict[str, Any] = {}
    for name, numbers in GOLDEN_SPECS.items():
        small, large = plan(11, **numbers), plan(70_001, **numbers)
        rows = {view: small.rows(view, 0, 11) for view in (0, 299)}
        digest = hashlib.sha256(large.rows(7, 0, 70_001).values.astype("<u2").tobytes()).hexdigest()
        found[name] = {
            "columns": list(rows[0].names),
            **{f"view {view}": some.values.tolist() for view, some in rows.items()},
            "digest of 70,001 rows": digest,
        }
    return found


def test_the_numbers_are_pinned() -> None:
    """A change here means that no store made before can be resumed or extended."""
    assert golden() == json.loads(GOLDEN.read_text())


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    """Any plan of a few images of any sides."""
    size = draw(st.integers(1, 300))
    numbers: dict[str, Any] = {
        "size": size,
        "seed": draw(st.integers(0, 2**63 - 1)),
        "flip": draw(st.floats(0, 1)),
    }
    numbers["crop"] = draw(st.sampled_from(["resized", "center", "padded"]))
    if numbers["crop"] == "resized":
        for name, most in (("scale", 1.0), ("ratio", 10.0)):
            numbers[name] = tuple(sorted(draw(st.tuples(*[st.floats(0.01, most)] * 2))))
    elif numbers["crop"] == "center":
        numbers["resize"] = draw(st.none() | st.integers(size, 3 * size))
    else:
        numbers["pad"] = draw(st.integers(0, size))
    numbers["mix"] = draw(st.sampled_from(["none", "cutmix", "mixup"]))
    if numbers["mix"] != "none":
        numbers |= {"group": draw(st.integers(2, 9)), "alpha": draw(st.floats(0.01, 100))}
    side = st.just(size) if numbers["crop"] == "padded" else st.integers(1, 65_535)
    images = draw(st.lists(st.tuples(side, side), min_size=1, max_size=30))
    heights, widths = np.array(images, np.int32).T
    return Plan(PlanSpec(**numbers), heights, widths)


VIEW = st.integers(0, 2**40)


@settings(deadline=None)
@given(plans(), VIEW)
def test_every_image_comes_once_with_a_box_inside_it(some: Plan, view: int) -> None:
    rows = some.rows(view, 0, some.images)
    assert rows.names == some.spec.columns
    assert sorted(some.order(view).tolist()) == list(range(some.images))
    np.testing.assert_array_equal(rows.image, some.order(view))
    heights, widths = some._heights[rows.image], some._widths[rows.image]
    pad = some.spec.effective_pad
    top, left, height, width = rows.boxes(pad).T
    assert (height >= 1).all()
    assert (width >= 1).all()
    assert (top >= -pad).all()
    assert (left >= -pad).all()
    assert (top + height <= heights + pad).all()
    assert (left + width <= widths + pad).all()
    assert (rows.column("bits") <= 1).all()


@settings(deadline=None)
@given(plans().filter(lambda some: some.spec.mix != "none"), VIEW)
def test_partners_permute_their_group_which_shares_one_weight(some: Plan, view: int) -> None:
    rows, group, size = some.rows(view, 0, some.images), some.spec.group, some.spec.size
    partners = rows.partners(group)
    for start in range(0, some.images, group):
        part = slice(start, start + group)
        positions = np.arange(some.images)[part]
        assert sorted(partners[part]) == positions.tolist()
        assert len(np.unique(rows.values[8:, part], axis=1).T) == 1
    weights = rows.weights(size)
    assert ((weights >= 0) & (weights <= 1)).all()
    if some.spec.mix == "cutmix":
        top, left, height, width = rows.mix_boxes().T
        assert (top + height <= size).all()
        assert (left + width <= size).all()


@settings(deadline=None)
@given(plans(), VIEW, st.data())
def test_any_slice_is_the_slice_of_the_whole(some: Plan, view: int, data: st.DataObject) -> None:
    bounds = [*range(0, some.images, some.spec.group), some.images]
    start, stop = sorted(data.draw(st.tuples(*[st.sampled_from(bounds)] * 2)))
    rows = some.rows(view, start, stop)
    np.testing.assert_array_equal(rows.values, some.rows(view, 0, some.images).values[:, start:stop])


@pytest.mark.parametrize("numbers", GOLDEN_SPECS.values(), ids=GOLDEN_SPECS.keys())
def test_chunks_of_work_do_not_show(numbers: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    whole = plan(103, **numbers).rows(5, 0, 103)
    monkeypatch.setattr("pipeline.plan.draws.CHUNK", 7)
    np.testing.assert_array_equal(plan(103, **numbers).rows(5, 0, 103).values, whole.values)


def test_views_and_seeds_differ_in_everything() -> None:
    numbers: dict[str, Any] = {"size": 224, "mix": "cutmix", "group": 8}
    rows = [plan(4_000, **numbers, seed=seed).rows(view, 0, 4_000) for seed in (0, 1) for view in (0, 1, 2)]
    for one, other in ((a, b) for i, a in enumerate(rows) for b in rows[:i]):
        assert (one.image == other.image).mean() < 0.01
        by_image = [r.values[:, np.argsort(r.image)] for r in (one, other)]
        same = dict(zip(one.names, (by_image[0] == by_image[1]).mean(axis=1), strict=True))
        assert 0.4 < same["bits"] < 0.6
        assert same["height"] < 0.15  # small images have few boxes
        assert (one.values[7:] == other.values[7:]).mean() < 0.3


def test_draws_of_one_purpose_do_not_move_those_of_another() -> None:
    plain = plan(500, size=224)
    for other in (plan(500, size=224, flip=0.1), plan(500, size=224, mix="mixup", group=4)):
        np.testing.assert_array_equal(other.rows(1, 0, 500).values[:6], plain.rows(1, 0, 500).values[:6])


def test_a_crop_depends_on_its_own_image_alone() -> None:
    spec = PlanSpec(size=224)
    heights, widths = sides(spec, 500)
    before = Plan(spec, heights, widths).rows(1, 0, 500)
    changed = heights.copy()
    changed[77] += 100
    after = Plan(spec, changed, widths).rows(1, 0, 500)
    np.testing.assert_array_equal(before.image, after.image)
    assert set(before.image[(before.values != after.values).any(axis=0)].tolist()) == {77}


def test_more_than_65536_images_keep_their_index() -> None:
    rows = plan(200_000, size=8).rows(0, 0, 200_000)
    assert sorted(rows.image.tolist()) == list(range(200_000))


def test_orders_are_kept_within_a_bound_and_cannot_be_changed() -> None:
    some = plan(100, size=8)
    first = some.order(0)
    assert some.order(0) is first
    with pytest.raises(ValueError, match="read-only"):
        first[0] = 1
    for view in range(1, ORDERS_KEPT + 1):
        some.order(view)
    assert some.order(0) is not first
    np.testing.assert_array_equal(some.order(0), first)


@pytest.mark.parametrize("numbers", GOLDEN_SPECS.values(), ids=GOLDEN_SPECS.keys())
def test_a_plan_survives_json(numbers: dict[str, Any]) -> None:
    spec = PlanSpec(**numbers)
    assert PlanSpec.from_json(json.loads(json.dumps(spec.to_json()))) == spec


def test_json_holds_what_has_an_effect() -> None:
    assert PlanSpec(size=32, crop="padded").to_json() == {
        "size": 32,
        "seed": 0,
        "crop": "padded",
        "pad": 4,
        "flip": 0.5,
        "mix": "none",
        "interpolation": "bilinear",
    }


@pytest.mark.parametrize(
    ("numbers", "message"),
    [
        ({"size": 0}, "size: expected 1 to 65535 pixels, found 0"),
        ({"seed": -1}, "seed: expected 0 <= seed"),
        ({"crop": "random"}, "crop: expected one of resized, center, padded, factor, found 'random'"),
        ({"mix": "cutout"}, "mix: expected one of none, cutmix, mixup, found 'cutout'"),
        ({"interpolation": "nearest"}, "interpolation: expected one of bilinear, bicubic"),
        ({"scale": (0.0, 1.0)}, "scale: expected two shares"),
        ({"scale": (0.8, 0.5)}, "scale: expected two shares"),
        ({"scale": (0.8, float("nan"))}, "scale: expected two shares"),
        ({"ratio": (1.0, float("inf"))}, "ratio: expected two ratios"),
        ({"flip": 1.5}, "flip: expected a probability"),
        ({"flip": float("nan")}, "flip: expected a probability"),
        ({"crop": "center", "resize": 7}, "resize: expected at least the size, 8, found 7"),
        ({"crop": "center", "resize": 0}, "resize: expected at least the size"),
        ({"crop": "padded", "pad": 9}, "pad: expected 0 to 8 pixels"),
        ({"mix": "mixup", "group": 2, "alpha": 0.0}, "alpha: expected 1e-9 to 1e9, found 0.0"),
        ({"mix": "cutmix", "group": 1}, "group: expected 2 to 65536 crops with mix cutmix, found 1"),
        ({"mix": "cutmix", "group": 65_537}, "group: expected 2 to 65536"),
        (
            {"group": 4},
            "group 4: has an effect only with mix cutmix or mixup, found mix none; leave group out",
        ),
        ({"crop": "padded", "scale": (0.5, 1.0)}, "scale .* only with crop resized, found crop padded"),
        ({"resize": 10}, "resize 10: has an effect only with crop center"),
    ],
)
def test_what_is_not_a_plan_is_refused(numbers: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        PlanSpec(**{"size": 8, **numbers})


@pytest.mark.parametrize("data", [{}, {"size": 8, "zoom": 2}, {"size": "8"}, {"size": 8, "scale": [1]}, {"size": 0}])
def test_unreadable_json_is_refused(data: dict[str, Any]) -> None:
    with pytest.raises(FormatError, match="the plan of this store cannot be read"):
        PlanSpec.from_json(data)


def test_images_that_the_plan_cannot_use_are_named() -> None:
    good, bad = np.full(3, 32, np.int32), np.array([32, 32, 70_000], np.int32)
    with pytest.raises(InputError, match="image 2: expected 1 to 65535 pixels, found 32 x 70000"):
        Plan(PlanSpec(size=8), good, bad)
    with pytest.raises(InputError, match="image 2: expected 1 to 65535 pixels, found 0 x 32"):
        Plan(PlanSpec(size=8), np.array([32, 32, 0], np.int32), good)
    with pytest.raises(InputError, match=r"needs images of 32 x 32 pixels \(--size\): image 1 is 32 x 40"):
        Plan(PlanSpec(size=32, crop="padded"), good, np.array([32, 40, 32], np.int32))
    with pytest.raises(InputError, match=r"1 to .* images, found 0"):
        Plan(PlanSpec(size=8), good[:0], good[:0])


@pytest.mark.parametrize(("start", "stop"), [(-4, 4), (0, 12), (2, 8), (0, 6), (8, 4)])
def test_positions_that_cut_a_group_are_refused(start: int, stop: int) -> None:
    with pytest.raises(InputError, match=f"positions {start} to {stop}: expected whole groups of 4"):
        plan(11, size=8, mix="mixup", group=4).rows(0, start, stop)


if __name__ == "__main__":  # writes the golden file after adding a plan to it
    GOLDEN.write_text(json.dumps(golden(), indent=1).replace("\n    ", "").replace("\n   ]", "]") + "\n")
