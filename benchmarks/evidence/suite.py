"""Suites and their parts, read from TOML files in this folder or elsewhere and checked."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from labelstore.errors import InputError

HERE = Path(__file__).parent
ENDS = ("best", "worst")  # what a grid may pick
Selection = Mapping[str, Any]
"""Values of fields that a line of results must have."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What cells need before they run, such as a set or a store; shared by all cells with the same command.

    Attributes:
        run: command with {names} of numbers, axes and other steps, and {out} for its folder.
        seconds: estimated duration.
    """

    run: str
    seconds: float = 5.0


@dataclass(frozen=True, kw_only=True)
class CellForm:
    """The command of the cells of a part.

    Attributes:
        run: command, as of a step.
        seconds: estimated duration, until a similar cell is finished.
    """

    run: str
    seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A set of cells: every combination of some choices.

    Attributes:
        choose: names of choices, by axis; ``*`` for all.
        pick: ``best``, ``worst`` or both: the choices of the axes ``of`` with the highest or lowest mean top-1 in the
            first grid.
        of: axes that are picked.
        seeds: seeds of these cells; the part's when empty.
    """

    choose: Mapping[str, tuple[str, ...]]
    pick: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One condition of a rule: ``of`` minus ``minus`` lies in a range.

    Attributes:
        of: selection of the lines whose mean is compared.
        minus: selection of the lines whose mean is subtracted, or a number.
        at_least: smallest difference, in the unit of the claim; None for no limit.
        at_most: largest difference, likewise.
        each: fields ``a + b``; the condition must hold for each of their values.
        paired: whether ``minus`` takes only lines that differ from a line of ``of`` only in the compared fields.
    """

    of: Selection = field(default_factory=dict)
    minus: Selection | float = 0.0
    at_least: float | None = None
    at_most: float | None = None
    each: str = ""
    paired: bool = False


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A sentence, the lines that it is about, and the rule that decides it.

    Attributes:
        id: short name, unique in its part.
        sentence: the claim.
        rule: conditions; the claim holds if all of them do.
        file: name of the file of results, without its ending; several as ``a + b``.
        where: selection of its lines.
        metric: dotted path of the compared number in a line.
        unit: unit of the metric.
        rows: field with a row of the table for each value; several as ``a + b``.
        columns: field with a column for each value, likewise; one column when empty.
        runs: values that each compared mean needs; with fewer the claim is not measured.
        tests_by: field by which the test images differ; all are of one test set when empty.
        reported: which evaluation of a run the number is from.
        command: command that produced the lines; empty for cells, whose lines have it.
        against: evidence against the claim that was known before the run.
        published: figures of papers, and how their setting differs.
    """

    id: str
    sentence: str
    rule: tuple[Comparison, ...]
    file: str = "evidence"
    where: Selection = field(default_factory=dict)
    metric: str = "top1"
    unit: str = "%"
    rows: str = ""
    columns: str = ""
    runs: int = 3
    tests_by: str = ""
    reported: str = "last epoch"
    command: str = ""
    against: str = ""
    published: str = ""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Claims, and the cells that produce their numbers: one file.

    Attributes:
        name: name of the file, without its ending.
        title: title of its section.
        about: what its cells do.
        differs: how they differ from what is published.
        claims: its claims, in the order of the page.
        numbers: values that commands use by name.
        needs: what must be there: ``module:NAME``, ``data:PATH`` or ``peer:NAME``.
        seeds: seeds of its cells.
        axes: the choices of each axis, with the text that a command has for each.
        steps: its steps, by name.
        cell: command of its cells; None if it has only claims about studies.
        grids: its cells, the most important ones first.
    """

    name: str
    title: str
    about: str = ""
    differs: str = ""
    claims: tuple[Claim, ...] = ()
    numbers: Mapping[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (0,)
    axes: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    steps: Mapping[str, Step] = field(default_factory=dict)
    cell: CellForm | None = None
    grids: tuple[Grid, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Suite:
    """Which parts a page has, and how long their missing cells may take.

    Attributes:
        name: name of the file, without its ending.
        title: title of the page.
        parts: its parts, in the order of the page.
        minutes: time for the cells of one call.
        seeds: how many of the seeds to run, from the first; all when None.
        draw: ``images``, ``side``, ``teacher`` and ``teacher_args`` of a toy suite, which draws its data; else empty.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    minutes: float
    seeds: int | None = None
    draw: Mapping[str, Any] = field(default_factory=dict)


def read_suite(name: str) -> Suite:
    """Read a suite and its parts.

    Args:
        name: name of a suite in this folder, or the path of a TOML file; its parts may be beside it.

    Raises:
        InputError: names the file and the key that is wrong.
    """
    path = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    if not path.is_file():
        raise InputError(f"--suite: expected quick, full or the path of a TOML file, found {name!r}; {path} is no file")
    values = _read(path)
    wanted, numbers = values.pop("parts", ()), values.pop("numbers", {})
    require_kind(wanted, tuple[str, ...], f"{path}: parts")
    require_kind(numbers, Mapping[str, Any], f"{path}: numbers")
    head = _made(Suite, {**values, "name": path.stem, "parts": ()}, path)
    parts = tuple(read_part(_beside(path, each), numbers) for each in wanted)
    if not parts:
        raise InputError(f"{path}: parts: expected the names of files beside it, found none")
    return replace(head, parts=parts)


