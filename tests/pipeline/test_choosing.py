"""The encoding of a new store: reckoned bytes beside measured ones, and what is chosen."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.encodings import Pairs, make_encoding
from labelstore.encodings.fitting import Sample, fit
from labelstore.encodings.transform import Transform
from pipeline.build.choosing import describe, estimate, estimates, smaller


# Measured: a MobileNetV2's labels of photographs, in blocks of 44 views: bytes of a label and of a calibration.
@pytest.mark.parametrize(
    ("columns", "images", "fidelity", "label", "once"),
    [
        (64, 50, 0.98, 12.8, 10_053), (64, 200, 0.95, 7.2, 12_556), (100, 200, 0.98, 20.1, 27_381),
        (200, 50, 0.98, 38.0, 75_635), (200, 200, 0.95, 21.3, 79_104), (400, 200, 0.98, 64.0, 289_426),
        (400, 200, 0.95, 34.8, 240_306), (1000, 50, 0.98, 92.7, 1_243_115), (1000, 200, 0.95, 49.6, 692_477),
    ],
)  # fmt: skip
def test_what_is_reckoned_is_near_what_was_measured(
    columns: int, images: int, fidelity: float, label: float, once: float
) -> None:
    found = estimate("transform", columns, images, 44 * images, fidelity=fidelity)
    assert found.label == pytest.approx(label, rel=0.15)
    assert found.once == pytest.approx(once, rel=0.26)


# Measured: MobileNetV2's labels of 1,000 photographs at 0.95: bytes of a label, and of a mean label.
@pytest.mark.parametrize(("steps", "label", "mean"), [(2, 52.0, 133), (8, 44.7, 273), (16, 42.8, 409)])
def test_what_finer_means_take_is_near_what_was_measured(steps: int, label: float, mean: float) -> None:
    found, fewer = (
        estimate("transform", 1000, images, 100_000, fidelity=0.95, mean_steps=steps) for images in (1000, 100)
    )
    assert found.label == pytest.approx(label, rel=0.15)
    assert (found.once - fewer.once) / 900 == pytest.approx(mean, rel=0.35)


def test_what_a_label_of_a_small_set_costs_is_said() -> None:
    """Ten images a class of ten, 35 views, 1,000 columns: 464.8 bytes were measured, crop numbers included."""
    found = estimates(1000, 100, 3500, fidelity=None, mixed=False)
    assert smaller(found) == "transform"
    assert found["transform"].each == pytest.approx(460, rel=0.06)
    text = describe("transform", found, 100, 1000, "the smaller one")
    assert "transform (the smaller one), about 440.9 B a label: 100.2 B of codes" in text
    assert "only 3,500 labels" in text
    assert "int8 1,004.1 B, float16 2,000.0 B" in text
    assert "calibrating labels 6,600 crops more" in text
    assert text.endswith("; the numbers of each crop add about 5 B")
    few = estimates(1000, 10, 100, fidelity=None, mixed=False)
    assert smaller(few) == "int8"
    assert "would be shared by only 100 labels" in describe("int8", few, 10, 1000, "the smaller one")


@given(st.integers(1, 22_000), st.integers(1, 10**6), st.integers(1, 2000), st.booleans())
def test_more_views_never_make_a_label_larger_and_narrow_labels_stay_int8(
    columns: int, images: int, views: int, mixed: bool
) -> None:
    found, more = (
        estimates(columns, images, images * number, fidelity=None, mixed=mixed) for number in (views, views + 1)
    )
    assert all(more[name].each <= found[name].each for name in found)
    assert ("transform" in found) is (columns >= 64)
    assert smaller(found) == "int8" or found["transform"].each < found["int8"].each
    assert describe(smaller(found), found, images, columns, "why").startswith(
        f"encoding: {smaller(found)} (why), about "
    )


def test_a_finer_fidelity_takes_more() -> None:
    sizes = [estimate("transform", 1000, 100, 10_000, fidelity=each).each for each in (0.9, 0.95, 0.98, 0.999)]
    assert sizes == sorted(sizes)


def test_a_basis_takes_the_bytes_that_its_numbers_need() -> None:
    """Rows of a rotation of C columns, as a calibration of drawn labels holds them."""
    rng = np.random.default_rng(0)
    encoding = make_encoding({"name": "transform", "step": 0.05}, 64)
    assert isinstance(encoding, Transform)
    logits = rng.standard_normal((2000, 64)).astype(np.float32)
    sample = Sample(logits, Pairs.unmixed(np.zeros(len(logits), np.int64)))
    basis = fit(encoding, np.zeros((1, 64), np.float32), sample, sample, np.zeros(1, np.int64)).calibration.basis
    bits = np.log2(np.sqrt(2 * np.pi * np.e) * basis[1:].astype(np.float64).std())
    reckoned = estimate("transform", 64, 1, 1)
    assert basis.size * bits / 8 == pytest.approx(reckoned.once, rel=0.25)
