"""The cells of a part: combinations of choices, and the commands that each of them runs."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from benchmarks.evidence.suite import Grid, Part
from labelstore.errors import InputError

NAMED = re.compile(r"\{(\w+)(?::(\w+)=([^{}]+))?\}")
OUT, FOLDER, DATA = "{out}", "$DIR", "$GIFTWRAP_DATA"


@dataclass(frozen=True)
class Cell:
    """One result.

    Attributes:
        part: name of the part.
        choices: name of the choice of each axis.
        seed: of everything in it.
        command: that it runs, with $DIR and $GIFTWRAP_DATA in place of folders. The steps before it are part of it: the
            names of their folders end with a digest of their commands.
    """

    part: str
    choices: tuple[tuple[str, str], ...]
    seed: int
    command: str

    @property
    def name(self) -> str:
        """In words; unique among the cells of all parts."""
        return " ".join([self.part, *(choice for _, choice in self.choices), f"seed {self.seed}"])

    def to_json(self) -> dict[str, Any]:
        """Its fields, as a line of results has them."""
        return {"part": self.part, **dict(self.choices), "seed": self.seed, "command": self.command}


@dataclass(frozen=True)
class Work:
    """A command.

    Attributes:
        command: with $DIR and $GIFTWRAP_DATA in place of folders.
        out: its folder, below $DIR.
        seconds: that it takes, about.
    """

    command: str
    out: str
    seconds: float


def commands_of(part: Part, choices: Mapping[str, str], seed: int) -> list[Work]:
    """What a cell runs, in this order; its own command is the last."""
    assert part.cell is not None  # noqa: S101  parts with grids have one
    made: dict[str, Work] = {}
    try:
        own = _work("cell", part.cell, part, choices, seed, made)
    except RecursionError as error:
        raise InputError(f"part {part.name}: expected names that end, found some that name themselves") from error
    return [*made.values(), own]


def _work(name: str, form: Any, part: Part, choices: Mapping[str, str], seed: int, made: dict[str, Work]) -> Work:
    """The command of a step or of the cell; the steps that it names are added to those that were made."""
    text = expand(form.run, part, choices, seed, made)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    out = f"{FOLDER}/{part.name}/{name}-{digest}"
    return Work(text.replace(OUT, out), out, form.seconds)


def expand(template: str, part: Part, choices: Mapping[str, str], seed: int, made: dict[str, Work]) -> str:
    """A template with the values of all names but {out}.

    Raises:
        InputError: for a name that the part does not have.
    """

    def value(found: re.Match[str]) -> str:
        name, axis, choice = found.groups()
        if name == "out":
            return OUT
        if name == "seed":
            return str(seed)
        if axis and choice not in part.axes.get(axis, {}):
            known = ", ".join(part.axes.get(axis, {})) or "an axis of the part"
            raise InputError(f"part {part.name}: {found[0]}: expected {known}, found {axis}={choice}")
        if name in part.steps:
            chosen = {**choices, axis: choice} if axis else choices
            work = _work(name, part.steps[name], part, chosen, seed, made)
            made.setdefault(work.out, work)
            return work.out
        if name in choices:
            return expand(part.axes[name][choices[name]], part, choices, seed, made)
        if name in part.numbers:
            return expand(str(part.numbers[name]), part, choices, seed, made)
        known = ", ".join(["seed", "out", *part.numbers, *part.axes, *part.steps])
        raise InputError(f"part {part.name}: expected one of {known} in {template!r}, found {{{name}}}")

    return NAMED.sub(value, template)


def cell_of(part: Part, choices: Mapping[str, str], seed: int) -> Cell:
    """A cell by its choices."""
    return Cell(part.name, tuple(choices.items()), seed, commands_of(part, choices, seed)[-1].command)


def cells_of(part: Part, top1: Mapping[Cell, float], seeds: int | None = None) -> list[Cell]:
    """All cells of a part, the first seed of each grid first.

    Args:
        part: with grids or without.
        top1: of finished cells, which decides what is picked.
        seeds: how many seeds, the first ones; all when None.
    """
    found: dict[Cell, None] = {}
    for grid in part.grids:
        for seed in (grid.seeds or part.seeds)[:seeds]:
            for choices in _combinations(part, grid, top1):
                found[cell_of(part, choices, seed)] = None
    return list(found)


def _combinations(part: Part, grid: Grid, top1: Mapping[Cell, float]) -> Iterator[dict[str, str]]:
    """Every choice of a grid; none while what is picked is not known."""
    picked = picks(part, grid, top1) if grid.pick else [{}]
    axes = {axis: [*part.axes[axis]] if "*" in chosen else chosen for axis, chosen in grid.choose.items()}
    for own in picked:
        for values in product(*axes.values()):
            chosen = {**dict(zip(axes, values, strict=True)), **own}
            yield {axis: chosen[axis] for axis in part.axes if axis in chosen}


def picks(part: Part, grid: Grid, top1: Mapping[Cell, float]) -> list[dict[str, str]]:
    """The choices with the highest and the lowest mean in the first grid, once all its cells are finished."""
    means = {}
    for choices in _combinations(part, part.grids[0], top1):
        values = [top1.get(cell_of(part, choices, seed)) for seed in part.seeds]
        if None in values:
            return []
        means[tuple((axis, choices[axis]) for axis in grid.of)] = fmean(value for value in values if value is not None)
    ranked = sorted(means, key=lambda key: means[key])
    ends = {"best": ranked[-1], "worst": ranked[0]}
    return [dict(ends[each]) for each in grid.pick]
