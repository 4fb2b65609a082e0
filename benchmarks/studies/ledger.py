"""The common parts of studies with many cells: flags, lines of finished cells, order, time and progress."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Generic, Protocol, TypeVar

from benchmarks.harness import machine
from labelstore.command.console import duration
from labelstore.durable.removing import move_folder
from labelstore.errors import InputError

RESULTS, RUNS = Path("benchmarks/results"), Path("runs")


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Do the cells of the study that have no line yet, the most important ones first, and print its tables."""

    dry_run: bool = False
    """Print all cells and how long they take, by the pace that is measured now, and do nothing."""
    minutes: float | None = None
    """Time for this call, when left out what the study is sized for: a cell that would take longer than what is left of
    it is not started."""
    results: Path | None = None
    """File with a line for each finished cell; tables and picture are written beside it."""
    folder: Path | None = None
    """Folder for sets, stores and runs; one of the study's name in runs/ when left out."""
    quick: bool = False
    """The same at toy size, on drawn images, in a separate folder and file."""

    def places(self, name: str) -> tuple[Path, Path]:
        """The folder of a study of that name, and the file of its results."""
        folder, file = self.folder or RUNS / f"{name}{'-quick' * self.quick}", f"{name}.jsonl"
        return folder, self.results or (folder if self.quick else RESULTS) / file


class Cell(Protocol):
    """One training, or another piece of work of a study, that is done once."""

    @property
    def name(self) -> str:
        """In words; unique in the study."""

    def to_json(self) -> dict[str, Any]:
        """Its fields, as a line of results has them."""


class Recorded:
    """A cell that is a dataclass, whose line has its fields."""

    def to_json(self) -> dict[str, Any]:
        """See `Cell`."""
        cell: Any = self
        values: dict[str, Any] = json.loads(json.dumps(asdict(cell)))
        return values


CellT = TypeVar("CellT", bound=Cell)
InT = TypeVar("InT", bound=Cell, contravariant=True)


class Ledger(Generic[InT]):
    """Lines of finished cells, which are not done again.

    Args:
        path: of the file; a last line that was cut off is passed over.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lines: dict[str, Mapping[str, Any]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read the lines that another process has added since."""
        content = self.path.read_bytes() if self.path.exists() else b""
        for text in content.splitlines():
            try:
                line = json.loads(text)
                if isinstance(line["cell"], dict):
                    self._lines[_key(line["cell"])] = line
            except (ValueError, LookupError, TypeError, RecursionError):
                continue

    def __contains__(self, cell: InT) -> bool:
        return _key(cell.to_json()) in self._lines

    @property
    def lines(self) -> list[Mapping[str, Any]]:
        """All lines, in the order in which their cells were finished."""
        return [*self._lines.values()]

    def of(self, cell: InT) -> Mapping[str, Any] | None:
        """The line of a cell."""
        return self._lines.get(_key(cell.to_json()))

    def add(self, cell: InT, values: Mapping[str, Any]) -> None:
        """Append a line, durably."""
        line = {"cell": cell.to_json(), **values}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.read_bytes() if self.path.exists() else b"\n"
        cut_off = not before.endswith(b"\n")
        with self.path.open("ab", buffering=0) as file:  # whole lines, also where two processes write
            file.write(("\n" * cut_off + json.dumps(line) + "\n").encode())
            os.fsync(file.fileno())
        self._lines[_key(line["cell"])] = line


def is_ledger(path: Path) -> bool:
    """Whether a file is empty or has lines of cells; those of others are not appended to."""
    if not path.is_file():
        return False
    content = path.read_bytes()
    return not content.strip() or any(line.startswith(b'{"cell": {') for line in content.splitlines())


def _key(cell: Mapping[str, Any]) -> str:
    return json.dumps(cell, sort_keys=True)


