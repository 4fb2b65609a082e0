"""The transform: its codes by a second reading of its definition, its fitting, and stores of it."""

from __future__ import annotations

import json
import math
import re
import shutil
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorstore
import zarr
from hypothesis import example, given, settings
from hypothesis import strategies as st
from threadpoolctl import threadpool_limits

from labelstore import LabelStore, check
from labelstore.durable import documents
from labelstore.encodings import Pairs, make_encoding
from labelstore.encodings import transform as definition
from labelstore.encodings.bands import bands_of, missed
from labelstore.encodings.components import Calibration, unit_of
from labelstore.encodings.fidelity import gift_fidelity
from labelstore.encodings.fitting import Fit, Sample, fit
from labelstore.encodings.transform import ROWS_AT_ONCE, Transform
from labelstore.errors import DamagedError, FormatError, InputError, NotStoredError
from labelstore.format.calibration import FILE
from labelstore.spec import Json
from tests.labelstore.making import Content, build, calibration, calibration_of, create, make_identity, tree

C, R, N = 70, 32, 9


DROPPED = {3: -1e4, 40: 0.1, 69: 7.0}  # columns that were constant


def any_calibration(
    seed: int = 0, *, images: int = N, dropped: bool = False, offset_apart: bool = True, mean_steps: int = 2
) -> Calibration:
    """Any numbers: right for coding, though good for no bytes."""
    rng = np.random.default_rng(seed)
    kept = ~np.isin(np.arange(C), list(DROPPED) if dropped else [])
    rows = rng.standard_normal((R, C)) * kept
    if offset_apart:
        rows[0] = kept
        rows[1:] -= rows[1:].sum(axis=1, keepdims=True) / kept.sum() * kept
    basis = np.rint(np.linalg.qr(rows.T)[0].T * 2**15)
    basis[0] *= np.sign(basis[0].sum()) if offset_apart else 1
    step = 0.1 + 0.3 * rng.random()
    center = rng.integers(-500, 500, C) * unit_of(step)
    if dropped:
        center[list(DROPPED)] = np.array(list(DROPPED.values()), np.float32)
    return Calibration(
        step=step,
        reference=0.9 * math.sqrt(C),
        centroids=(0.05, 0.02),
        center=center.astype(np.float64),
        basis=basis.astype(np.int16),
        cells=np.stack([0.5 + 0.3 * rng.random(R), 0.2 * rng.random(R)], axis=1).astype(np.float32),
        means=np.rint(4 * rng.standard_normal((images, R))).astype(np.int16),
        fidelity=0.5,
        offset_apart=offset_apart,
        mean_steps=mean_steps,
    )


def ready(seed: int = 0, *, keep_top1: bool = False, **options: Any) -> Transform:
    steps = options.get("mean_steps", 2)
    return Transform(C, mean_steps=steps, keep_top1=keep_top1).calibrated(any_calibration(seed, **options))


def mixed_pairs(rng: np.random.Generator, shape: tuple[int, ...], images: int = N) -> Pairs:
    own, partners = rng.integers(0, images, (2, *shape))
    return Pairs(own, partners, rng.choice([0, 1, 1, 0.25, 1 / 3, 1 - 2**-16], shape))


