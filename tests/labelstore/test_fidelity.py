from __future__ import annotations

import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from labelstore.encodings.bands import bands_of, missed
from labelstore.encodings.fidelity import Quality, agreement, divergence, gift_fidelity, summarize


def target(t: list[float], y: int, y2: int, weight: float) -> list[float]:
    """The refined label, written out number by number."""

    def smooth(of: int) -> list[float]:
        return [0.9 if c == of else 0.1 / (len(t) - 1) for c in range(len(t))]

    s = [weight * a + (1 - weight) * b for a, b in zip(smooth(y), smooth(y2), strict=True)]
    s_length, t_length = math.hypot(*s), math.hypot(*t)
    return [(b / t_length if t_length >= 1e-12 else 0) + 0.1 * a / s_length for a, b in zip(s, t, strict=True)]


def test_against_numbers_written_out() -> None:
    rng = np.random.default_rng(0)
    exact = rng.standard_normal((600, 5))
    exact[3] = 0
    decoded = np.round(exact, 1)
    y, y2 = rng.integers(0, 5, 600), rng.integers(0, 5, 600)
    weights = rng.random(600)
    weights[:50] = 1
    found = gift_fidelity(exact, decoded, y, y2, weights)
    for row in range(600):
        u, v = (target(list(t[row]), int(y[row]), int(y2[row]), float(weights[row])) for t in (exact, decoded))
        cosine = math.sumprod(u, v) if hasattr(math, "sumprod") else sum(a * b for a, b in zip(u, v, strict=True))
        assert found[row] == pytest.approx(cosine / math.hypot(*u) / math.hypot(*v), abs=1e-12)


def test_unmixed_is_mixed_with_itself() -> None:
    rng = np.random.default_rng(1)
    exact, y = rng.standard_normal((9, 4)), rng.integers(0, 4, 9)
    decoded = exact + 0.1 * rng.standard_normal((9, 4))
    plain = gift_fidelity(exact, decoded, y)
    assert plain == pytest.approx(gift_fidelity(exact, decoded, y, y, rng.random(9)), abs=1e-14)
    assert plain == pytest.approx(gift_fidelity(exact, decoded, y, rng.integers(0, 4, 9), np.ones(9)), abs=1e-14)


def softmax(row: list[float], temperature: float) -> list[Decimal]:
    powers = [(Decimal(value) / Decimal(temperature)).exp() for value in row]
    return [power / sum(powers) for power in powers]


@pytest.mark.parametrize("temperature", [1, 20])
def test_divergence_against_decimals(temperature: float) -> None:
    rng = np.random.default_rng(2)
    exact = 8 * rng.standard_normal((40, 6))
    decoded = exact + 0.3 * rng.standard_normal((40, 6)) * rng.choice([0, 1e-3, 1], (40, 1))
    for row, found in enumerate(divergence(exact, decoded, temperature)):
        ours, theirs = (softmax(list(logits[row]), temperature) for logits in (exact, decoded))
        value = sum(p * (p.ln() - q.ln()) for p, q in zip(ours, theirs, strict=True))
        assert found == pytest.approx(float(value), rel=1e-9, abs=1e-14)


def test_divergence_ignores_offsets_and_survives_what_softmax_cannot_tell() -> None:
    x = np.random.default_rng(3).standard_normal((5, 9)).astype(np.float32)
    y = (x + np.float32(0.25)).astype(np.float32)
    assert divergence(x, y - 700, 1) == pytest.approx(divergence(x, y, 1), abs=1e-6)
    masked = np.where(np.arange(9) % 2, x, np.float32(-1e38))
    assert np.array_equal(divergence(masked, masked, 1), np.zeros(5))
    assert divergence(np.array([[1e38, 0.0]]), np.array([[0.0, 1e38]]), 1) == [1e38]


def test_agreement_of_ties() -> None:
    exact = np.array([[1, 3, 3], [1, 3, 3], [1, 3, 3], [0, 0, 0], [2, 1, 0]])
    decoded = np.array([[1, 2, 0], [0, 1, 2], [5, 1, 2], [0, 0, 9], [1, 1, 0]])
    assert agreement(exact, decoded).tolist() == [True, True, False, True, True]


def test_summary() -> None:
    none = np.array([])
    assert summarize(Quality(none, none, none, none)) is None
    found = Quality(*map(np.array, ([1.0, 0.5], [1e-3, 2.00000123e-3], [1e-17, 0.0], [1.0, 0.0])))
    assert summarize(found) == {
        "rows": 2, "mean": 0.75, "p1": 0.505, "kl_1": 0.0015, "kl_20": 0.0, "top1": 0.5,
    }  # fmt: skip
    assert summarize(found.of(np.array([True, False])))["p1"] == 1


def measured(**changes: float) -> dict[str, Any]:
    return {
        "unmixed": {"rows": 1000, "mean": 0.98, "kl_1": 0.03, "kl_20": 1e-4, "top1": 0.92, **changes},
        "mixed": None,
    }


def test_what_is_missed_is_said_with_the_way_out() -> None:
    asked: dict[str, Any] = {"name": "transform", "fidelity": 0.98}
    assert missed(asked, measured()) == missed(asked, None) == []
    assert missed(asked, {"unmixed": {"rows": 9, "mean": 0.98, "p1": 0.9}}) == []  # format 1
    assert missed(asked, measured(mean=0.9781)) == []
    for change, text in (
        ({"mean": 0.9779}, "fidelity 0.9779 (expected 0.98)"),
        ({"kl_1": 1.55}, "KL 1.55 at T = 1 (at most 0.15)"),
        ({"kl_20": 0.01}, "KL 0.01 at T = 20 (at most 0.002)"),
        ({"top1": 0.003}, "top-1 agreement 0.003 (at least 0.809)"),
    ):
        (found,) = missed(asked, measured(**change))
        assert found.startswith(f"unmixed labels, as transform keeps them: {text}; ")
        assert found.endswith("use --encoding int8")
    assert missed({"name": "transform", "step": 1.0}, measured(mean=0.7, kl_1=1.0, top1=0.5)) == []
    assert "top-1" in missed({"name": "transform", "step": 1.0}, measured(mean=0.992, top1=0.0))[0]
    assert "top-1" in missed({"name": "int8"}, measured(mean=0.9999999, kl_1=1e-3, kl_20=1e-6, top1=0.02))[0]
    assert missed({"name": "int8"}, measured(mean=0.99985, kl_1=8e-5, kl_20=8e-7, top1=0.99)) == []
    # Of few labels, a share of one may be missed.
    assert missed(asked, measured(rows=3, top1=2 / 3)) == []
    assert missed(asked, measured(rows=1, top1=0.0)) == []


@pytest.mark.parametrize("fidelity", [0.5, 0.85, 0.92, 0.95, 0.98, 0.9999])
def test_bands_grow_with_the_distance_from_1(fidelity: float) -> None:
    bands, closer = bands_of(fidelity), bands_of(fidelity + (1 - fidelity) / 2)
    assert bands.kl_1 > closer.kl_1 > 0
    assert bands.kl_20 > closer.kl_20 > 0
    assert 0 <= bands.top1 < closer.top1 < 1
    assert bands.kept(*bands, 1000)
    assert not bands.kept(bands.fidelity, 1.01 * bands.kl_1, 0, 1, 1000)
