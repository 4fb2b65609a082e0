"""The error that an encoding causes in a student's targets (P6).

Fidelity is the cosine between the GIFT targets made from exact and from decoded logits. A common offset of the logits
hides from it what softmax depends on, so that it is always stated with the KL divergence at temperatures 1 and 20 and
the agreement of the first choices.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.spec import Json

GAMMA = 0.1
SMOOTHING = 0.1
ROWS = 4_096
ROWS_AT_ONCE = 64  # what stays in the processor's cache
TINY = 1e-12

KL_DIGITS = 6
KL_PLACES = 12  # below that, a sum of logarithms is the processor's rounding

Float64Array = npt.NDArray[np.float64]


class Quality(NamedTuple):
    """The quality of encoded labels: an array ``[n]`` with a value for each label, or the mean.

    Attributes:
        fidelity: cosine between the GIFT targets made from the exact and from the decoded label.
        kl_1: KL divergence of the decoded label's softmax from the exact one's at temperature 1, in nats.
        kl_20: the same at temperature 20, without a factor.
        top1: whether the first choices agree; their share.
    """

    fidelity: Float64Array
    kl_1: Float64Array
    kl_20: Float64Array
    top1: Float64Array

    def of(self, chosen: npt.NDArray[np.bool_]) -> Quality:
        """That of some of the labels."""
        return Quality(*(values[chosen] for values in self))


def gift_fidelity(
    exact: npt.NDArray[np.floating],
    decoded: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    targets2: npt.NDArray[np.integer] | None = None,
    weights: npt.NDArray[np.floating] | None = None,
) -> Float64Array:
    """Cosine between the GIFT targets made from exact and from decoded logits, row by row.

    Args:
        exact: the teacher's logits ``[n, C]``.
        decoded: the same after encoding and decoding ``[n, C]``.
        targets: hard labels ``[n]``.
        targets2: hard labels of the partners ``[n]``; None if nothing is mixed.
        weights: weight of ``targets`` ``[n]``; None if nothing is mixed.

    Returns:
        float64 ``[n]``; released form, g = a = 0.1.
    """
    cosines = np.empty(len(exact))
    for start in range(0, len(exact), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        hard = _hard(
            exact.shape[1],
            targets[part],
            targets[part] if targets2 is None else targets2[part],
            np.ones(len(targets[part])) if weights is None else weights[part].astype(np.float64),
        )
        ours, theirs = (_unit(logits[part].astype(np.float64)) + GAMMA * hard for logits in (exact, decoded))
        cosines[part] = (_unit(ours) * _unit(theirs)).sum(axis=1)
    return cosines


def divergence(exact: npt.NDArray[np.floating], decoded: npt.NDArray[np.floating], temperature: float) -> Float64Array:
    """KL(exact || decoded) of the softmax of logits ``[n, C]`` at a temperature, row by row: float64 ``[n]``, nats."""
    found = np.empty(len(exact))
    for start in range(0, len(exact), ROWS_AT_ONCE):
        part = slice(start, start + ROWS_AT_ONCE)
        ours, theirs = (_log_softmax(logits[part] / np.float64(temperature)) for logits in (exact, decoded))
        terms = np.exp(ours)
        terms *= ours - theirs
        found[part] = np.maximum(terms.sum(axis=1), 0)
    return found


def agreement(exact: npt.NDArray[np.floating], decoded: npt.NDArray[np.floating]) -> npt.NDArray[np.bool_]:
    """Whether the decoded first choice is one of the exact ones, row by row: logits ``[n, C]`` -> ``[n]``."""
    choices = decoded.argmax(axis=1)[:, None]
    chosen: npt.NDArray[np.bool_] = np.take_along_axis(exact, choices, axis=1)[:, 0] == exact.max(axis=1)
    return chosen


def quality(
    exact: npt.NDArray[np.floating],
    decoded: npt.NDArray[np.floating],
    targets: npt.NDArray[np.integer],
    targets2: npt.NDArray[np.integer] | None = None,
    weights: npt.NDArray[np.floating] | None = None,
) -> Quality:
    """All that is stated of an encoding, row by row; arguments are those of ``gift_fidelity``."""
    return Quality(
        gift_fidelity(exact, decoded, targets, targets2, weights),
        divergence(exact, decoded, 1),
        divergence(exact, decoded, 20),
        agreement(exact, decoded).astype(np.float64),
    )


def summarize(found: Quality) -> Json:
    """Rows, mean fidelity and its 1st percentile, mean KL, top-1 agreement; None without rows.

    Nine digits, and six of KL: the same on every processor.
    """
    if not len(found.fidelity):
        return None
    return {
        "rows": len(found.fidelity),
        "mean": round(float(found.fidelity.mean()), 9),
        "p1": round(float(np.percentile(found.fidelity, 1)), 9),
        "kl_1": rounded_kl(found.kl_1),
        "kl_20": rounded_kl(found.kl_20),
        "top1": round(float(found.top1.mean()), 9),
    }


def beside(values: Mapping[str, Any]) -> str:
    """KL and top-1 agreement in words, to follow a fidelity; empty if they were not measured, in format 1."""
    if "kl_1" not in values:
        return ""
    return f", KL {values['kl_1']:.3g} (T = 1) and {values['kl_20']:.3g} (T = 20), top-1 agreement {values['top1']:.4f}"


def rounded_kl(found: Float64Array) -> float:
    """The mean of KL divergences in six digits, and none below 1e-12."""
    return round(float(f"{found.mean():.{KL_DIGITS}g}"), KL_PLACES)


def _hard(
    columns: int, targets: npt.NDArray[np.integer], targets2: npt.NDArray[np.integer], weights: Float64Array
) -> Float64Array:
    """The smoothed hard labels ``[n, C]``, mixed by weight, then normalised."""
    rows = np.arange(len(targets))
    rest = SMOOTHING / max(columns - 1, 1)
    hard = np.full((len(targets), columns), rest)
    # Two additions, so that y = y' gives the unmixed label.
    hard[rows, targets] += weights * (1 - SMOOTHING - rest)
    hard[rows, targets2] += (1 - weights) * (1 - SMOOTHING - rest)
    return _unit(hard)


def _unit(rows: Float64Array) -> Float64Array:
    """Rows divided by their length; shorter than 1e-12 becomes zero."""
    length = np.sqrt((rows * rows).sum(axis=1, keepdims=True))
    unit: Float64Array = np.where(length < TINY, 0.0, rows / np.maximum(length, TINY))
    return unit


def _log_softmax(logits: Float64Array) -> Float64Array:
    """Logarithm of the softmax of each row."""
    shifted: Float64Array = logits - logits.max(axis=1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted
