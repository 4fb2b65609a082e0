"""Runs on a page: those of the same test images together, in a table and in curves; seeds as mean and band."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from labelstore.command.console import byte_count, quantity
from labelstore.command.names import printable
from trainer.compare import Row, Statistic, shown, table
from trainer.plot import PANELS, curve, loss_of
from trainer.report.page import (
    Bar,
    BarPlot,
    Card,
    Cell,
    Column,
    Curve,
    Facts,
    Folded,
    Item,
    LinePlot,
    Plots,
    Section,
    Table,
    Text,
)
from trainer.runs import RunGroup, RunRecord, grouped, read_run

MOST_POINTS = 150  # of a curve
PLAIN = ("student", "epochs", "batch-size", "optimizer", "lr", "schedule", "loss", "size", "store", "images")
PATHS = ("images", "test-images")  # differences that are paths
MANIFEST = "manifest"
DIGEST = 12  # characters of a digest


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
    rows, groups = table(records), grouped(records)
    home = os.path.commonpath([record.folder.parent for record in records]) if _of_one_kind(records) else ""
    names = names_of(rows, home)
    items: list[Item] = []
    if waiting := [run for row in rows for run in row.unfinished]:
        items.append(Text(f"Not finished, and not averaged: {'; '.join(map(printable, waiting))}.", "warning"))
    items.append(table_of(rows, names))
    if len(rows) > 1 and (bars := results(rows, names)):
        items.append(bars)
    if plots := curves(groups, names):
        items.append(Plots(plots))
        if any(len(group.runs) > 1 for group in groups):
            items.append(Text("Several runs of one group: their mean, and a band from the least to the largest."))
    items.append(Folded("What all of them have in common", [Facts(common(records))]))
    items.append(Folded("Each run", [folders_of(records, home)]))
    return Card(title_of(records), "runs", subtitle_of(records, len(rows), home), items)


def title_of(records: Sequence[RunRecord]) -> str:
    """The test images of some runs, by the last parts of their paths: others hardly have the same."""
    if not records[0].test_digest:
        return "Not tested"
    places = dict.fromkeys(str(record.made_with.get("test_images") or "unnamed images") for record in records)
    return f"Tested on {printable(', '.join(dict.fromkeys('/'.join(Path(place).parts[-2:]) for place in places)))}"


def subtitle_of(records: Sequence[RunRecord], groups: int, home: str) -> str:
    """How many runs there are, of how many groups, where they are, and on how many images they were tested."""
    runs = quantity(len(records), "run")
    text = f"{runs} in {quantity(groups, 'group')}; runs of one group differ in seed alone."
    if test := records[0].made_of.get("test"):
        text += f" Tested on {quantity(test['images'], 'image')}, digest {str(test['digest'])[:DIGEST]}."
    return text + (f" Their folders are in {home}." if home else "")


def names_of(rows: Sequence[Row], home: str) -> list[str]:
    """The name of each group: its folder below the one that all are in; its options, where folders are the same."""
    folders = [os.path.relpath(row.name, home) if home else row.name for row in rows]
    if len({*folders}) == len(rows) and "." not in folders:
        return [printable(folder) for folder in folders]
    options = without_their_folder(rows)
    texts = [
        ", ".join(f"{key} {shown(value)}" for key, value in each.items() if value not in (None, [])) for each in options
    ]
    whole = Path(home).name or "all runs"
    return [
        printable(text or (whole if folder == "." else folder)) for text, folder in zip(texts, folders, strict=True)
    ]


def without_their_folder(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """The differences of all rows: paths without the folder that they share, and no digest where paths tell as much."""
    found: list[dict[str, Any]] = [dict(row.differences) for row in rows]
    for name in PATHS:
        places = [str(each[name]) for each in found if each.get(name)]
        if not places:
            continue
        alike = len({Path(place).is_absolute() for place in places}) == 1
        home = os.path.commonpath([Path(place).parent for place in places]) if alike else ""
        for each in found:
            each.pop(f"crops.{MANIFEST}", None)
            each.pop(f"store.{MANIFEST}", None)
            if each.get(name) and home:
                each[name] = os.path.relpath(each[name], home)
    return found


def _of_one_kind(records: Sequence[RunRecord]) -> bool:
    """Whether the folders of all runs are absolute, or all are not."""
    return len({record.folder.is_absolute() for record in records}) == 1


def table_of(rows: Sequence[Row], titles: Sequence[str]) -> Table:
    """The table of `giftwrap compare`, sortable; `titles` are the names of its groups."""
    differences = without_their_folder(rows)
    names = list(differences[0])
    named = len({row.name for row in rows}) > 1 or not names
    settings = [Column(name, all(_is_number(each[name]) for each in differences)) for name in names]
    results = [
        Column("last top-1, %", True, "after the last epoch: mean ± standard deviation over the runs"),
        Column("best top-1, %", True, "at the best evaluation of each run, chosen on these test images"),
        Column("runs", True, "finished runs that are averaged"),
    ]
    rest = [
        Column("steps/s", True, "training steps a second, without evaluations"),
        Column("label bytes", True, "of the store, with the columns and side arrays that its labels need"),
    ]
    best = max((row.last.mean for row in rows if row.last.mean is not None), default=None)
    lines = []
    for row, title, each in zip(rows, titles, differences, strict=True):
        last = measured(row.last, row.runs)
        if len(rows) > 1 and row.last.mean is not None and row.last.mean == best:
            last = Cell(last.text, last.value, "good", "the highest of this table")
        count = f"{row.runs}" + (f" (+{len(row.unfinished)} unfinished)" if row.unfinished else "")
        found = [last, measured(row.best, row.runs), Cell(count, row.runs)]
        options = [_difference(each[name]) for name in names]
        size = Cell("-") if row.label_bytes is None else Cell(byte_count(row.label_bytes), row.label_bytes)
        ours = [Cell(title), *found, *options] if named else [*options, *found]
        lines.append([*ours, Cell.number(row.steps_per_second.mean, 1), size])
    first = [Column("runs in"), *results, *settings] if named else [*settings, *results]
    return Table([*first, *rest], lines)


def measured(found: Statistic, runs: int) -> Cell:
    """A mean with its deviation, and with its count where that is not the number of runs."""
    if found.count == runs and found.mean is not None:
        return Cell(found.text(), found.mean)
    return Cell.mean(found.mean, found.std, found.count)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _difference(value: Any) -> Cell:
    """A value in which groups differ."""
    return Cell(printable(shown(value)), float(value) if _is_number(value) else None)


def results(rows: Sequence[Row], names: Sequence[str]) -> BarPlot | None:
    """Test top-1 after the last epoch of each group, with its standard deviation."""
    bars = []
    for row, name in zip(rows, names, strict=True):
        mean, std = row.last.mean, row.last.std
        if mean is not None:
            ends = (None, None) if std is None else (max(mean - std, 0.0), mean + std)
            bars.append(Bar(name, mean, row.last.text(), *ends))
    return BarPlot("Test top-1 after the last epoch, %: mean and standard deviation", bars) if len(bars) > 1 else None


def curves(groups: Sequence[RunGroup], names: Sequence[str]) -> list[LinePlot]:
    """Training loss, one plot for each definition of it, then rate, test top-1 and test loss."""
    losses = list(dict.fromkeys(loss_of(group.runs[0]) for group in groups))
    begun = [(number, group) for number, group in enumerate(groups) if all(run.entries for run in group.runs)]
    found = [
        LinePlot(
            "Training loss" + (f": {loss}" if loss else ""),
            "epoch",
            "loss",
            [_curve(group, names[number], "loss", number) for number, group in begun if loss_of(group.runs[0]) == loss],
        )
        for loss in losses
    ]
    found += [
        LinePlot(
            label[:1].upper() + label[1:].split(",")[0],
            "epoch",
            label,
            [_curve(group, names[number], key, number) for number, group in begun],
        )
        for key, label in PANELS.items()
    ]
    order = {"test top-1, %": 0, "loss": 1, "test loss": 2, "learning rate": 3}
    drawn = [plot for plot in found if any(len(each.points) > 1 for each in plot.curves)]
    return sorted(drawn, key=lambda plot: order[plot.y_label])


def _curve(group: RunGroup, name: str, key: str, style: int) -> Curve:
    """The mean of a group's runs, and its band where there are several."""
    points = list(curve(group, key).items())
    step = -(-len(points) // MOST_POINTS)
    points = [point for place, point in enumerate(points) if place % max(step, 1) == 0 or place == len(points) - 1]
    several = len(group.runs) > 1
    return Curve(
        name,
        [(epoch, fmean(values)) for epoch, values in points],
        [min(values) for _, values in points] if several else (),
        [max(values) for _, values in points] if several else (),
        style,
    )


def common(records: Sequence[RunRecord]) -> list[tuple[str, str]]:
    """The flags that all runs have in common, with the versions."""
    settings = [{**record.settings(), "versions": _versions(record), **_inputs(record)} for record in records]
    same = {
        name: value
        for name, value in settings[0].items()
        if value not in (None, [], {}, "") and all(name in each and each[name] == value for each in settings)
    }
    plain = {name: value for name, value in same.items() if "." not in name}
    ordered = {name: plain[name] for name in (*PLAIN, *plain) if name in plain}
    return [(name, printable(shown(value))) for name, value in ordered.items()]


def _inputs(record: RunRecord) -> dict[str, Any]:
    """The stores and the images of a run, by the names of their folders."""
    names = {
        "store": ", ".join(Path(store).name for store in record.stores),
        "images": Path(str(record.made_with.get("images") or "")).name,
    }
    return {key: name for key, name in names.items() if name}


def _versions(record: RunRecord) -> str:
    """Versions of the software that trained a run."""
    own: Mapping[str, Any] = {**record.made_with.get("versions", {}), **record.made_of.get("versions", {})}
    return ", ".join(f"{name} {version}" for name, version in own.items())


def folders_of(records: Iterable[RunRecord], home: str) -> Table:
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
            Cell(printable(os.path.relpath(record.folder, home) if home else str(record.folder))),
            _difference(record.flags.get("seed")),
            Cell(f"{record.epochs_done} of {record.epochs}", record.epochs_done, "" if record.finished else "bad"),
            Cell.number(record.top1[-1] if record.top1 else None),
            Cell.number(max(record.top1, default=None)),
        ]
        for record in records
    ]
    return Table(columns, rows)
