"""Judge claims: one of three verdicts, the differences that led to it, and doubts."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, stdev
from typing import Any, Literal

from benchmarks.evidence.lines import Line, labels_of, selected
from benchmarks.evidence.suite import Claim, Comparison, Selection
from labelstore.errors import InputError

Verdict = Literal["holds", "does not hold", "not measured here"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """The result of one condition.

    Attributes:
        condition: the condition in words, with its range.
        of: values of the first side, one for each run.
        minus: values of the other side; None if that is a number.
        difference: difference of the means; None if a side has too few runs.
        kept: whether the difference is in the range; None if it is not known.
        doubt: why a condition that is kept may still be wrong; may be empty.
    """

    condition: str
    of: tuple[float, ...]
    minus: tuple[float, ...] | None
    difference: float | None
    kept: bool | None
    doubt: str = ""


@dataclass(frozen=True, kw_only=True)
class Judged:
    """A claim with its verdict.

    Attributes:
        claim: the claim.
        verdict: the result of its rule.
        found: the result of each condition.
        lines: the lines of its table.
    """

    claim: Claim
    verdict: Verdict
    found: tuple[Found, ...]
    lines: tuple[Line, ...]


def judge(claim: Claim, lines: Sequence[Line]) -> Judged:
    """Apply a claim's rule: it holds when every condition does, and does not when one is broken.

    Raises:
        InputError: the lines were tested on different images.
    """
    own = selected(lines, claim.where, claim.metric)
    require_one_test(claim, own)
    found = tuple(each for condition in claim.rule for each in conditions(claim, condition, own))
    kept = [each.kept for each in found]
    verdict: Verdict = "not measured here"
    if False in kept:
        verdict = "does not hold"
    elif kept and None not in kept:
        verdict = "holds"
    return Judged(claim=claim, verdict=verdict, found=found, lines=tuple(own))


def require_one_test(claim: Claim, lines: Sequence[Line]) -> None:
    """Refuse runs of different test sets in one table, unless the claim names a field by which they differ.

    Raises:
        InputError: names two lines.
    """
    named = [name for names in (claim.rows, claim.columns) for name in names.split(" + ")]
    for name, by in (("tests", claim.tests_by), ("data", "data" if "data" in named else "")):
        found: dict[str, dict[str, str]] = {}
        for line in lines:
            if line.get(name) is not None:
                found.setdefault(labels_of(line, by), {})[json.dumps(line.get(name))] = line.place
        for values in found.values():
            if len(values) > 1:
                places = " and ".join(f"{value} in {place}" for value, place in list(values.items())[:2])
                raise InputError(
                    f"claim {claim.id}: expected runs of one test set in a table, found {name} {places}; choose one in "
                    f"where, or state in tests_by which field they differ by"
                )


def conditions(claim: Claim, condition: Comparison, lines: Sequence[Line]) -> Iterator[Found]:
    """The results of a condition: one for each value of the fields ``each``, or one without them."""
    if not condition.each:
        yield compare(claim, condition, {}, lines)
        return
    names = condition.each.split(" + ")
    values = {json.dumps([line.get(name) for name in names]): line for line in lines if line.fits(condition.of)}
    if not values:
        yield Found(condition=in_words(claim, condition, {}), of=(), minus=None, difference=None, kept=None)
    for line in values.values():
        # Selections write null and the empty list as "none".
        each = {name: line.get(name) if line.get(name) not in (None, []) else "none" for name in names}
        yield compare(claim, condition, each, lines)


def compare(claim: Claim, condition: Comparison, each: Selection, lines: Sequence[Line]) -> Found:
    """Compare two means, or a mean and a number, for the values ``each`` of some fields."""
    text = in_words(claim, condition, each)
    ours = selected(lines, {**condition.of, **each}, claim.metric)
    of, theirs = values_of(ours, claim.metric), None
    if isinstance(condition.minus, Mapping):
        others = selected(lines, {**condition.minus, **each}, claim.metric)
        if condition.paired:
            fields = {*condition.of, *condition.minus}
            partners = {line.other(fields) for line in ours}
            others = [line for line in others if line.other(fields) in partners]
        theirs = values_of(others, claim.metric)
    if len(of) < claim.runs or (theirs is not None and len(theirs) < claim.runs):
        return Found(condition=text, of=of, minus=theirs, difference=None, kept=None)
    base = condition.minus if not isinstance(condition.minus, Mapping) else fmean(theirs or (0.0,))
    difference = fmean(of) - base
    low = -math.inf if condition.at_least is None else condition.at_least
    high = math.inf if condition.at_most is None else condition.at_most
    kept = low <= difference <= high
    doubt = doubts(claim, of, theirs, difference, (low, high)) if kept else ""
    return Found(condition=text, of=of, minus=theirs, difference=difference, kept=kept, doubt=doubt)


def values_of(lines: Sequence[Line], metric: str) -> tuple[float, ...]:
    """The values of a metric in all lines, in the order of their seeds."""
    ordered = sorted(lines, key=lambda line: line.get("seed") if isinstance(line.get("seed"), int) else -1)
    return tuple(value for line in ordered for value in line.numbers(metric))


def doubts(
    claim: Claim, of: Sequence[float], minus: Sequence[float] | None, difference: float, bounds: tuple[float, float]
) -> str:
    """The doubt about a kept condition: its margin is smaller than the standard deviation between runs."""
    margin = min(difference - bounds[0], bounds[1] - difference)
    sides = [side for side in (of, minus or ()) if len(side) > 1]
    deviation = math.sqrt(sum(stdev(side) ** 2 for side in sides) / len(sides)) if sides else None
    if deviation is None:
        return "one run alone: its deviation is not known" if len(of) < 2 else ""
    if margin < deviation:
        inside = f"only {margin:.2f} {claim.unit.replace('%', 'points')} inside the rule"
        return f"{inside}, less than one standard deviation of runs ({deviation:.2f})"
    return ""


def in_words(claim: Claim, condition: Comparison, each: Selection) -> str:
    """A condition as the page shows it."""
    of = _selection({**condition.of, **each})
    bounds = []
    if condition.at_least is not None:
        bounds.append(f"at least {shown(condition.at_least)}")
    if condition.at_most is not None:
        bounds.append(f"at most {shown(condition.at_most)}")
    unit = f" {claim.unit}".replace(" %", " points") if isinstance(condition.minus, Mapping) else f" {claim.unit}"
    for_each = f" for each {condition.each}" if condition.each and not each else ""
    minus = ""
    if isinstance(condition.minus, Mapping):
        paired = ", of the same other choices" if condition.paired else ""
        minus = f" minus mean({_selection({**condition.minus, **each})}{paired})"
    elif condition.minus:
        minus = f" minus {shown(condition.minus)}"
    return f"mean({of}){minus} is {' and '.join(bounds)}{unit.rstrip()}{for_each}"


def _selection(selection: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in selection.items()) or "all"


def shown(value: float) -> str:
    """A number with four significant digits, or without decimals from 1000."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
