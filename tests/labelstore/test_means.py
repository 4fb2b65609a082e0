"""Mean labels against numpy's dense least squares in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.encodings import Pairs
from labelstore.errors import InputError
from labelstore.operations.means import least_squares_means


def design(pairs: Pairs, images: int) -> np.ndarray:
    """One row a crop: its weights at its images."""
    rows = np.arange(pairs.images.size)
    matrix = np.zeros((rows.size, images))
    np.add.at(matrix, (rows, pairs.images.reshape(-1)), pairs.weights.reshape(-1))
    np.add.at(matrix, (rows, pairs.partners.reshape(-1)), 1 - pairs.weights.reshape(-1))
    return matrix


def oracle(pairs: Pairs, logits: np.ndarray, images: int) -> np.ndarray:
    flat = logits.reshape(-1, logits.shape[-1]).astype(np.float64)
    center = flat.mean(axis=0)
    shortest, *_ = np.linalg.lstsq(design(pairs, images), flat - center, rcond=1e-6)
    return center + shortest


def draw(images: int, views: int, columns: int, seed: int, *, mixed: bool = True) -> tuple[Pairs, np.ndarray]:
    """Labels as a store has them: every view shows each image once, mixed with another of it."""
    rng = np.random.default_rng(seed)
    own = np.stack([rng.permutation(images) for _ in range(views)])
    partners = np.stack([rng.permutation(images) for _ in range(views)])
    weights = rng.uniform(size=own.shape) if mixed else np.ones(own.shape)
    weights[rng.uniform(size=own.shape) < 0.2] = 1
    means = 5 * rng.standard_normal((images, columns)) + 3
    pairs = Pairs(own, partners, weights)
    noise = rng.standard_normal((views * images, columns))
    logits = (design(pairs, images) @ means + noise).astype(np.float32).reshape(views, images, columns)
    return pairs, logits


@settings(max_examples=20, deadline=None)
@given(
    images=st.integers(1, 60),
    views=st.integers(2, 6),
    columns=st.integers(1, 9),
    seed=st.integers(0, 2**16),
    budget=st.sampled_from([1, 4096, 1 << 30]),
)
def test_mixed_crops_give_the_least_squares(images: int, views: int, columns: int, seed: int, budget: int) -> None:
    pairs, logits = draw(images, views, columns, seed)
    blocks = ((pairs.take(view), logits[view]) for view in range(views))
    found = least_squares_means(blocks, images, columns, budget=budget)
    matrix = design(pairs, images)
    expected = oracle(pairs, logits, images)
    best, ours = (np.square(matrix @ means - logits.reshape(-1, columns)).sum() for means in (expected, found))
    assert ours <= best * (1 + 1e-6) + 1e-6
    if np.linalg.cond(matrix) < 100:
        np.testing.assert_allclose(found, expected, atol=1e-3)


def test_unmixed_crops_give_plain_means_and_an_unseen_image_the_mean_of_all() -> None:
    pairs, logits = draw(50, 4, 5, 1, mixed=False)
    found = least_squares_means([(pairs, logits)], 51, 5)
    sums = np.zeros((51, 5))
    np.add.at(sums, pairs.images.reshape(-1), logits.reshape(-1, 5).astype(np.float64))
    np.testing.assert_allclose(found[:50], sums[:50] / 4, atol=1e-5)
    np.testing.assert_allclose(found[50], logits.reshape(-1, 5).mean(axis=0), atol=1e-5)


def test_crops_that_leave_two_images_open_divide_evenly() -> None:
    pairs = Pairs(np.array([0, 1, 2]), np.array([1, 0, 2]), np.array([0.5, 0.5, 1.0]))
    logits = np.array([[4.0], [4.0], [1.0]], np.float32)
    np.testing.assert_allclose(least_squares_means([(pairs, logits)], 3, 1), [[4], [4], [1]], atol=1e-5)


def test_no_crops_is_an_error() -> None:
    with pytest.raises(InputError, match="found none"):
        least_squares_means([], 3, 2)