class Work(Protocol[CellT]):
    """A study."""

    def every(self) -> Sequence[CellT]:
        """All its cells, the most important ones first; they may depend on what has been found."""

    def to_do(self) -> Sequence[CellT]:
        """The cells without a line, in that order, after those whose files are needed again and are gone."""

    def seconds(self, cell: CellT, /) -> float:
        """How long a cell takes, about."""

    def run(self, cell: CellT, /) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line, with its ``seconds``."""

    def meaning(self, cell: CellT, /) -> str:
        """A finished piece of work as text."""

    def found(self, values: Mapping[str, Any], /) -> str:
        """The result of a cell as text."""


def run_cells(work: Work[CellT], ledger: Ledger[CellT], minutes: float) -> None:
    """Do cell after cell until all are finished or the time is used up.

    What is still to come is estimated by the study, corrected by how long finished cells of this call took.
    """
    start, expected, taken = time.monotonic(), 0.0, 0.0
    while left := work.to_do():
        cell, factor = left[0], taken / expected if expected else 1.0
        used, estimate = time.monotonic() - start, work.seconds(cell)
        if used + factor * estimate > 60 * minutes:
            needed = duration(factor * estimate)
            print(f"{len(left)} cells are left; the next one takes {needed}, more than --minutes leaves")
            return
        values = work.run(cell)
        ledger.refresh()  # a process beside this one adds lines too
        expected, taken = expected + estimate, taken + values["seconds"]
        if cell not in ledger:
            ledger.add(cell, {**values, "estimate": round(estimate, 1), "machine": machine()})
        after = sum(map(work.seconds, work.to_do())) * taken / expected
        print(
            f"{cell.name}: {work.found(values)} in {values['seconds']:.0f} s; about {duration(after)} left", flush=True
        )


def print_plan(work: Work[CellT], minutes: float) -> None:
    """Print every cell that is left, how long it takes, and where the time ends."""
    left, used, fitting = work.to_do(), 0.0, 0
    print(f"{len(work.every())} cells, {len(left)} of them to do:")
    for cell in left:
        seconds = work.seconds(cell)
        used += seconds
        fits = used <= 60 * minutes
        fitting += fits
        note = "" if fits else f"  beyond {minutes:g} minutes"
        print(f"  {cell.name:<42} {work.meaning(cell):<40} {seconds:6.0f} s {duration(used):>12}{note}")
    print(f"{duration(used)} for all; {fitting} of {len(left)} cells fit into {minutes:g} minutes")


def run_study(
    config: StudyConfig,
    work: Work[CellT],
    ledger: Ledger[CellT],
    minutes: float,
    report: Callable[[], str],
    run: Callable[[float], None] | None = None,
) -> None:
    """Do what is left of a study and print its tables, or with --dry-run print its plan.

    Args:
        config: the flags.
        work: the study.
        ledger: of its finished cells.
        minutes: that it is sized for.
        report: writes the tables; their text.
        run: does cells for that many minutes; one after the other when left out.
    """
    minutes = minutes if config.minutes is None else config.minutes
    if config.dry_run:
        print_plan(work, minutes)
        return
    if run:
        run(minutes)
    else:
        run_cells(work, ledger, minutes)
    print(f"\n{report()}")


def real_data(wanted: Iterable[str], contents: str, *, needed: bool) -> Path:
    """The folder of all data sets.

    Args:
        wanted: folders and files in it.
        contents: the same in words.
        needed: whether they have to be there.

    Raises:
        InputError: GIFTWRAP_DATA does not name such a folder.
    """
    data = Path(os.environ.get("GIFTWRAP_DATA", ""))
    if needed and not all((data / each).exists() for each in wanted):
        raise InputError(f"set GIFTWRAP_DATA to the folder with {contents}")
    return data


def drawn_data(data: Path, images: int, side: int) -> Path:
    """The folder itself, with ``train`` and ``test`` of so many drawn images, where they are absent."""
    from benchmarks.step import draw_set

    for split in ("train", "test"):
        if not (data / split).exists():  # drawn beside, so that a stopped call leaves no part of it
            data.mkdir(parents=True, exist_ok=True)
            with TemporaryDirectory(dir=data) as beside:
                move_folder(draw_set(Path(beside) / split, images, (side, side)), data / split)
    return data
