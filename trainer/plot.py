"""Plot curves of runs in one picture: training loss, learning rate, test top-1 and test loss over epochs.

Runs that differ only in their seed are one line, their mean, in a band from minimum to maximum.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from labelstore.command.console import Console, quantity
from labelstore.durable.newfile import new_file
from labelstore.errors import InputError
from trainer.compare import shown
from trainer.runs import RunGroup, RunRecord, find_runs, grouped, read_log, read_run
from trainer.runs_config import PlotConfig

# Comparable between all runs; each definition of the training loss gets a separate panel.
PANELS = {"lr": "learning rate", "test_top1": "test top-1, %", "test_loss": "test loss"}
# matplotlib's ten colours; further ones are spread over the hues by the golden ratio, and never repeat.
COLOURS = 10
GOLDEN = 0.618033988749895
DASHES = ("-", "--", ":", "-.")


def plot(config: PlotConfig, console: Console) -> dict[str, int]:
    """Draw the runs; returns the number of epochs of each."""
    runs = begun(find_runs(config.runs, logs=True), console)
    groups = grouped(runs)
    losses = list(dict.fromkeys(map(loss_of, runs)))
    panels: list[tuple[str, str, str | None]] = [("loss", "training loss", loss) for loss in losses]
    panels += [(key, label, None) for key, label in PANELS.items()]
    rows = -(-len(panels) // 2)
    figure = _figure(rows)
    every = list(figure.subplots(rows, 2).flat)
    for axes, (key, label, loss) in zip(every, panels, strict=False):
        for number, group in enumerate(groups):
            if key != "loss" or loss_of(group.runs[0]) == loss:
                draw(axes, curve(group, key), style(number))
        axes.set(xlabel="epoch", ylabel=label, title=loss or "")
        axes.grid(alpha=0.3)
    for axes in every[len(panels) :]:
        axes.remove()
    lines = [_line(figure, style(number)) for number in range(len(groups))]
    figure.legend(
        lines,
        [name_of(group, groups) for group in groups],
        title="several runs: mean, with a band from minimum to maximum",
        loc="outside lower center",
    )
    with new_file(config.out) as file:
        figure.savefig(file, dpi=120, format=config.out.suffix[1:])
    epochs = {str(run.folder): len(run.entries) for run in runs}
    listed = ", ".join(f"{run} ({quantity(count, 'epoch')})" for run, count in epochs.items())
    console.summary({"picture": str(config.out), "epochs": dict(epochs)}, f"{config.out}: {listed}")
    return epochs


def begun(folders: Sequence[Path], console: Console) -> list[RunRecord]:
    """The runs that have finished an epoch; a warning lists the others.

    Raises:
        InputError: when none has.
    """
    runs = [read_run(folder) for folder in folders]
    found = [run for run in runs if run.entries]
    if not found:
        read_log(folders[0])
    console.report(warnings=[f"{run.folder}: has finished no epoch yet" for run in runs if not run.entries])
    return found


def loss_of(run: RunRecord) -> str:
    """The definition of a run's training loss: its name and numbers; empty if unknown."""
    loss = dict(run.made_of.get("loss") or {})
    name = str(loss.pop("name", ""))
    return ", ".join([name, *(f"{key} {shown(value)}" for key, value in loss.items())])


def curve(group: RunGroup, key: str) -> dict[int, list[float]]:
    """The values of all runs of a group at each epoch, counted from 1, that all of them have."""
    values = [
        {int(entry["epoch"]) + 1: float(entry[key]) for entry in run.entries if _drawn(entry.get(key))}
        for run in group.runs
    ]
    common = set.intersection(*map(set, values))
    return {epoch: [each[epoch] for each in values] for epoch in sorted(common)}


def draw(axes: Any, points: Mapping[int, Sequence[float]], drawn: Mapping[str, Any]) -> None:
    """Draw the mean as a line, and the range of several runs as a band."""
    if not points:
        return
    marker = "." if len(points) < 50 else None
    axes.plot(list(points), [fmean(values) for values in points.values()], marker=marker, **drawn)
    if len(next(iter(points.values()))) > 1:
        least, most = [min(values) for values in points.values()], [max(values) for values in points.values()]
        axes.fill_between(list(points), least, most, color=drawn["color"], alpha=0.2, linewidth=0)


def name_of(group: RunGroup, groups: Sequence[RunGroup]) -> str:
    """The legend entry of a group: its options that differ, its folder if folders differ, and its number of runs."""
    named = len({each.name for each in groups}) > 1 or len(groups) == 1
    options = [f"{name} {shown(value)}" for name, value in group.differences.items() if value not in (None, [])]
    name = ", ".join([*([group.name] if named else []), *options])
    return name if len(group.runs) == 1 else f"{name}: {quantity(len(group.runs), 'run')}"


def style(number: int) -> dict[str, Any]:
    """Colour and dashes of a group, unique to it."""
    colour: Any = f"C{number}"
    if number >= COLOURS:
        colour = colorsys.hsv_to_rgb(number * GOLDEN % 1, 0.9, 0.7)
    return {"color": colour, "linestyle": DASHES[number // COLOURS % len(DASHES)]}


def _drawn(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _line(figure: Any, drawn: Mapping[str, Any]) -> Any:
    """A line for the legend."""
    from matplotlib.lines import Line2D

    return Line2D([], [], figure=figure, **drawn)


def _figure(rows: int) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plot: matplotlib is not installed; install the extra: pip install 'giftwrap[plot]'"
        ) from error
    return Figure(figsize=(12, 4 * rows), layout="constrained")
