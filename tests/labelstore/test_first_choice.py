"""First choices that are kept: by a second reading of the definition, and what they cost."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from labelstore.encodings import Pairs
from labelstore.encodings.fidelity import Quality, quality
from labelstore.encodings.first_choice import LEAD, MOVES, NEAR, PASSES
from labelstore.encodings.transform import Transform
from tests.labelstore.test_transform import DROPPED, C, Oracle, World, any_calibration, mixed_pairs, ready

Crop = tuple[int, int, float]


class Choosing(Oracle):
    """The definition of moved codes, one number at a time: integers where sums are taken."""

    def value(self, code: int) -> float:
        """Logits that a code stands for, as decoders have them: in float32."""
        one, more = self.of.centroids
        shift = 0 if code == 0 else one if abs(code) == 1 else more
        return float(np.float32(self.of.step * (code + math.copysign(shift, code) if code else 0.0)))

    def decoded(self, codes: list[int], factor: float, crop: Crop) -> list[int | float]:
        """Logits in units / 2**15."""
        parts = [
            round((self.value(code) * factor + self.predicted(k, *crop)) / self.unit) for k, code in enumerate(codes)
        ]
        return [
            sum(part * int(row[c]) for part, row in zip(parts, self.of.basis, strict=True))
            + float(self.of.center[c]) / self.unit * 2**15
            for c in range(self.of.basis.shape[1])
        ]

    def short(self, x: list[float], codes: list[int], factor: float, crop: Crop) -> tuple[int, int, float]:
        decoded = self.decoded(codes, factor, crop)
        first = x.index(max(x))
        wanted = [max((x[first] - value) * (LEAD / (self.unit * 2**-15)), 2.0 * 2**15) for value in x]
        lacking = [decoded[c] + wanted[c] if c != first else -math.inf for c in range(len(x))]
        other = lacking.index(max(lacking))
        return first, other, lacking[other] - decoded[first]

    def moved(self, logits: np.ndarray, crop: Crop) -> list[int]:
        """The codes of a label."""
        found, scale = self.encode(logits, *crop)
        x, quantised = [float(value) for value in logits], list(found)
        factor = float(np.float32(2 ** ((scale - 4) / 4)))
        rest = [e / (self.of.step * factor) for e in self.lost(logits, crop)]
        for _ in range(PASSES):
            first, other, missing = self.short(x, found, factor, crop)
            if missing <= 0:
                break
            moves = []
            for k, code in enumerate(found):
                towards = int(self.of.basis[k][first]) - int(self.of.basis[k][other])
                if (sign := (towards > 0) - (towards < 0)) == 0 or (code + sign - quantised[k]) * sign <= 0:
                    continue
                gain = towards * round((self.value(code + sign) - self.value(code)) * factor / self.unit)
                cost = max(self.edge(k, code, sign) - rest[k] * sign, 0) + NEAR
                moves.append((-min(gain, missing) / cost, k, gain, code + sign))
            gained = 0
            for worth, k, gain, code in sorted(moves)[:MOVES]:
                if gained >= missing or worth >= 0:
                    break
                found[k], gained = code, gained + gain
        return found

    def lost(self, logits: np.ndarray, crop: Crop) -> list[float]:
        """What the prediction leaves, in logits."""
        components = self.of.analysed(logits[None])[0][0].tolist()
        return [value - self.predicted(k, *crop) for k, value in enumerate(components)]

    def edge(self, k: int, code: int, sign: int) -> float:
        """Where the cell of a code ends in a direction, along it."""
        first, shift = map(float, self.of.cells[k])
        along = code * sign
        if along >= 0:
            return first if along == 0 else along + 0.5 + shift
        return -first if along == -1 else along + 0.5 - shift


@settings(deadline=None, max_examples=12)
@given(
    seed=st.integers(0, 1000),
    sizes=st.lists(st.sampled_from([0.01, 0.5, 1.0, 3.0, 30.0]), min_size=1, max_size=5),
    offset=st.sampled_from([0.0, -15.0]),
    kind=st.sampled_from([{}, {"dropped": True}, {"mean_steps": 8}]),
)
def test_moved_codes_are_those_of_the_definition(
    seed: int, sizes: list[float], offset: float, kind: dict[str, Any]
) -> None:
    rng = np.random.default_rng(seed)
    encoding, oracle = ready(seed, keep_top1=True, **kind), Choosing(any_calibration(seed, **kind))
    x = (np.array(sizes)[:, None] * rng.standard_normal((len(sizes), C)) + offset).astype(np.float32)
    if kind.get("dropped"):
        x[:, list(DROPPED)] = list(DROPPED.values())
    pairs = mixed_pairs(rng, (len(x),))
    codes = encoding.encode(x, pairs)
    for row, (image, partner, weight) in enumerate(zip(*(part.tolist() for part in pairs), strict=True)):
        assert codes["labels"][row].tolist() == oracle.moved(x[row], (image, partner, weight))


def measured(world: World, encoding: Transform, rows: int = 2000) -> tuple[Quality, np.ndarray, np.ndarray, np.ndarray]:
    sample = world.crops(rows, 3)
    codes = encoding.encode(sample.logits, sample.pairs)
    decoded = encoding.decode(codes, sample.pairs)
    own = world.targets[sample.pairs.images]
    return quality(sample.logits, decoded, own, own, np.ones(rows)), codes["labels"], sample.logits, decoded


def test_first_choices_are_kept_and_so_is_the_fidelity() -> None:
    world = World(100, 60, noise=0.3)
    encoding, found = world.fit(fidelity=0.9, keep_top1=True)
    plain = Transform(100, fidelity=0.9).calibrated(encoding.calibration)
    (before, codes, _, _), (after, moved, exact, decoded) = measured(world, plain), measured(world, encoding)
    assert before.top1.mean() < 0.9
    assert after.top1.mean() > 0.995
    assert found.calibration.top1 == pytest.approx(after.top1.mean(), abs=0.01)
    assert after.fidelity.mean() == pytest.approx(found.calibration.fidelity, abs=0.01)
    assert found.calibration.fidelity >= 0.9
    kept = (codes == moved).all(axis=1)
    assert before.top1[kept].all()
    leads = [rows.max(axis=1, keepdims=True) - rows for rows in (exact, decoded)]
    assert (leads[1] >= 0.99 * LEAD * leads[0]).all(axis=1).mean() > 0.95


def test_labels_that_keep_their_first_choice_keep_their_codes() -> None:
    world = World(100, 60, noise=0.3)
    encoding, _ = world.fit(fidelity=0.9999, keep_top1=True)
    plain = Transform(100, fidelity=0.9999).calibrated(encoding.calibration)
    (_, codes, _, _), (_, moved, _, _) = measured(world, plain), measured(world, encoding)
    assert (codes == moved).all(axis=1).mean() > 0.95


def test_a_code_is_moved_no_further_than_int16() -> None:
    calibration = any_calibration()
    encoding = Transform(C, keep_top1=True).calibrated(replace(calibration, means=0 * calibration.means))
    rows = 32767 * calibration.step * 2 * calibration.basis[[3, 5]] / 2**15
    rows[:, :2] = rows.max(axis=1, keepdims=True)  # a first choice that is hard to keep
    x = (0.4 * rows + calibration.center).astype(np.float32)
    codes = encoding.encode(x, Pairs.unmixed(np.arange(2)))["labels"]
    plain = Transform(C).calibrated(encoding.calibration).encode(x, Pairs.unmixed(np.arange(2)))["labels"]
    assert np.abs(codes.astype(int) - plain).max() <= PASSES
