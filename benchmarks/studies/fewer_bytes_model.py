"""A model of ``transform`` that prediction, quantisation and entropy coding can be changed in, one at a time.

Labels are rotated once; what is tried works on their components. Bytes are those of PCodec in chunks of 16 components,
as a store has them, or entropies where no coder exists. Means and crops from which predictions are computed are
quantised, and their bytes are counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.rivals import entropy
from benchmarks.studies.fewer_bytes_network import trained_repair
from labelstore.encodings.base import Pairs
from labelstore.encodings.components import SCALES, scales_of
from labelstore.encodings.fidelity import Quality, gift_fidelity, quality
from labelstore.encodings.transform import GROUP
from labelstore.format import codecs

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]

WORTH = float(np.log(2) / 6)  # squared steps a bit, as `labelstore.encodings.fitting` has it
CHUNK_BYTES = 24  # CRC-32C and index of an inner chunk
EVALUATIONS = 5
SEEN = 704  # components that cells are fitted to
FIRST_STEP = 1.8
MOST_FIRST, MOST_SHIFT = 1.5, 0.45

Predict = Callable[[float], tuple[Float32Array, Float32Array, float]]
"""From a step to predicted components of fitted and of measured rows ``[n, C]``, and bytes an image."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Rows:
    """Labels of one part, in the basis.

    Attributes:
        values: components, float32 ``[n, C]``.
        scales: of the step of each, float32 ``[n, 1]``.
        pairs: which two images each crop shows ``[n]``.
        logits: float32 ``[n, C]``.
    """

    values: Float32Array
    scales: Float32Array
    pairs: Pairs
    logits: Float32Array


@dataclass(frozen=True, eq=False, kw_only=True)
class Problem:
    """Labels to code: those that models are fitted to, and those that all is measured on.

    Attributes:
        basis: float32 ``[C, C]``, by falling variance of what predictions leave; row 0 is the offset.
        center: float32 ``[C]``.
        fitted: rows that models are fitted to.
        measured: other rows of the same images.
        targets: label column of each image's class ``[N]``.
    """

    basis: Float32Array
    center: Float32Array
    fitted: Rows
    measured: Rows
    targets: npt.NDArray[np.int64]