class Oracle:
    """The definition, one number at a time: integers where it says so, else float64."""

    def __init__(self, of: Calibration) -> None:
        self.of = of
        self.unit = 2.0 ** math.floor(math.log2(of.step / 64))
        self.kept = [not of.offset_apart or int(value) != 0 for value in of.basis[0]]

    def predicted(self, k: int, image: int, partner: int, weight: float) -> float:
        own, other = (int(self.of.means[i, k]) * (self.of.step / self.of.mean_steps) for i in (image, partner))
        return own if weight == 1 else weight * own + (1 - weight) * other

    def scale(self, squares: float) -> int:
        length = math.sqrt(squares)
        return 0 if length == 0 else min(max(round(4 * math.log2(length / self.of.reference)), -4), 4) + 4

    def encode(self, x: np.ndarray, image: int, partner: int, weight: float) -> tuple[list[int], int]:
        units = [
            round(float(value) / self.unit) - round(middle / self.unit) if kept else 0
            for value, middle, kept in zip(x, self.of.center.tolist(), self.kept, strict=True)
        ]
        scale, codes, offset = self.scale(math.fsum(float(value) ** 2 for value in x)), [], 0
        if self.of.offset_apart:
            offset = round(Fraction(sum(units), sum(self.kept)))
            units = [unit - offset if kept else 0 for unit, kept in zip(units, self.kept, strict=True)]
            scale = self.scale(sum(unit**2 for unit in units) * self.unit**2)
        for k, (row, (first, shift)) in enumerate(zip(self.of.basis, self.of.cells, strict=True)):
            exact = sum(number * int(part) for number, part in zip(units, row, strict=True))
            component = exact * (self.unit * 2**-15)
            if k == 0 and self.of.offset_apart:
                component = offset * (self.unit * 2**15 / int(self.of.basis[0].max()))
            rest = component - self.predicted(k, image, partner, weight)
            e = rest / (self.of.step * float(np.float32(2 ** ((scale - 4) / 4))))
            size = 0 if abs(e) < first else max(math.floor(abs(e) + (0.5 - float(shift))), 1)
            codes.append(int(math.copysign(size, e)))
        return codes, scale

    def decode(self, codes: np.ndarray, scale: int, image: int, partner: int, weight: float) -> np.ndarray:
        step, (one, more) = self.of.step * 2 ** ((scale - 4) / 4), self.of.centroids
        values = np.array(
            [
                step * (q + np.sign(q) * (0 if q == 0 else one if abs(q) == 1 else more))
                + self.predicted(k, image, partner, weight)
                for k, q in enumerate(map(int, codes))
            ]
        )
        return values @ (self.of.basis / 2**15) + self.of.center


@settings(deadline=None, max_examples=20)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.sampled_from([0.0, 1e-38, 1e-6, 0.01, 1.0, 3.0, 30.0, 300.0]), max_size=6),
    offset=st.sampled_from([0.0, -15.0, 100.0]),
    folded=st.booleans(),
    kind=st.sampled_from([{}, {"dropped": True}, {"offset_apart": False}, {"mean_steps": 8}]),
)
@example(seed=0, sizes=[], offset=0.0, folded=False, kind={})
@example(seed=0, sizes=[], offset=0.0, folded=True, kind={"dropped": True})
@example(seed=1, sizes=[0.0, 1.0], offset=0.0, folded=True, kind={"offset_apart": False})
def test_codes_and_labels_are_those_of_the_definition(
    seed: int, sizes: list[float], offset: float, folded: bool, kind: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)
    encoding, oracle = ready(seed, **kind), Oracle(any_calibration(seed, **kind))

    x = (np.array(sizes)[:, None] * rng.standard_normal((len(sizes), C)) + offset).astype(np.float32)
    if kind.get("dropped"):
        x[:, list(DROPPED)] = list(DROPPED.values())
    pairs = mixed_pairs(rng, (len(x),))
    shape = (1, len(x)) if folded else (len(x),)
    given_pairs = Pairs(pairs.images.reshape(shape), pairs.partners.reshape(shape), pairs.weights.reshape(shape))
    codes = encoding.encode(x.reshape(*shape, C), given_pairs)
    assert codes["labels"].dtype == np.int16
    assert codes["labels"].shape == (*shape, R)
    assert codes["scales"].dtype == np.uint8
    assert codes["scales"].shape == shape
    decoded = encoding.decode(codes, given_pairs)
    assert decoded.dtype == np.float32
    assert decoded.shape == (*shape, C)
    labels, scales = codes["labels"].reshape(-1, R), codes["scales"].reshape(-1)
    for row, (image, partner, weight) in enumerate(zip(*(part.tolist() for part in pairs), strict=True)):
        assert (labels[row].tolist(), int(scales[row])) == oracle.encode(x[row], image, partner, weight)
        exact = oracle.decode(labels[row], int(scales[row]), image, partner, weight)
        assert np.abs(decoded.reshape(-1, C)[row] - exact).max() <= 1e-5 * (np.abs(exact).max() + 1)
        if kind.get("dropped"):
            assert np.array_equal(decoded.reshape(-1, C)[row, list(DROPPED)], x[row, list(DROPPED)])