def read_part(path: Path, numbers: Mapping[str, Any] | None = None) -> Part:
    """Read the part of a file.

    Args:
        path: TOML file.
        numbers: numbers of the suite, which replace those of the part; ``seeds`` among them replaces its seeds.
    """
    values, own = _read(path), dict(numbers or {})
    for key, kind in TABLES.items():
        if key in values:
            require_kind(values[key], kind, f"{path}: {key}")
    if "seeds" in own:
        values["seeds"] = own.pop("seeds")
    values["numbers"] = {**values.get("numbers", {}), **own}
    for claim in values.get("claims", ()):
        require_kind(claim.get("rule", ()), TABLES["claims"], f"{path}: claims.rule")
        claim["rule"] = tuple(_made(Comparison, each, path, "claims.rule") for each in claim.get("rule", ()))
    values["claims"] = tuple(_made(Claim, each, path, "claims") for each in values.get("claims", ()))
    values["steps"] = {key: _made(Step, each, path, f"steps.{key}") for key, each in values.get("steps", {}).items()}
    values["grids"] = tuple(_grid(each, path) for each in values.pop("grid", ()))
    if "cell" in values:
        values["cell"] = _made(CellForm, values["cell"], path, "cell")
    part = _made(Part, {**values, "name": path.stem}, path)
    _require_whole(part, path)
    return part


def _beside(path: Path, name: str) -> Path:
    """The file of a part: beside that of the suite, else in this folder."""
    own = path.parent / f"{name}.toml"
    found = own if own.is_file() else HERE / f"{name}.toml"
    if not found.is_file():
        raise InputError(f"{path}: parts: expected names of TOML files in {path.parent}, found {name!r}")
    return found


def _read(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise InputError(f"{path}: expected TOML, found: {error}") from error


def _grid(values: Mapping[str, Any], path: Path) -> Grid:
    own = {key: each for key, each in values.items() if key in ("pick", "of", "seeds")}
    chosen = {key: tuple(each) for key, each in values.items() if key not in own}
    return _made(Grid, {"choose": chosen, **own}, path, "grid")


def _require_whole(part: Part, path: Path) -> None:
    """Check that cells and verdicts can be made of a part."""
    for claim in part.claims:
        if not claim.rule:
            raise InputError(f"{path}: claim {claim.id}: expected a rule, found none")
        for condition in claim.rule:
            if condition.at_least is None and condition.at_most is None:
                raise InputError(
                    f"{path}: claim {claim.id}: expected at_least or at_most in each condition of its rule"
                )
    if len({claim.id for claim in part.claims}) < len(part.claims):
        raise InputError(f"{path}: expected different ids of claims")
    for number, grid in enumerate(part.grids):
        first = {**part.grids[0].choose} if number else {}
        if set(grid.pick) - {*ENDS} or set(grid.of) - {*first} or bool(grid.pick) != bool(grid.of):
            raise InputError(
                f"{path}: grid: pick, of: expected {' or '.join(ENDS)} of axes of a grid before it, found "
                f"{[*grid.pick]} of {[*grid.of]}"
            )
        if part.cell is None:
            raise InputError(f"{path}: grid: expected a [cell] with the command of its cells, found none")
        for axis, chosen in grid.choose.items():
            known = part.axes.get(axis, {})
            for name in chosen:
                if name != "*" and name not in known:
                    raise InputError(f"{path}: grid: {axis}: expected {', '.join(known) or 'an axis'}, found {name!r}")


T = TypeVar("T")
TABLES: Mapping[str, Any] = {  # types of the tables of a part
    "numbers": Mapping[str, Any],
    "steps": Mapping[str, Mapping[str, Any]],
    "cell": Mapping[str, Any],
    "claims": tuple[Mapping[str, Any], ...],
    "grid": tuple[Mapping[str, Any], ...],
}


def _made(kind: type[T], values: Mapping[str, Any], path: Path, where: str = "") -> T:
    """A dataclass from a table of TOML; unknown and missing keys are refused."""
    known = {each.name: each for each in fields(kind)}  # type: ignore[arg-type]
    place = f"{path}: {where}: " if where else f"{path}: "
    for key in values:
        if key not in known:
            raise InputError(f"{place}expected keys {', '.join(known)}, found {key!r}")
    for key, each in known.items():
        if key not in values and each.default is MISSING and each.default_factory is MISSING:
            raise InputError(f"{place}{key}: expected a value, found none")
    hints = get_type_hints(kind)
    for key, each in values.items():
        require_kind(each, hints[key], f"{place}{key}")
    return kind(**{key: tuple(each) if isinstance(each, list) else each for key, each in values.items()})


def require_kind(value: Any, kind: Any, place: str) -> None:
    """Refuse a value of a file that does not have the type of its field.

    Raises:
        InputError: names the type and the value.
    """
    if not is_kind(value, kind):
        wanted = getattr(kind, "__name__", "") if not get_args(kind) else str(kind).replace("typing.", "")
        raise InputError(f"{place}: expected {wanted}, found {value!r:.100}")


def is_kind(value: Any, kind: Any) -> bool:
    """Whether a value of TOML has a type: lists are tuples, integers are floats too, true and false are no numbers."""
    origin, inside = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin in (Union, UnionType):
        return any(is_kind(value, each) for each in inside)
    if origin is tuple:
        return isinstance(value, list | tuple) and all(is_kind(each, inside[0]) for each in value)
    if origin is not None:
        return isinstance(value, Mapping) and all(is_kind(each, inside[1]) for each in value.values())
    if kind in (int, float):
        return isinstance(value, int | kind) and not isinstance(value, bool)
    return isinstance(value, kind)
