"""The study of fewer bytes: predictions, contexts and the search, on drawn labels with known answers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.drawn import Drawn
from benchmarks.studies import fewer_bytes_built as built
from benchmarks.studies import fewer_bytes_context as context
from benchmarks.studies import rate_labels
from benchmarks.studies.fewer_bytes import IDEAS
from benchmarks.studies.fewer_bytes_model import Settings, fidelity_of, make_problem, search
from benchmarks.studies.fewer_bytes_predict import (
    combined,
    covariance,
    fitted_sum,
    largest_left,
    patches,
    quantised_means,
    weights,
)
from benchmarks.studies.fewer_bytes_table import COLUMNS, sections
from benchmarks.studies.rate_labels import KINDS
from labelstore.encodings.base import Pairs


def boxes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    low = 0.5 * rng.random((*shape, 2))
    return np.concatenate([low, low + 0.2 + 0.3 * rng.random((*shape, 2))], axis=-1)


def test_overlap_predicts_better_than_the_mean_what_overlap_decides() -> None:
    """Labels are drawn with the covariance that is assumed: no weights are better on average."""
    rng = np.random.default_rng(0)
    each = boxes(rng, 20, 9)
    spread = np.linalg.cholesky(covariance(each[:, :, None], each[:, None]) + 0.02 * np.eye(9))
    labels = np.einsum("nij,njc->inc", spread, rng.standard_normal((20, 9, 200))).astype(np.float32)
    images = np.arange(20)
    shares = weights(each[:, 1:], each[:, 0], images)
    errors = [
        np.square(found - labels[0]).mean()
        for found in (combined(labels[1:], shares, images), labels[1:].mean(axis=0), np.zeros_like(labels[0]))
    ]
    assert errors[0] < 0.9 * errors[1]
    assert errors[0] < errors[2]


def test_a_crop_that_is_known_predicts_itself() -> None:
    known = np.array([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1], [0, 0.5, 0.3, 1]]])
    shares = weights(known, known[0, 1:2], np.zeros(1, int))
    assert shares.argmax() == 1
    assert shares[0, 1] > 0.9


def test_what_a_patch_shows_is_mirrored_with_its_crop() -> None:
    crop, cut = np.array([[0.2, 0.0, 0.6, 1.0]]), np.array([[0.0, 0.0, 0.25, 0.5]])
    assert patches(crop, np.array([False]), cut)[0] == pytest.approx([0.2, 0.0, 0.3, 0.5])
    assert patches(crop, np.array([True]), cut)[0] == pytest.approx([0.5, 0.0, 0.6, 0.5])
    assert largest_left(cut)[0] == pytest.approx([0.25, 0, 1, 1])


def test_factors_of_each_component_are_found() -> None:
    rng = np.random.default_rng(0)
    terms = [tuple(rng.standard_normal((2, 300, 4)).astype(np.float32)) for _ in range(2)]
    factors = rng.standard_normal((2, 4)).astype(np.float32)
    ours, theirs = (sum(f * term[part] for f, term in zip(factors, terms, strict=True)) for part in (0, 1))
    found = fitted_sum(terms, ours)
    assert np.abs(found[0] - ours).max() < 0.03
    assert np.abs(found[1] - theirs).max() < 0.03


def test_what_contexts_know_saves_bits_and_what_they_do_not_know_saves_none() -> None:
    rng = np.random.default_rng(0)
    sizes = np.exp(-np.arange(64) / 30)
    for spread, saves in ((0.0, False), (0.8, True)):
        of_rows = np.exp(spread * rng.standard_normal((2, 1500, 1)))
        fitted, codes = np.rint(of_rows * sizes * rng.laplace(size=(2, 1500, 64))).astype(np.int16)
        plain = context.by_component(fitted, codes)
        classes, stored = context.by_class(fitted, codes, 4)
        assert stored == pytest.approx(0.25, abs=0.02)
        if saves:
            assert context.by_neighbours(fitted, codes) < 0.95 * plain
            assert classes + stored < 0.97 * plain
        else:
            assert context.by_neighbours(fitted, codes) == pytest.approx(plain, rel=0.02)
            assert classes == pytest.approx(plain, rel=0.04)


def test_the_search_reaches_the_fidelity_and_finer_means_take_a_larger_step() -> None:
    rng = np.random.default_rng(0)
    means = 2 * rng.standard_normal((40, 80)).astype(np.float32)
    pairs = Pairs.unmixed(np.arange(800) % 40)
    logits = means[pairs.images] + (np.exp(-np.arange(80) / 10) * rng.standard_normal((800, 80))).astype(np.float32)
    half = slice(0, 400)
    parts = [(logits[part], pairs.take(part)) for part in (half, slice(400, None))]
    problem = make_problem(parts[0], parts[1], means[parts[0][1].images], np.arange(40))
    rotated, steps = means @ problem.basis.T, []
    for finer in (2, 8):

        def predict(step: float, finer: int = finer) -> tuple[np.ndarray, np.ndarray, float]:
            kept, size = quantised_means(rotated, step / finer)
            return kept[parts[0][1].images], kept[parts[1][1].images], size

        coded = search(problem, predict, Settings(fidelity=0.97))
        assert fidelity_of(problem, coded.logits) == pytest.approx(0.97, abs=0.003)
        steps.append(coded.step)
    assert steps[1] > steps[0]


def test_every_idea_has_a_line_of_its_own() -> None:
    assert len({idea.name for idea in IDEAS}) == len(IDEAS)
    line = {"cell": {"kind": KINDS[0], "idea": "any"}, **dict.fromkeys(COLUMNS, 1)}
    assert "| any | 1 |" in sections([line], ["any"])[1]


def test_flags_are_measured_on_labels_that_nothing_was_fitted_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("MEASURED_ROWS", 512), ("MEAN_CROPS", 2), ("LEARN_VIEWS", 6)):
        monkeypatch.setattr(rate_labels, name, value)
    source = Drawn(256, 64, 10, spread=0.8).store(tmp_path / "float16", {"name": "float16"})
    case = rate_labels.case_of(source, source, mixed=False)
    trials = [built.Trial(mean_steps=8, keep_top1=kept, logits=factor) for kept in (False, True) for factor in (1, 4)]
    plain, louder, kept, _ = lines = [built.measured(case, trial) for trial in trials]
    assert plain["step"] == pytest.approx(louder["step"] / 4, rel=0.01)
    assert plain["fidelity"] == pytest.approx(0.95, abs=0.01)
    assert plain["KL 1"] < louder["KL 1"]
    assert plain["top-1"] < kept["top-1"]
    assert kept["top-1"] > 0.99
    assert built.measured(case, built.Trial(keep_top1=True))["side"] < kept["side"]
    each = [{"cell": trial.to_json(), **line} for trial, line in zip(trials, lines, strict=True)]
    table = built.section(each[::-1]).splitlines()
    assert f"| unmixed | x 1 | 8 | 0.95 | no | {plain['label']:.2f} |" in table[2]
    assert len(table) == 2 + len(set(trials) & set(built.TRIALS))
