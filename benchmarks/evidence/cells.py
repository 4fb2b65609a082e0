"""The cells of a part: combinations of choices, and the commands that each one runs."""

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
    """One run: a choice on each axis, and a seed.

    Attributes:
        part: name of its part.
        choices: pairs of an axis and the name of its choice.
        seed: seed of all its commands.
        command: its command, with $DIR and $GIFTWRAP_DATA in place of folders. It identifies the steps before it too:
            the names of their folders end with a digest of their commands.
    """

    part: str
    choices: tuple[tuple[str, str], ...]
    seed: int
    command: str

    @property
    def name(self) -> str:
        """A readable name, unique among the cells of all parts."""
        return " ".join([self.part, *(choice for _, choice in self.choices), f"seed {self.seed}"])

    def to_json(self) -> dict[str, Any]:
        """The fields that identify it in a line of results."""
        return {"part": self.part, **dict(self.choices), "seed": self.seed, "command": self.command}


@dataclass(frozen=True)
class Job:
    """A command with its folder and duration.

    Attributes:
        command: its words, with $DIR and $GIFTWRAP_DATA in place of folders.
        out: its output folder, which starts with $DIR.
        seconds: estimated duration.
    """

    command: str
    out: str
    seconds: float


def commands_of(part: Part, choices: Mapping[str, str], seed: int) -> list[Job]:
    """The commands of a cell in the order in which they run: its steps, then its own."""
    assert part.cell is not None  # noqa: S101  parts with grids have one
    made: dict[str, Job] = {}
    try:
        own = _job("cell", part.cell, part, choices, seed, made)
    except RecursionError as error:
        raise InputError(
            f"part {part.name}: a name is defined by itself; give it a value without its own name"
        ) from error
    return [*made.values(), own]


def _job(name: str, form: Any, part: Part, choices: Mapping[str, str], seed: int, made: dict[str, Job]) -> Job:
    """The command of a step or of the cell; the steps that it names are added to ``made``."""
    text = expand(form.run, part, choices, seed, made)
    digest = hashlib.sha256(text.encode()).hexdigest()[:8]
    out = f"{FOLDER}/{part.name}/{name}-{digest}"
    return Job(text.replace(OUT, out), out, form.seconds)


def expand(template: str, part: Part, choices: Mapping[str, str], seed: int, made: dict[str, Job]) -> str:
    """Replace the names in a template by their values, except {out}.

    Args:
        template: text with {names} of numbers, axes and steps of the part.
        part: defines the names.
        choices: name of the choice of each axis.
        seed: value of {seed}.
        made: commands of steps by their folders; the steps that the template names are added.

    Raises:
        InputError: the part does not define a name.
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
            job = _job(name, part.steps[name], part, chosen, seed, made)
            made.setdefault(job.out, job)
            return job.out
        if name in choices:
            return expand(part.axes[name][choices[name]], part, choices, seed, made)
        if name in part.numbers:
            return expand(str(part.numbers[name]), part, choices, seed, made)
        known = ", ".join(["seed", "out", *part.numbers, *part.axes, *part.steps])
        raise InputError(f"part {part.name}: expected one of {known} in {template!r}, found {{{name}}}")

    return NAMED.sub(value, template)


def cell_of(part: Part, choices: Mapping[str, str], seed: int) -> Cell:
    """The cell of some choices."""
    return Cell(part.name, tuple(choices.items()), seed, commands_of(part, choices, seed)[-1].command)


def cells_of(part: Part, top1: Mapping[Cell, float], seeds: int | None = None) -> list[Cell]:
    """All cells of a part, the first seed of each grid first.

    Args:
        part: the part.
        top1: top-1 of finished cells in percent, which decides what grids pick.
        seeds: how many of the seeds, from the first; all when None.
    """
    found: dict[Cell, None] = {}
    for grid in part.grids:
        for seed in (grid.seeds or part.seeds)[:seeds]:
            for choices in _combinations(part, grid, top1):
                found[cell_of(part, choices, seed)] = None
    return list(found)


def _combinations(part: Part, grid: Grid, top1: Mapping[Cell, float]) -> Iterator[dict[str, str]]:
    """The combinations of a grid; none until the cells that it picks from are finished."""
    picked = picks(part, grid, top1) if grid.pick else [{}]
    axes = {axis: [*part.axes[axis]] if "*" in chosen else chosen for axis, chosen in grid.choose.items()}
    for own in picked:
        for values in product(*axes.values()):
            chosen = {**dict(zip(axes, values, strict=True)), **own}
            yield {axis: chosen[axis] for axis in part.axes if axis in chosen}


def picks(part: Part, grid: Grid, top1: Mapping[Cell, float]) -> list[dict[str, str]]:
    """The best and worst choices of the first grid, by mean top-1; none until all its cells are finished."""
    means = {}
    for choices in _combinations(part, part.grids[0], top1):
        values = [top1.get(cell_of(part, choices, seed)) for seed in part.seeds]
        if None in values:
            return []
        means[tuple((axis, choices[axis]) for axis in grid.of)] = fmean(value for value in values if value is not None)
    ranked = sorted(means, key=lambda key: means[key])
    ends = {"best": ranked[-1], "worst": ranked[0]}
    return [dict(ends[each]) for each in grid.pick]
