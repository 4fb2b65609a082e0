from __future__ import annotations

import hashlib
import math
from collections import Counter
from functools import partial

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.plan import draws

WORD = st.integers(0, 2**32 - 1)


def philox_4x32_10(key: tuple[int, ...], counter: tuple[int, ...]) -> tuple[int, ...]:
    """Salmon et al. 2011, one counter at a time, in plain integers."""
    k0, k1 = key
    x0, x1, x2, x3 = counter
    for _ in range(10):
        product0, product1 = 0xD2511F53 * x0, 0xCD9E8D57 * x2
        x0, x1, x2, x3 = (
            product1 // 2**32 ^ x1 ^ k0,
            product1 % 2**32,
            product0 // 2**32 ^ x3 ^ k1,
            product0 % 2**32,
        )
        k0, k1 = (k0 + 0x9E3779B9) % 2**32, (k1 + 0xBB67AE85) % 2**32
    return x0, x1, x2, x3


def ks_distance(a: npt.NDArray[np.float64], b: npt.NDArray[np.float64]) -> float:
    """Kolmogorov-Smirnov distance over its critical value at p = 1e-4: above 1, the samples differ."""
    a, b = np.sort(a), np.sort(b)
    at = np.concatenate([a, b])
    distance = np.abs(np.searchsorted(a, at, "right") / len(a) - np.searchsorted(b, at, "right") / len(b)).max()
    critical = math.sqrt(-math.log(1e-4 / 2) / 2) * math.sqrt(1 / len(a) + 1 / len(b))
    return float(distance / critical)


@pytest.mark.parametrize(
    ("counter", "key", "words"),
    [
        ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ],
)
def test_philox_gives_the_published_answers_of_random123(counter: str, key: str, words: str) -> None:
    c0, c1, c2, c3 = (int(word, 16) for word in counter.split())
    k0, k1 = (int(word, 16) for word in key.split())
    expected = [int(word, 16) for word in words.split()]
    assert philox_4x32_10((k0, k1), (c0, c1, c2, c3)) == tuple(expected)
    arrays = [np.array([c], np.uint32) for c in (c0, c1, c2, c3)]
    assert draws.philox((k0, k1), *arrays)[:, 0].tolist() == expected
    assert draws.philox((k0, k1), c0, c1, c2, c3)[:, 0].tolist() == expected
    assert draws.philox((k0, k1), arrays[0].astype(np.int64), c1, arrays[2], c3)[:, 0].tolist() == expected


@given(st.tuples(WORD, WORD), st.lists(st.tuples(WORD, WORD), max_size=5), WORD)
def test_philox_is_its_plain_transcription(key: tuple[int, int], counters: list[tuple[int, int]], attempt: int) -> None:
    c0, c2 = (np.array([c[i] for c in counters], np.uint32) for i in (0, 1))
    words = draws.philox(key, c0, attempt, c2)
    assert words.dtype == np.uint32
    assert words.shape == (4, len(counters))
    assert words.T.tolist() == [list(philox_4x32_10(key, (a, attempt, c, 0))) for a, c in counters]


def test_words_do_not_depend_on_how_many_are_drawn_together() -> None:
    counters = np.arange(2 * draws.CHUNK + 3)
    together = draws.philox((1, 2), counters, 5)
    for at in (0, draws.CHUNK - 1, draws.CHUNK, len(counters) - 1):
        np.testing.assert_array_equal(together[:, at : at + 1], draws.philox((1, 2), counters[at : at + 1], 5))


def test_keys_are_hashed_tuples() -> None:
    message = b"".join(len(part).to_bytes(8, "little") + part for part in (b"crop", b"7", b"-1"))
    expected = hashlib.blake2b(message, digest_size=8).digest()
    low, high = draws.key("crop", 7, -1)
    assert low.to_bytes(4, "little") + high.to_bytes(4, "little") == expected
    keys = [draws.key(what, seed, view) for what in ("a", "b") for seed in range(12) for view in range(12)]
    assert len(set(keys)) == len(keys)
    assert draws.key("a", 1, 23) != draws.key("a", 12, 3)


def test_uniform_stays_inside_and_keeps_order() -> None:
    values = draws.uniform(np.array([0, 1, 2**31, 2**32 - 1], np.uint32))
    assert values.tolist() == [0.5 / 2**32, 1.5 / 2**32, 0.5 + 0.5 / 2**32, 1 - 0.5 / 2**32]


@given(WORD, st.integers(1, 2**32))
def test_integers_are_exact_and_below_their_bound(word: int, bound: int) -> None:
    drawn = int(draws.integers(np.array([word], np.uint32), bound)[0])
    assert drawn == word * bound // 2**32 < bound
    assert int(draws.integers(np.array([word], np.uint32), np.array([bound]))[0]) == drawn


@given(st.tuples(WORD, WORD), st.lists(st.integers(0, 2**20), min_size=1, max_size=4), st.integers(1, 40))
def test_permutations_sort_64_bit_keys(key: tuple[int, int], rows: list[int], length: int) -> None:
    def sort_key(row: int, index: int) -> tuple[int, int]:
        words = philox_4x32_10(key, (index // 2, row, 0, 0))
        high, low = words[index % 2 * 2 : index % 2 * 2 + 2]
        return high * 2**32 + low, index

    expected = [sorted(range(length), key=partial(sort_key, row)) for row in rows]
    assert draws.permutations(key, np.array(rows), length).tolist() == expected
    zero = sorted(range(length), key=partial(sort_key, 0))
    assert draws.permutation(key, length).tolist() == zero


def test_equal_keys_keep_the_order_of_their_indexes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draws, "philox", lambda _key, pairs, _rows: np.stack([pairs % 3] * 4))
    expected = sorted(range(999), key=lambda i: (i // 2 % 3, i))
    assert draws.permutation((0, 0), 999).tolist() == expected


def test_every_permutation_is_as_likely() -> None:
    drawn = draws.permutations(draws.key("test"), np.arange(48_000), 4)
    counts = np.array(list(Counter(map(tuple, drawn.tolist())).values()))
    assert len(counts) == 24
    assert ((counts - 2000) ** 2 / 2000).sum() < 55  # chi-square of 23 degrees, p = 2e-4


@pytest.mark.parametrize("alpha", [0.01, 0.2, 0.5, 0.999, 1, 1.001, 2, 30, 1e6])
def test_beta_is_distributed_as_numpys(alpha: float) -> None:
    ours = draws.beta(draws.key("test", 1), alpha, np.arange(50_000))
    theirs = np.random.default_rng(0).beta(alpha, alpha, 50_000)
    assert ours.min() >= 0
    assert ours.max() <= 1
    steps = 65536 * max(1.0, math.sqrt(alpha))  # the resolution that is stored; finer where all are near 1/2
    assert ks_distance(np.rint(ours * steps), np.rint(theirs * steps)) < 1


@settings(max_examples=20)
@given(st.floats(1e-9, 1e9), st.integers(0, 2**31))
def test_beta_is_a_number_for_any_alpha_and_depends_on_its_counter_alone(alpha: float, first: int) -> None:
    values = draws.beta((first, 0), alpha, np.arange(first, first + 50))
    assert ((values >= 0) & (values <= 1)).all()
    np.testing.assert_array_equal(values[7:9], draws.beta((first, 0), alpha, np.arange(first + 7, first + 9)))
