"""Suites and their parts: TOML files in this folder, which a reader can change; checked when they are read."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, field, fields, replace
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from labelstore.errors import InputError

HERE = Path(__file__).parent
ENDS = ("best", "worst")  # that a grid may pick
Selection = Mapping[str, Any]
"""Values of fields that a line of results must have."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """What cells need before they run: a set, a store; made once for each choice of what its command names.

    Attributes:
        run: command, with {names} of numbers, choices and other steps, and {out} for its folder.
        seconds: that it takes, about.
    """

    run: str
    seconds: float = 5.0


@dataclass(frozen=True, kw_only=True)
class CellForm:
    """What a cell runs.

    Attributes:
        run: command, as of a step.
        seconds: that it takes, about, until a cell of its kind is finished.
    """

    run: str
    seconds: float = 60.0


@dataclass(frozen=True, kw_only=True)
class Grid:
    """Cells: every combination of choices.

    Attributes:
        choose: names of choices, by axis; ``*`` for all.
        pick: take instead of ``loss`` and others the axes `of` the cells with the highest and the lowest mean.
        of: the axes that are picked.
        seeds: in place of the part's.
    """

    choose: Mapping[str, tuple[str, ...]]
    pick: tuple[str, ...] = ()
    of: tuple[str, ...] = ()
    seeds: tuple[int, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One condition of a rule: ``of`` minus ``minus`` lies in a range.

    Attributes:
        of: selection whose mean is compared.
        minus: another selection, or a number.
        at_least: smallest difference.
        at_most: largest difference.
        each: field for each of whose values the condition must hold.
        paired: take of ``minus`` the lines alone that differ from a line of ``of`` in the compared fields only.
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
        id: short name, the page's anchor.
        sentence: what is claimed.
        rule: conditions; the claim holds when all hold.
        file: of the results, without its ending; several as "a + b".
        where: which lines of it.
        metric: dotted path in a line.
        unit: of the metric.
        rows: field that the table has a row for each value of; several as "a + b".
        columns: likewise columns; one column when empty.
        runs: values that each compared mean needs; with fewer the claim is not measured.
        tests_by: field by which the test images differ; all are of one test set when empty.
        reported: which evaluation of a run the number is.
        command: that makes the lines.
        against: what contradicts it, known before the run.
        published: figures of papers, with what differs.
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
    """A file of claims, and of the cells that they need.

    Attributes:
        name: of the file.
        title: for people.
        about: what is done.
        differs: what differs from what is published.
        claims: in the order of the page.
        numbers: values that commands name.
        needs: modules that must be installed, and files that must exist.
        seeds: of the cells.
        axes: of each axis the choices, each with the text that stands for it in a command.
        steps: by name.
        cell: what a cell runs; None where a part has claims alone.
        grids: cells, the most important ones first.
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
        name: of the file.
        title: of the page.
        parts: in the order of the page.
        minutes: for the cells of one call.
        seeds: how many seeds are run, the first ones; all when None.
        draw: numbers of drawn images and of a teacher, for a suite at toy size.
    """

    name: str
    title: str
    parts: tuple[Part, ...]
    minutes: float
    seeds: int | None = None
    draw: Mapping[str, Any] = field(default_factory=dict)


def read_suite(name: str) -> Suite:
    """A suite by its name, or by the path of its file; parts lie beside it.

    Raises:
        InputError: names file and key of what is not as it should be.
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
    """The part of a file.

    Args:
        path: of the file.
        numbers: of the suite, in place of the part's own; ``seeds`` too.
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
    """The file of a part: beside the suite's, or one of this folder."""
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
    """Refuse what no cell and no verdict can be made of."""
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
            raise InputError(f"{path}: grid: expected a [cell] that says what its cells run, found none")
        for axis, chosen in grid.choose.items():
            known = part.axes.get(axis, {})
            for name in chosen:
                if name != "*" and name not in known:
                    raise InputError(f"{path}: grid: {axis}: expected {', '.join(known) or 'an axis'}, found {name!r}")


T = TypeVar("T")
TABLES: Mapping[str, Any] = {
    "numbers": Mapping[str, Any],
    "steps": Mapping[str, Mapping[str, Any]],
    "cell": Mapping[str, Any],
    "claims": tuple[Mapping[str, Any], ...],
    "grid": tuple[Mapping[str, Any], ...],
}


def _made(kind: type[T], values: Mapping[str, Any], path: Path, where: str = "") -> T:
    """A dataclass of a table; unknown and missing keys are refused."""
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
    """Refuse a value of a file that is of another kind than the field that it is for.

    Raises:
        InputError: names both.
    """
    if not is_kind(value, kind):
        wanted = getattr(kind, "__name__", "") if not get_args(kind) else str(kind).replace("typing.", "")
        raise InputError(f"{place}: expected {wanted}, found {value!r:.100}")


def is_kind(value: Any, kind: Any) -> bool:
    """Whether a value of TOML is of a kind: a list is a tuple, an integer is a number, true is neither."""
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
