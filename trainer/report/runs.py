"""Runs on a page: those of the same test images together, in a table and in curves; seeds as mean and band."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from labelstore.command.console import byte_count
from labelstore.command.names import printable
from trainer.compare import Row, shown, table
from trainer.plot import PANELS, curve, loss_of, name_of
from trainer.report.page import Card, Cell, Column, Curve, Facts, Folded, Item, LinePlot, Plots, Section, Table, Text
from trainer.runs import RunGroup, RunRecord, grouped, read_run

MOST_POINTS = 150  # of a curve
PLAIN = ("student", "epochs", "batch-size", "optimizer", "lr", "schedule", "loss.name", "size", "seed")
NO_TEST = "no test images"


def runs_section(folders: Sequence[Path]) -> Section:
    """All runs: a card for each set of test images."""
    records = [read_run(folder) for folder in folders]
    by_test: dict[str | None, list[RunRecord]] = {}
    for record in records:
        by_test.setdefault(record.test_digest, []).append(record)
    text = ""
    if len(by_test) > 1:
        text = (
            f"These runs were tested on {len(by_test)} different sets of images, or on none. They are grouped apart: "
            f"their accuracies cannot be compared."
        )
    return Section("Runs", text, [runs_card(runs) for runs in by_test.values()])


def runs_card(records: Sequence[RunRecord]) -> Card:
    """Runs that were tested on the same images."""
    rows = table(records)
    groups = grouped(records)
    items: list[Item] = []
    if waiting := [run for row in rows for run in row.unfinished]:
        items.append(Text(f"Not finished, and not averaged: {'; '.join(map(printable, waiting))}.", "warning"))
    items.append(table_of(rows))
    if plots := curves(groups):
        items += [
            Plots(plots),
            Text("Several runs of one group: their mean, and a band from the least to the largest."),
        ]
    items.append(Folded("What all of them have in common", [Facts(common(records))]))
    items.append(Folded("Folders", [folders_of(records)]))
    names = {str(record.made_with.get("test_images") or NO_TEST) for record in records}
    tested = printable(", ".join(sorted(names)))
    runs = "1 run" if len(records) == 1 else f"{len(records):,} runs"
    split = "1 group" if len(rows) == 1 else f"{len(rows):,} groups"
    title = f"Tested on {tested}" if records[0].test_digest else "Tested on no images"
    subtitle = f"{runs} in {split}; runs of one group differ in seed alone."
    if records[0].test_digest:
        subtitle += f" Test images: {records[0].made_of['test']['images']:,}."
    return Card(title, "runs", subtitle, items)


def table_of(rows: Sequence[Row]) -> Table:
    """The table of `giftwrap compare`, sortable."""
    names = list(rows[0].differences)
    named = len({row.name for row in rows}) > 1 or not names
    columns = [
        *([Column("runs in")] if named else []),
        *(Column(name, all(_is_number(row.differences[name]) for row in rows)) for name in names),
        Column("runs", True, "finished runs that are averaged"),
        Column("last top-1, %", True, "after the last epoch: mean ± standard deviation (number of runs)"),
        Column("best top-1, %", True, "at the best evaluation of each run, chosen on these test images"),
        Column("steps/s", True, "training steps a second, without evaluations"),
        Column("label bytes", True, "of the store, with the columns and side arrays that its labels need"),
    ]
    best = max((row.last.mean for row in rows if row.last.mean is not None), default=None)
    lines = []
    for row in rows:
        last = Cell.mean(row.last.mean, row.last.std, row.last.count)
        if len(rows) > 1 and row.last.mean is not None and row.last.mean == best:
            last = Cell(last.text, last.value, "good", "the highest of this table")
        lines.append(
            [
                *([Cell(printable(row.name))] if named else []),
                *(_difference(row.differences[name]) for name in names),
                Cell(f"{row.runs}" + (f" (+{len(row.unfinished)} unfinished)" if row.unfinished else ""), row.runs),
                last,
                Cell.mean(row.best.mean, row.best.std, row.best.count),
                Cell.number(row.steps_per_second.mean, 1),
                Cell("-") if row.label_bytes is None else Cell(byte_count(row.label_bytes), row.label_bytes),
            ]
        )
    return Table(columns, lines)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _difference(value: Any) -> Cell:
    """A value in which groups differ."""
    return Cell(printable(shown(value)), float(value) if _is_number(value) else None)


def curves(groups: Sequence[RunGroup]) -> list[LinePlot]:
    """Training loss, one plot for each definition of it, then rate, test top-1 and test loss."""
    losses = list(dict.fromkeys(loss_of(group.runs[0]) for group in groups))
    begun = [(number, group) for number, group in enumerate(groups) if all(run.entries for run in group.runs)]
    found = [
        LinePlot(
            "Training loss" + (f": {loss}" if loss else ""),
            "epoch",
            "loss",
            [_curve(group, groups, "loss", number) for number, group in begun if loss_of(group.runs[0]) == loss],
        )
        for loss in losses
    ]
    found += [
        LinePlot(
            label[:1].upper() + label[1:].split(",")[0],
            "epoch",
            label,
            [_curve(group, groups, key, number) for number, group in begun],
        )
        for key, label in PANELS.items()
    ]
    order = {"test top-1, %": 0, "loss": 1, "test loss": 2, "learning rate": 3}
    drawn = [plot for plot in found if any(each.points for each in plot.curves)]
    return sorted(drawn, key=lambda plot: order[plot.y_label])


def _curve(group: RunGroup, groups: Sequence[RunGroup], key: str, style: int) -> Curve:
    """The mean of a group's runs, and its band where there are several."""
    points = list(curve(group, key).items())
    step = -(-len(points) // MOST_POINTS)
    points = [point for place, point in enumerate(points) if place % max(step, 1) == 0 or place == len(points) - 1]
    several = len(group.runs) > 1
    return Curve(
        printable(name_of(group, groups)),
        [(epoch, fmean(values)) for epoch, values in points],
        [min(values) for _, values in points] if several else (),
        [max(values) for _, values in points] if several else (),
        style,
    )


def common(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """The flags that all runs have in common, with the versions."""
    settings = [
        {**record.settings(), "versions": _versions(record), "store": record.made_with.get("store")}
        for record in records
    ]
    same = {
        name: value
        for name, value in settings[0].items()
        if value not in (None, [], {}, "") and all(name in each and each[name] == value for each in settings)
    }
    plain = {name: value for name, value in same.items() if "." not in name or name == "loss.name"}
    ordered = {name: plain[name] for name in (*PLAIN, *plain) if name in plain}
    return [(name, printable(shown(value))) for name, value in ordered.items()]


def _versions(record: RunRecord) -> str:
    """Versions of the software that trained a run."""
    own: Mapping[str, Any] = {**record.made_with.get("versions", {}), **record.made_of.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in own.items())


def folders_of(records: Iterable[RunRecord]) -> Table:
    """Each run with its own numbers."""
    columns = [
        Column("folder"),
        Column("seed", True),
        Column("epochs", True),
        Column("last top-1, %", True),
        Column("best top-1, %", True),
    ]
    rows = [
        [
            Cell(printable(str(record.folder))),
            _difference(record.flags.get("seed")),
            Cell(f"{record.epochs_done} of {record.epochs}", record.epochs_done, "" if record.finished else "bad"),
            Cell.number(record.top1[-1] if record.top1 else None),
            Cell.number(max(record.top1, default=None)),
        ]
        for record in records
    ]
    return Table(columns, rows)