class Coded(NamedTuple):
    """What became of labels.

    Attributes:
        step: in logits.
        codes: of the measured rows, int16 ``[n, r]``.
        fitted: of the fitted rows, int16 ``[n, r]``.
        logits: decoded measured rows, float32 ``[n, C]``.
        side: bytes an image.
    """

    step: float
    codes: npt.NDArray[np.int16]
    fitted: npt.NDArray[np.int16]
    logits: Float32Array
    side: float


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How labels are quantised.

    Attributes:
        worth: of a bit, over that of the theory at high rate.
        centroids: one for each component, instead of two for all.
        repair: features of a small network that predicts what quantisation loses; none at 0.
        trained: whether a network is trained to, by gradients.
        fidelity: to reach.
    """

    worth: float = 1.0
    centroids: bool = False
    repair: int = 0
    trained: bool = False
    fidelity: float = 0.95


def make_problem(
    fitted: tuple[Float32Array, Pairs],
    measured: tuple[Float32Array, Pairs],
    predicted: Float32Array,
    targets: npt.NDArray[np.int64],
    basis_rows: npt.NDArray[np.bool_] | None = None,
) -> Problem:
    """Fit center and basis, and rotate.

    Args:
        fitted: logits ``[n, C]`` and pairs.
        measured: the same of others.
        predicted: predicted logits of the fitted rows ``[n, C]``.
        targets: label column of each image's class ``[N]``.
        basis_rows: which of the fitted rows the basis is fitted to; None for all.
    """
    rest = fitted[0] - predicted
    shift = rest.mean(axis=0)
    center = shift.astype(np.float32)
    level = predicted.mean(axis=0)
    rest -= shift
    lengths = [np.sqrt(np.square(_apart(logits - center - level)).sum(axis=1)) for logits, _ in (fitted, measured)]
    reference = float(np.median(lengths[0]))
    used = slice(None) if basis_rows is None else basis_rows
    normal = (_apart(rest) / np.clip(lengths[0] / reference, 0.5, 2)[:, None])[used]
    found = np.linalg.eigh((normal.T @ normal).astype(np.float64))[1][:, :0:-1].T
    columns = rest.shape[1]
    basis = np.concatenate([np.full((1, columns), columns**-0.5), found]).astype(np.float32)
    parts = []
    for (logits, pairs), length in zip((fitted, measured), lengths, strict=True):
        scales = SCALES[scales_of(np.square(length, dtype=np.float64), reference)][:, None]
        parts.append(Rows(values=(logits - center) @ basis.T, scales=scales, pairs=pairs, logits=logits))
    return Problem(basis=basis, center=center, fitted=parts[0], measured=parts[1], targets=targets)


def _apart(rows: Float32Array) -> Float32Array:
    """Rows apart from their mean."""
    left: Float32Array = rows - rows.mean(axis=1, keepdims=True)
    return left


def quantised(values: Float32Array, first: Float32Array, shift: Float32Array) -> Float32Array:
    """Codes of values ``[n, r]`` in steps, as `labelstore.encodings.components.quantise` makes them, in float32."""
    magnitudes = np.abs(values)
    codes = np.maximum(np.floor(magnitudes + (0.5 - shift)), 1)
    codes[magnitudes < first] = 0
    signed: Float32Array = np.copysign(codes, values)
    return signed


def cells(codes: Float32Array, worth: float) -> tuple[Float32Array, Float32Array]:
    """Where codes begin and by how much cells are moved outwards, of each component: by the bits of the codes before.

    With models that code each component by itself, this *is* rate-distortion optimised quantisation.
    """
    codes = np.abs(codes)
    zeros, ones, twos = ((codes == code).sum(axis=0) / 2 ** (code > 0) + 0.25 for code in range(3))
    first = 0.5 + worth / 2 * (1 + np.log2(zeros / ones))
    shift = worth / 2 * np.log2(ones / twos)
    return (
        np.clip(first, 0.5, MOST_FIRST).astype(np.float32),
        np.clip(shift, 0, MOST_SHIFT).astype(np.float32),
    )


def code(problem: Problem, predict: Predict, step: float, settings: Settings) -> Coded:
    """Quantise with a step, and decode."""
    inside, outside, side = predict(step)
    fitted, measured = problem.fitted, problem.measured
    ours, theirs = (
        (rows.values[:, :SEEN] - predicted[:, :SEEN]) / (step * rows.scales)
        for rows, predicted in ((fitted, inside), (measured, outside))
    )
    first, shift = np.full(1, 0.5, np.float32), np.zeros(1, np.float32)
    for _ in range(2):
        first, shift = cells(quantised(ours, first, shift), settings.worth * WORTH)
    known, codes = quantised(ours, first, shift), quantised(theirs, first, shift)
    used = np.flatnonzero((known != 0).any(axis=0) | (codes != 0).any(axis=0))
    width = -(-(int(used[-1]) + 1) // GROUP) * GROUP if len(used) else GROUP
    known, codes, ours = known[:, :width], codes[:, :width], ours[:, :width]
    one, more = _centroids(ours, known, each=settings.centroids)
    values = codes + np.sign(codes) * np.where(np.abs(codes) > 1, more, one)
    components = outside.copy()
    components[:, :width] += values * (step * measured.scales)
    if settings.repair or settings.trained:
        learnt = known + np.sign(known) * np.where(np.abs(known) > 1, more, one)
        before = (learnt, inside, ours - learnt), (values, outside)
        lost = trained_repair(*before, step) if settings.trained else _lost(*before, settings.repair, step)
        components[:, :width] += lost * (step * measured.scales)
    decoded = components @ problem.basis + problem.center
    return Coded(step, codes.astype(np.int16), known.astype(np.int16), decoded, side)


def _centroids(values: Float32Array, codes: Float32Array, *, each: bool) -> tuple[Any, float]:
    """How far values lie outside codes of 1, and of more, on average."""
    sizes = np.abs(codes)
    outside = np.abs(values) - sizes
    more = float(outside[sizes > 1].mean()) if (sizes > 1).any() else 0.0
    if each:
        ones = sizes == 1
        return (outside * ones).sum(axis=0) / (ones.sum(axis=0) + 20), more
    return (float(outside[sizes == 1].mean()) if (sizes == 1).any() else 0.0), more


def _lost(
    known: tuple[Float32Array, Float32Array, Float32Array],
    new: tuple[Float32Array, Float32Array],
    features: int,
    step: float,
) -> Float32Array:
    """What quantisation loses, as a network with one hidden layer at random and a fitted last layer predicts it."""
    generator = np.random.Generator(np.random.Philox(0))

    def inputs(codes: Float32Array, predicted: Float32Array) -> Float32Array:
        joined = np.concatenate([codes[:, :128], predicted[:, :128] / (4 * step)], axis=1)
        return np.concatenate([joined, np.ones((len(joined), 1), np.float32)], axis=1)

    ours, theirs = inputs(known[0], known[1]), inputs(*new)
    hidden = generator.standard_normal((ours.shape[1], features)).astype(np.float32) / np.sqrt(ours.shape[1])
    ours, theirs = (np.concatenate([rows, np.maximum(rows @ hidden, 0)], axis=1) for rows in (ours, theirs))
    gram = ours.T @ ours
    gram += np.eye(len(gram), dtype=np.float32) * (0.3 * np.trace(gram) / len(gram))
    found: Float32Array = theirs @ np.linalg.solve(gram, ours.T @ known[2])
    return found


def search(problem: Problem, predict: Predict, settings: Settings) -> Coded:
    """The coding whose measured rows have the requested fidelity to about 1e-4: secants, since 1 - f is a power of it.

    All contenders are searched on the rows that they are measured on, so that they are compared at equal fidelity.
    """
    wanted, step = np.log(1 - settings.fidelity), FIRST_STEP
    tried: list[tuple[float, float]] = []
    for _ in range(EVALUATIONS):
        coded = code(problem, predict, step, settings)
        away = np.log(1 - fidelity_of(problem, coded.logits))
        tried.append((np.log(step), away - wanted))
        if abs(away - wanted) < 1e-3:
            break
        slope = 1.3
        if len(tried) > 1 and tried[-1][0] != tried[-2][0]:
            slope = np.clip((tried[-1][1] - tried[-2][1]) / (tried[-1][0] - tried[-2][0]), 0.4, 3.0)
        step = float(np.exp(tried[-1][0] - tried[-1][1] / slope))
    return coded


def fidelity_of(problem: Problem, decoded: Float32Array) -> float:
    """Mean fidelity of the measured rows."""
    pairs, targets = problem.measured.pairs, problem.targets
    return float(
        gift_fidelity(
            problem.measured.logits, decoded, targets[pairs.images], targets[pairs.partners], pairs.weights
        ).mean()
    )


def quality_of(problem: Problem, decoded: Float32Array) -> Quality:
    """All that is stated of the measured rows."""
    pairs, targets = problem.measured.pairs, problem.targets
    return quality(problem.measured.logits, decoded, targets[pairs.images], targets[pairs.partners], pairs.weights)


def packed_bytes(codes: npt.NDArray[np.int16]) -> float:
    """Bytes a row of PCodec, in chunks of 16 components of all rows ``[n, r]``."""
    total = 0
    for start in range(0, codes.shape[1], GROUP):
        chunk = np.ascontiguousarray(codes[:, start : start + GROUP].T)
        total += len(codecs.compress("pcodec", chunk)) + CHUNK_BYTES
    return total / len(codes)


def entropy_of(codes: npt.NDArray[np.int16]) -> float:
    """Bytes a row, of each component by itself."""
    return entropy(codes)