@pytest.mark.parametrize("keep_top1", [False, True])
def test_codes_do_not_depend_on_rows_at_once_order_or_threads(keep_top1: bool) -> None:
    rng = np.random.default_rng(0)
    x = (3 * rng.standard_normal((2 * ROWS_AT_ONCE + 3, C))).astype(np.float32)
    pairs, encoding = mixed_pairs(rng, (len(x),)), ready(keep_top1=keep_top1)
    whole = encoding.encode(x, pairs)
    decoded = encoding.decode(whole, pairs)
    order = rng.permutation(len(x))
    for threads in (1, 2):
        with threadpool_limits(threads):
            again = encoding.encode(x[order], pairs.take(order))
            assert all(np.array_equal(again[name], whole[name][order]) for name in whole)
            assert np.allclose(encoding.decode(again, pairs.take(order)), decoded[order], rtol=1e-5, atol=1e-5)
    for row in (0, ROWS_AT_ONCE - 1, ROWS_AT_ONCE, len(x) - 1):
        alone = encoding.encode(x[row : row + 1], pairs.take(slice(row, row + 1)))
        assert all(np.array_equal(alone[name][0], whole[name][row]) for name in whole)


def test_products_of_the_largest_labels_are_exact() -> None:
    calibration = any_calibration()
    rng = np.random.default_rng(0)
    signs = rng.permuted(np.tile([-1, 1], (3, C // 2)), axis=1)
    x = ((2**23 - 1024) * calibration.unit * signs).astype(np.float32)
    for row, found in zip(x, calibration.analysed(x)[0], strict=True):
        units = [
            round(float(v) / calibration.unit) - round(c / calibration.unit)
            for v, c in zip(row, calibration.center.tolist(), strict=True)
        ]
        offset = round(Fraction(sum(units), C))
        exact = [sum((u - offset) * int(b) for u, b in zip(units, part, strict=True)) for part in calibration.basis]
        assert found.tolist()[1:] == [value * calibration.unit * 2**-15 for value in exact[1:]]
        assert found[0] == offset * (calibration.unit * 2**15 / int(calibration.basis[0].max()))


def test_a_label_too_far_from_its_prediction_is_refused_by_name() -> None:
    encoding = ready()
    x = np.zeros((2, 600, C), np.float32)
    images = np.arange(1200).reshape(2, 600) % N
    far = 2**22 * encoding.calibration.unit
    for label, why in (
        (far * np.sign(encoding.calibration.basis[3]), "lies .* steps from its prediction, codes reach 32767"),
        (4 * far * np.sign(encoding.calibration.basis[3]), "lies .* logits from the center, codes of step .* reach"),
        (np.full(C, 2**40 * encoding.calibration.unit), "lies .* logits from the center with all its logits"),
        (np.full(C, far), "lies .* steps from its prediction"),
    ):
        x[1, 500] = label
        with pytest.raises(InputError, match=rf"label 1100 of 1200, of image {1100 % N}: {why}.*--encoding int8"):
            encoding.encode(x, Pairs.unmixed(images))


def test_another_value_in_a_column_that_was_constant_is_refused_by_name() -> None:
    encoding = ready(dropped=True)
    x = np.zeros((30, C), np.float32)
    x[:, list(DROPPED)] = list(DROPPED.values())
    images = np.arange(30) % N
    encoding.encode(x, Pairs.unmixed(images))
    x[17, 69] = np.nextafter(np.float32(7), np.float32(8))
    with pytest.raises(
        InputError, match=r"label 17 of 30, of image 8: has 7.00000048 in column 69, which was 7 .*--encoding int8"
    ):
        encoding.encode(x, Pairs.unmixed(images))


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 1000), st.sampled_from([-3e4, -15.0, -0.3, 1.0, 250.0]), st.booleans())
def test_an_offset_changes_no_code_but_the_first(seed: int, offset: float, dropped: bool) -> None:
    calibration = any_calibration(seed, dropped=dropped)
    encoding, rng = (
        Transform(C).calibrated(replace(calibration, step=50 * calibration.step)),
        np.random.default_rng(seed),
    )
    moved = round(offset / encoding.calibration.unit) * encoding.calibration.unit  # whole units: no logit is rounded
    x = (np.rint(4 * rng.standard_normal((5, C)) / encoding.calibration.unit) * encoding.calibration.unit).astype(
        np.float32
    )
    y = (x + moved).astype(np.float32)
    for rows in (x, y):
        rows[:, list(DROPPED) if dropped else []] = list(DROPPED.values()) if dropped else 0
    pairs = Pairs.unmixed(np.arange(5))
    plain, other = (encoding.encode(rows, pairs) for rows in (x, y))
    assert np.array_equal(plain["labels"][:, 1:], other["labels"][:, 1:])
    assert np.array_equal(plain["scales"], other["scales"])


def test_what_a_transform_may_be() -> None:
    with pytest.raises(InputError, match=r"at least 64 columns, found 63; int8 .* --encoding int8"):
        Transform(63)
    for options, found in (
        ({"codec": "raw"}, "pcodec or zstd"),
        ({"fidelity": 0.9, "step": 1.0}, "found both"),
        ({"fidelity": 0.4}, "0.5 to 0.9999"),
        ({"fidelity": float("nan")}, "0.5 to 0.9999"),
        ({"step": 0.0}, "1e-6 to 1e6"),
        ({"mean_steps": 0}, "1 to 64 steps of means in a step, found 0"),
        ({"mean_steps": 2.5}, "found 2.5"),
        ({"keep_top1": 1}, "true or false, found 1"),
    ):
        with pytest.raises(InputError, match=found):
            Transform(64, **options)
    with pytest.raises(FormatError, match="calibration"):
        make_encoding({"name": "transform", "calibration": {}}, 64)
    with pytest.raises(NotStoredError, match="not calibrated yet; continue the build"):
        Transform(64).encode(np.zeros((1, 64), np.float32), Pairs.unmixed(np.zeros(1, int)))
    for parameters in ({"fidelity": 0.98}, {"fidelity": 0.9, "codec": "zstd"}, {"step": 2.0}):
        named: dict[str, Any] = {"name": "transform", **parameters}
        assert make_encoding(named, 64).to_json() == named
    finer: dict[str, Any] = {"name": "transform", "fidelity": 0.95, "mean_steps": 8}
    assert make_encoding(finer, 64).to_json() == finer
    assert make_encoding({**finer, "mean_steps": 2}, 64).to_json() == {"name": "transform", "fidelity": 0.95}
    assert make_encoding({**finer, "keep_top1": True}, 64).to_json() == {**finer, "keep_top1": True}
    assert make_encoding({**finer, "keep_top1": False}, 64).to_json() == finer
    assert Transform(5000).width == definition.MAX_COMPONENTS


class World:
    """Images with mean labels, and crops of them: of low rank, and a little of everything."""

    def __init__(
        self, columns: int, images: int, *, rank: int = 24, noise: float = 0.05, seed: int = 0, peak: float = 0
    ) -> None:
        rng = np.random.default_rng(seed)
        self.basis = rng.standard_normal((rank, columns)) * np.exp(-np.arange(rank) / 8)[:, None]
        self.images, self.columns, self.noise = images, columns, noise
        self.means = 2 * rng.standard_normal((images, rank)) @ self.basis + rng.standard_normal(columns)
        self.targets = rng.integers(0, columns, images)
        self.means[np.arange(images), self.targets] += peak  # what a teacher is sure of

    def crops(self, count: int, seed: int, *, mixed: bool = False) -> Sample:
        rng = np.random.default_rng((seed, 1))
        pairs = mixed_pairs(rng, (count,), self.images) if mixed else Pairs.unmixed(np.arange(count) % self.images)
        weights = pairs.weights[:, None]
        logits = weights * self.means[pairs.images] + (1 - weights) * self.means[pairs.partners]
        logits += rng.standard_normal((count, len(self.basis))) @ self.basis
        logits += self.noise * rng.standard_normal((count, self.columns))
        return Sample(logits.astype(np.float32), pairs)

    def rough_means(self, crops: int = 12) -> np.ndarray:
        found = [self.crops(self.images, 100 + crop).logits for crop in range(crops)]
        return np.array(found, np.float64).mean(axis=0).astype(np.float32)

    def fit(self, *, rows: int = 800, mixed: bool = False, **options: Any) -> tuple[Transform, Fit]:
        encoding = Transform(self.columns, **options)
        means = self.rough_means()
        fitted, search = (self.crops(n, seed, mixed=mixed) for n, seed in ((rows, 1), (max(rows // 4, 1), 2)))
        found = fit(encoding, means, fitted, search, self.targets)
        return encoding.calibrated(found.with_means(found.code(means))), found

    def fidelity(self, encoding: Transform, *, mixed: bool = False) -> float:
        unseen = self.crops(2000, 3, mixed=mixed)
        pairs = unseen.pairs
        decoded = encoding.decode(encoding.encode(unseen.logits, pairs), pairs)
        own, other = self.targets[pairs.images], self.targets[pairs.partners]
        return float(gift_fidelity(unseen.logits, decoded, own, other, pairs.weights).mean())


def keeps(found: Fit, asked: float, rows: int = 200) -> bool:
    """Whether the search rows keep the bands that go with a fidelity."""
    of = found.calibration
    assert of.kl_1 is not None
    assert of.kl_20 is not None
    assert of.top1 is not None
    return bands_of(asked).kept(of.fidelity, of.kl_1, of.kl_20, of.top1, rows)


@pytest.mark.parametrize("mixed", [False, True])
def test_the_coarsest_step_that_keeps_the_bands_also_of_rows_that_nothing_saw(mixed: bool) -> None:
    world, reached, steps = World(96, 100), [], []
    for asked in (0.85, 0.95, 0.99):
        encoding, found = world.fit(mixed=mixed, fidelity=asked)
        assert keeps(found, asked)
        assert not keeps(world.fit(mixed=mixed, step=1.02 * found.calibration.step)[1], asked)
        reached.append(world.fidelity(encoding, mixed=mixed))
        steps.append(found.calibration.step)
        assert reached[-1] == pytest.approx(found.calibration.fidelity, abs=0.006)
        # A basis of rows of length one, pairwise orthogonal, but for their rounding.
        gram = (encoding.calibration.basis / 2**15) @ (encoding.calibration.basis / 2**15).T
        assert np.abs(gram - np.eye(len(gram))).max() < 1e-3
    assert reached == sorted(reached)
    assert steps == sorted(steps, reverse=True)


def same(ours: Calibration, theirs: Calibration) -> bool:
    arrays = all(
        getattr(ours, name).tobytes() == getattr(theirs, name).tobytes()
        for name in ("basis", "cells", "center", "means")
    )
    numbers = ("step", "reference", "centroids", "fidelity", "kl_1", "kl_20", "top1", "offset_apart")
    return arrays and all(getattr(ours, name) == getattr(theirs, name) for name in numbers)


def test_what_only_mean_labels_have_is_predicted() -> None:
    world = World(96, 100, peak=12)
    encoding, found = world.fit(step=2.0)
    assert found.calibration.components == 96
    assert world.fidelity(encoding) > World(96, 100).fidelity(World(96, 100).fit(step=2.0)[0]) - 0.01


@pytest.mark.parametrize("exact", [True, False])
def test_fitting_twice_gives_the_same_bytes_however_many_threads(monkeypatch: pytest.MonkeyPatch, exact: bool) -> None:
    if not exact:
        monkeypatch.setattr("labelstore.encodings.klt.MAX_EXACT", 64)
    world, found = World(96, 40), []
    for threads in (1, 2, 2):
        with threadpool_limits(threads):
            found.append(world.fit(rows=500, fidelity=0.95)[0].calibration)
    assert same(found[0], found[1])
    assert same(found[1], found[2])


def test_a_step_is_taken_as_it_is_and_a_smaller_one_is_nearer() -> None:
    world = World(64, 50)
    reached = []
    for step in (4.0, 1.0, 0.25):
        encoding, found = world.fit(step=step)
        assert found.calibration.step == step
        reached.append(world.fidelity(encoding))
        assert reached[-1] == pytest.approx(found.calibration.fidelity, abs=0.01)
    assert reached == sorted(reached)
    with pytest.raises(InputError, match=r"a step of at least .* found 1e-06; give a larger --step"):
        world.fit(step=1e-6)


def test_a_fidelity_out_of_reach_takes_the_finest_step_and_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    # Of many classes only some components are made: what lies outside them is lost at any step.
    monkeypatch.setattr("labelstore.encodings.klt.MAX_EXACT", 64)
    monkeypatch.setattr(definition, "MAX_EXACT", 64)
    monkeypatch.setattr(definition, "MAX_COMPONENTS", 16)
    world = World(96, 60, rank=90, noise=1.0)
    reached = world.fit(fidelity=0.99)[1].calibration
    assert reached.step < 0.05
    assert reached.fidelity < 0.98
    measured: dict[str, Any] = {"rows": 200, "mean": reached.fidelity, "kl_1": reached.kl_1, "top1": reached.top1}
    (text,) = missed({"name": "transform", "fidelity": 0.99}, {"unmixed": measured})
    assert re.match(
        r"unmixed labels, as transform keeps them: fidelity 0\.9\d+ \(expected 0\.99\).*--encoding int8", text
    )


def test_of_many_classes_the_leading_components_are_as_good(monkeypatch: pytest.MonkeyPatch) -> None:
    world = World(160, 100)
    exact, _ = world.fit(step=1.0)
    monkeypatch.setattr("labelstore.encodings.klt.MAX_EXACT", 64)
    monkeypatch.setattr(definition, "MAX_EXACT", 64)
    monkeypatch.setattr(definition, "MAX_COMPONENTS", 32)
    monkeypatch.setattr("labelstore.encodings.klt.OVERSAMPLING", 8)
    leading, _ = world.fit(step=1.0)
    assert leading.width == 32
    assert world.fidelity(leading) == pytest.approx(world.fidelity(exact), abs=0.002)


def test_centroids_bring_labels_nearer() -> None:
    world = World(96, 100)
    encoding, _ = world.fit(fidelity=0.95)
    unseen, errors = world.crops(1000, 3), []
    codes = encoding.encode(unseen.logits, unseen.pairs)
    one, more = encoding.calibration.centroids
    for centroids in ((one, more), (one - 0.1, more), (one + 0.1, more), (one, more - 0.1), (one, more + 0.1)):
        other = encoding.calibrated(replace(encoding.calibration, centroids=centroids))
        errors.append(np.square(other.decode(codes, unseen.pairs) - unseen.logits).sum())
    assert errors[0] < min(errors[1:])


def test_the_prediction_saves_codes() -> None:
    world = World(96, 100)
    encoding, _ = world.fit(fidelity=0.95)
    blind = encoding.calibrated(replace(encoding.calibration, means=np.zeros_like(encoding.calibration.means)))
    unseen = world.crops(1000, 3)
    sizes = [np.abs(e.encode(unseen.logits, unseen.pairs)["labels"]).sum() for e in (encoding, blind)]
    assert sizes[0] < 0.6 * sizes[1]


def test_finer_means_make_labels_smaller_at_the_same_fidelity() -> None:
    world = World(96, 100)
    unseen, sizes, reached = world.crops(1000, 3), [], []
    for steps in (2, 8):
        encoding, found = world.fit(fidelity=0.9, mean_steps=steps)
        assert found.calibration.mean_steps == encoding.calibration.mean_steps == steps
        codes = encoding.encode(unseen.logits, unseen.pairs)["labels"]
        shares = [np.unique(column, return_counts=True)[1] / len(codes) for column in codes.T]
        sizes.append(-sum(float((share * np.log2(share)).sum()) for share in shares))
        reached.append(world.fidelity(encoding))
    assert sizes[1] < 0.97 * sizes[0]
    assert reached[1] > reached[0] - 0.003


@pytest.mark.parametrize(("images", "rows"), [(1, 30), (1, 1), (2, 8), (3, 400)])
@pytest.mark.parametrize("keep_top1", [False, True])
def test_small_sets_and_fewer_rows_than_columns(images: int, rows: int, keep_top1: bool) -> None:
    world = World(96, images)
    encoding, _ = world.fit(rows=rows, fidelity=0.8, keep_top1=keep_top1)
    assert encoding.calibration.means.shape == (images, encoding.calibration.components)
    assert 0 < world.fidelity(encoding) <= 1


@pytest.mark.parametrize("value", [0.0, 1.0, -1e4])
@pytest.mark.parametrize("options", [{"fidelity": 0.98}, {"step": 8.0}, {"step": 8.0, "keep_top1": True}])
def test_labels_that_are_all_the_same(value: float, options: dict[str, Any]) -> None:
    logits = np.full((50, 64), value, np.float32)
    logits[:, 7] *= 2
    sample = Sample(logits, Pairs.unmixed(np.arange(50) % 5))
    encoding = Transform(64, **options)
    found = fit(encoding, logits[:5], sample, sample, np.zeros(5, int))
    encoding = encoding.calibrated(found.with_means(found.code(logits[:5])))
    assert abs(logits).max() <= encoding.limit
    decoded = encoding.decode(encoding.encode(logits, sample.pairs), sample.pairs)
    assert gift_fidelity(logits, decoded, np.zeros(50, int)).min() > 0.98


# Stores


def build_apart(path: Path, content: Content, views: int, seed: int = 0) -> LabelStore:
    """A store whose calibration has numbers of its own everywhere, its means too."""
    if not LabelStore.exists(path):
        store = create(path, content, views)
        with store.lease() as writer:
            writer.calibrate(any_calibration(seed, images=content.identity.images))
    return build(path, content, views)


@pytest.fixture(params=["pcodec", "zstd", "finer means", "first choice"])
def content(request: pytest.FixtureRequest) -> Content:
    encoding: dict[str, Json] = {"name": "transform", "step": 0.7}
    if request.param == "finer means":
        encoding["mean_steps"] = 8
    if request.param == "first choice":
        encoding["keep_top1"] = True
    if request.param == "zstd":
        encoding["codec"] = "zstd"
    return Content(make_identity(22, C, encoding=encoding, block=(2, 10), group=5, size=8), 4)


def test_a_store_gives_what_its_encoding_gives(tmp_path: Path, content: Content) -> None:
    build_apart(tmp_path / "s", content, 2)
    store = build_apart(tmp_path / "s", content, 4)  # extended: with the calibration that is there
    assert check(store.path).ok
    options: dict[str, Any] = {key: content.identity.encoding.get(key) for key in ("mean_steps", "keep_top1")}
    given_options = {key: value for key, value in options.items() if value is not None}
    encoding = Transform(C, step=0.7, **given_options).calibrated(any_calibration(images=22))
    for view in range(4):
        pairs = store.pairs(view, slice(None))
        codes = encoding.encode(content.logits[view], pairs)
        found = store.codes(view, slice(None))
        assert all(np.array_equal(found[name], codes[name]) for name in codes)
        batch = store.read(view, slice(None))
        assert np.allclose(batch.logits, encoding.decode(codes, pairs), rtol=1e-5, atol=1e-5)
        some = [21, 3, 3, 10]
        assert np.allclose(store.read(view, some).logits, batch.logits[some], rtol=1e-5, atol=1e-5)
    assert not np.array_equal(store.pairs(0, slice(None)).weights, np.ones(22))


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
def test_strangers_read_its_arrays(tmp_path: Path, content: Content) -> None:
    store = build_apart(tmp_path / "s", content, 4)
    calibrated = calibration_of(store)
    core = content.identity.encoding.get("codec") == "zstd"
    for name, ours in {
        "labels": np.stack([store.codes(view, slice(None))["labels"].T for view in range(4)]),
        "scales": np.stack([store.codes(view, slice(None))["scales"] for view in range(4)]),
        "calibration/basis": calibrated.basis,
        "calibration/means": calibrated.means.T,
        "calibration/center": calibrated.center,
        "calibration/cells": calibrated.cells,
    }.items():
        used = (slice(None), slice(calibrated.components)) if name == "labels" else slice(len(ours))
        theirs = zarr.open_array(store.path / name, mode="r")[...]
        assert np.array_equal(theirs[used], ours)
        assert theirs.sum(dtype=np.float64) == pytest.approx(ours.sum(dtype=np.float64))  # zeros beyond what is used
        if core or name in ("scales", "calibration/center", "calibration/cells"):
            spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": str(store.path / name)}}
            assert np.array_equal(tensorstore.open(spec).result().read().result(), theirs)


def test_nothing_is_read_or_written_before_it_is_calibrated_and_nothing_is_calibrated_twice(
    tmp_path: Path, content: Content
) -> None:
    store = create(tmp_path / "s", content, 2)
    block = store.missing()[0]
    assert not store.calibrated
    follower = LabelStore.open(store.path, follow=True)
    with pytest.raises(NotStoredError, match="continue the build"):
        follower.read(0, slice(None))
    found = calibration(content)
    with store.lease() as writer:
        with pytest.raises(NotStoredError, match="not calibrated yet; continue the build"):
            writer.write(block, content.block(store, block))
        for wrong in (
            replace(found, means=found.means[:-1]),
            replace(found, basis=found.basis[:, :-1]),
            replace(found, basis=found.basis[:3], cells=found.cells[:3], means=found.means[:, :3]),
            replace(found, center=found.center.astype(np.float32)),
        ):
            with pytest.raises(InputError, match="expected"):
                writer.calibrate(wrong)
        assert not store.discard()  # while it is held
        writer.calibrate(found)
        assert store.calibrated
        with pytest.raises(InputError, match="calibrated already; a calibration is never fitted again"):
            writer.calibrate(found)
        before = tree(store.path / "calibration")
        data = content.block(store, block)
        data.logits[0, 1, 2] = np.nan
        with pytest.raises(InputError, match=r"view 0.+position 1\W+class 2: expected a number"):
            writer.write(block, data)
        data.logits[0, 1] = 1e20 * (np.arange(C) % 2)
        with pytest.raises(InputError, match="logits from the center"):
            writer.write(block, data)
    assert tree(store.path / "calibration") == before
    assert store.discard()
    assert not store.path.exists()
    plain = build(tmp_path / "int8", Content(make_identity(), 2), 2)
    with plain.lease() as writer, pytest.raises(InputError, match="calibrat"):
        writer.calibrate(found)


@pytest.mark.parametrize(
    "what", [FILE, "calibration/basis", "calibration/center", "calibration/cells", "calibration/means", "all"]
)
def test_the_calibration_of_another_store_is_refused(tmp_path: Path, content: Content, what: str) -> None:
    ours = build_apart(tmp_path / "ours", content, 2).path
    theirs = build_apart(tmp_path / "theirs", content, 2, seed=1).path
    for path in [theirs / FILE, *theirs.glob("calibration/*/c.*")]:
        name = path.relative_to(theirs)
        if what == "all" or name.as_posix().startswith(what):
            shutil.copyfile(path, ours / name)
    with pytest.raises(DamagedError, match="calibration"):
        LabelStore.open(ours).read(0, slice(None))
    assert not check(ours).ok


@pytest.mark.parametrize("change", [{"step": -1.0}, {"components": 17}, {"centroids": [1]}, {"fidelity": None}])
def test_a_marker_that_was_edited_is_refused(tmp_path: Path, content: Content, change: dict[str, Any]) -> None:
    store = build(tmp_path / "s", content, 2)
    document = json.loads((store.path / FILE).read_bytes())
    (store.path / FILE).write_bytes(documents.encode({**document, **change}))
    with pytest.raises(DamagedError, match="calibration"):
        LabelStore.open(store.path).read(0, slice(None))
