"""Lines of results as claims read them: of every study by the same fields, each with the commit that made it."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.evidence.suite import Selection

UNKNOWN = "not known"
SEEDS = ("seed", "command", "estimate", "seconds")


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of results.

    Attributes:
        fields: of the cell, and the others of the line.
        cell: names of the fields of the cell.
        commit: of the code that made it, or else in which the line was added.
        place: file and number.
    """

    fields: Mapping[str, Any]
    cell: tuple[str, ...]
    commit: str
    place: str

    def get(self, path: str) -> Any:
        """The value at a dotted path; ``epoch=2`` in it is the entry of a list with that value; None: there is none."""
        value: Any = self.fields
        for name in path.split("."):
            if isinstance(value, Mapping) and name in value:
                value = value[name]
            elif isinstance(value, list) and name.isdecimal() and int(name) < len(value):
                value = value[int(name)]
            elif isinstance(value, list) and "=" in name:
                key, _, wanted = name.partition("=")
                value = next(
                    (each for each in value if isinstance(each, Mapping) and str(each.get(key)) == wanted), None
                )
            else:
                return None
        return value

    def numbers(self, metric: str) -> list[float]:
        """The values of a metric: one, or those of several seeds."""
        value = self.get(metric)
        values = value if isinstance(value, list) else [value]
        return [float(each) for each in values if isinstance(each, int | float)]

    def fits(self, selection: Selection) -> bool:
        """Whether it has all values of a selection; a list stands for any of its values."""
        return all(_fits(self.get(name), wanted) for name, wanted in selection.items())

    @property
    def machine(self) -> str:
        """What it was measured on, in words."""
        found = self.get("machine") or self.get("summary.machine") or {}
        if not isinstance(found, Mapping) or not found:
            gpu = self.get("gpu")
            return str(gpu) if gpu else UNKNOWN
        gpu = f", {found['gpu']}" if found.get("gpu") else ""
        return f"{found.get('cores')} cores of {found.get('cpu')}{gpu}, torch {found.get('torch')}"

    def other(self, names: Iterable[str]) -> tuple[Any, ...]:
        """The values of the cell's fields but those named and the seed."""
        left = sorted(set(self.cell) - {*names} - {*SEEDS})
        return tuple(json.dumps(self.fields[name]) for name in left)


def read_lines(path: Path) -> list[Line]:
    """The lines of a file, of a cell the last one: two would count as two runs.

    Lines that are cut off are passed over, and a file that is absent has none.
    """
    if not path.is_file():
        return []
    texts = path.read_bytes().splitlines()
    commits = added_in(path, len(texts))
    found: dict[str, Line] = {}
    for number, (text, commit) in enumerate(zip(texts, commits, strict=True), 1):
        try:
            values = json.loads(text)
        except (ValueError, RecursionError):
            continue
        cell = values.get("cell", {}) if isinstance(values, dict) else None
        if isinstance(cell, dict):
            fields = {**cell, **values}
            own = fields.get("commit") or fields.get("code")
            where = f"{path.name}:{number}"
            key = json.dumps(cell, sort_keys=True) if cell else where
            found[key] = Line(fields=fields, cell=tuple(cell), commit=str(own or commit), place=where)
    return [*found.values()]


def added_in(path: Path, count: int) -> list[str]:
    """The commit that added each line of a file; "not committed" or "not known" where there is none."""
    blamed = _git("blame", "-s", "--abbrev=7", "--", str(path.resolve()))
    found = [line.split(maxsplit=1)[0].strip("^") for line in (blamed or "").splitlines()]
    if blamed is None or len(found) != count:
        return [UNKNOWN] * count
    return ["not committed" if re.fullmatch("0+", each) else f"in {each[:7]}" for each in found]


def commit() -> str:
    """The commit of this checkout, marked where its code or a suite is changed; "not known" outside of one."""
    head, changed = _git("rev-parse", "--short=7", "HEAD"), _git("status", "--porcelain", "--", ":/*.py", ":/*.toml")
    if head is None or changed is None:
        return UNKNOWN
    return f"{head}+changes" if changed else head


def _git(*words: str) -> str | None:
    """What git prints about this checkout; None where it cannot."""
    try:
        done = subprocess.run(  # noqa: S603  the words are this file's
            ["git", *words],  # noqa: S607
            cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() if not done.returncode else None


def labels_of(line: Line, names: str) -> str:
    """The values of fields, ``a + b``, as a row or column is named; empty where the line has none of them."""
    return ", ".join(_words(line.get(name)) for name in names.split(" + ")) if names else ""


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value is the wanted one, or one of them; "none" stands for null and for an empty list."""
    if isinstance(wanted, list):
        return any(_fits(value, each) for each in wanted)
    return bool(value == wanted or (wanted == "none" and value in (None, [])))


def _words(value: Any) -> str:
    if isinstance(value, list):
        return " ".join(map(_words, value)) or "none"
    return "none" if value is None else str(value)


def selected(lines: Sequence[Line], selection: Selection, metric: str) -> list[Line]:
    """The lines of a selection that have the metric."""
    return [line for line in lines if line.fits(selection) and line.numbers(metric)]
