"""`compare`: a table of runs. Runs that differ only in their seed are one row: mean, standard deviation, count."""

from __future__ import annotations

import csv
import io
import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from labelstore.command.console import Console, byte_count
from labelstore.durable.newfile import write_new
from labelstore.errors import GiftwrapError, MismatchError
from labelstore.spec import Json
from trainer.runs import RunGroup, RunRecord, find_runs, grouped, read_run
from trainer.runs_config import CompareConfig

DIGEST = re.compile(r"[0-9a-f]{32,}")


@dataclass(frozen=True, slots=True)
class Statistic:
    """Mean, standard deviation and count of some numbers.

    Attributes:
        mean: None if there are no numbers.
        std: with n - 1 in the denominator; None for fewer than two numbers.
        count: how many.
    """

    mean: float | None
    std: float | None
    count: int

    @classmethod
    def of(cls, values: Iterable[float | None]) -> Statistic:
        """The statistic of the values that are not None."""
        found = [value for value in values if value is not None]
        mean = statistics.fmean(found) if found else None
        return cls(mean, statistics.stdev(found) if len(found) > 1 else None, len(found))

    def text(self, digits: int = 2) -> str:
        """The statistic as text, such as 61.20 ± 0.31; empty if there are no numbers."""
        if self.mean is None:
            return "-"
        return f"{self.mean:.{digits}f}" + (f" ± {self.std:.{digits}f}" if self.std is not None else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of the table: runs that differ only in their seed.

    Attributes:
        name: folder of the run, or the common folder of its runs.
        differences: options that differ between rows, by name.
        runs: number of runs that are averaged.
        unfinished: folders of unfinished runs, with the epochs that they have trained.
        last: test top-1 in percent after the last epoch.
        best: the same at the best evaluation of each run.
        steps_per_second: training steps a second, without evaluations.
        label_bytes: size of the labels of its stores; None if it has none, or one no longer exists.
        folders: the folders of all its runs.
    """

    name: str
    differences: Mapping[str, Any]
    runs: int
    unfinished: Sequence[str]
    last: Statistic
    best: Statistic
    steps_per_second: Statistic
    label_bytes: int | None
    folders: Sequence[str]


def compare(config: CompareConfig, console: Console) -> list[Row]:
    """Print and write the table of runs; returns its rows.

    Raises:
        InputError: when a path has no run.
        MismatchError: when runs were tested on different images, without ``anyway``.
    """
    records = [read_run(folder) for folder in find_runs(config.runs)]
    if not config.anyway:
        require_same_test(records)
    rows = table(records, unfinished=config.unfinished)
    if config.csv:
        write_new(config.csv, as_csv(rows).encode())
    if config.markdown:
        write_new(config.markdown, as_markdown(rows).encode())
    console.summary({"groups": [as_json(row) for row in rows]}, as_text(rows))
    return rows


def require_same_test(records: Sequence[RunRecord]) -> None:
    """Refuse runs that were tested on different images.

    Raises:
        MismatchError: for the first two that differ.
    """
    tested = [record for record in records if record.test_digest]
    for record in tested[1:]:
        if record.test_digest != tested[0].test_digest:
            first, other = (f"{each.folder} ({each.made_with.get('test_images')})" for each in (tested[0], record))
            raise MismatchError(
                f"test images: expected the same for all runs, found others for {first} than for {other}; compare on "
                f"the same images, or all of them by --anyway"
            )


def table(records: Sequence[RunRecord], *, unfinished: bool = False) -> list[Row]:
    """Group runs into the rows of the table.

    Args:
        records: the runs.
        unfinished: whether unfinished runs are averaged too.
    """
    sizes: dict[str, int | None] = {}
    return [_row(group, sizes, unfinished=unfinished) for group in grouped(records)]


def _row(group: RunGroup, sizes: dict[str, int | None], *, unfinished: bool) -> Row:
    """The row of a group; ``sizes`` caches the bytes of each store."""
    used = [run for run in group.runs if run.finished or unfinished]
    stores = group.runs[0].stores
    for store in stores:
        if store not in sizes:
            sizes[store] = label_bytes(Path(store))
    known = [size for store in stores if (size := sizes[store]) is not None]
    return Row(
        name=group.name,
        differences=group.differences,
        runs=len(used),
        unfinished=[f"{run.folder}: epoch {run.epochs_done} of {run.epochs}" for run in group.runs if not run.finished],
        last=Statistic.of(run.top1[-1] if run.top1 else None for run in used),
        best=Statistic.of(max(run.top1, default=None) for run in used),
        steps_per_second=Statistic.of(run.steps_per_second for run in used),
        label_bytes=sum(known) if stores and len(known) == len(stores) else None,
        folders=[str(run.folder) for run in group.runs],
    )


def label_bytes(path: Path) -> int | None:
    """Bytes of a store's labels, with the crop columns and side arrays that they need; None if the store is missing."""
    from labelstore import LabelStore

    try:
        store = LabelStore.open(path, follow=True)
        return round(sum(store.bytes_per_label().values()) * store.identity.images * store.state.views_sealed)
    except (GiftwrapError, OSError):
        return None


def cells(rows: Sequence[Row]) -> list[list[str]]:
    """The cells of the table as text: a header, then one line for each row."""
    names = list(rows[0].differences) if rows else []
    named = len({row.name for row in rows}) > 1 or not names
    header = [
        *(["runs in"] if named else []),
        *names,
        "runs",
        "last top-1, %",
        "best top-1, %",
        "steps/s",
        "label bytes",
    ]
    lines = [header]
    for row in rows:
        count = f"{row.runs}" + (f" (+{len(row.folders) - row.runs} unfinished)" if len(row.folders) > row.runs else "")
        if row.unfinished and len(row.folders) == row.runs:
            count += f" ({len(row.unfinished)} unfinished)"
        size = "-" if row.label_bytes is None else byte_count(row.label_bytes)
        numbers = [row.last.text(), row.best.text(), row.steps_per_second.text(1), size]
        lines.append(
            [*([row.name] if named else []), *(shown(row.differences[name]) for name in names), count, *numbers]
        )
    return lines


def shown(value: Any) -> str:
    """A value as text: digests are shortened, and unset values are a dash."""
    if value is None or value == []:
        return "-"
    text = value if isinstance(value, str) else json.dumps(value)
    return text[:8] if DIGEST.fullmatch(text) else text


def as_text(rows: Sequence[Row]) -> str:
    """The table for a terminal, followed by a line for each unfinished run."""
    lines = cells(rows)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    text = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    return "\n".join([*text, *(f"unfinished: {run}" for row in rows for run in row.unfinished)])


def as_markdown(rows: Sequence[Row]) -> str:
    """The table in Markdown."""
    header, *lines = [[cell.replace("|", "\\|") for cell in line] for line in cells(rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in (header, ["---"] * len(header), *lines))


def as_csv(rows: Sequence[Row]) -> str:
    """The table as comma-separated values, with all digits."""
    out = io.StringIO()
    names = list(rows[0].differences) if rows else []
    measured = ("last", "best", "steps_per_second")
    writer = csv.writer(out, lineterminator="\n")
    parts = [f"{name}_{part}" for name in measured for part in ("mean", "std", "count")]
    writer.writerow(["runs_in", *names, "runs", "unfinished", *parts, "label_bytes"])
    for row in rows:
        values = [getattr(getattr(row, name), part) for name in measured for part in ("mean", "std", "count")]
        shown_values = [row.differences[name] for name in names]
        writer.writerow([row.name, *shown_values, row.runs, len(row.unfinished), *values, row.label_bytes])
    return out.getvalue()


def as_json(row: Row) -> dict[str, Json]:
    """A row as JSON."""
    plain: dict[str, Json] = json.loads(json.dumps(asdict(row)))
    return plain
