"""Curves of runs on one picture: training loss, learning rate, test top-1 and test loss against epochs."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from labelstore.command.console import Console
from labelstore.durable.newfile import new_file
from labelstore.errors import InputError, reason
from trainer.config import PlotConfig

PANELS = {"loss": "training loss", "lr": "learning rate", "test_top1": "test top-1, %", "test_loss": "test loss"}


def plot(config: PlotConfig, console: Console) -> dict[str, int]:
    """Draw the runs; the number of epochs that each has."""
    logs = {str(run): read_log(run) for run in config.runs}
    figure = _figure()
    for axes, (key, label) in zip(figure.subplots(2, 2).flat, PANELS.items(), strict=True):
        for run, entries in logs.items():
            points = [(entry["epoch"] + 1, entry[key]) for entry in entries if _drawn(entry.get(key))]
            if points:
                axes.plot(*zip(*points, strict=True), label=run, marker="." if len(points) < 50 else None)
        axes.set(xlabel="epoch", ylabel=label)
        axes.grid(alpha=0.3)
    handles, labels = figure.axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2)
    with new_file(config.out) as file:
        figure.savefig(file, dpi=120, format=config.out.suffix[1:])
    epochs = {run: len(entries) for run, entries in logs.items()}
    runs = ", ".join(f"{run} ({count} epochs)" for run, count in epochs.items())
    console.summary({"picture": str(config.out), "epochs": dict(epochs)}, f"{config.out}: {runs}")
    return epochs


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's log, an epoch each.

    Raises:
        InputError: when it is not the folder of a run that has finished an epoch.
    """
    path = run / "log.jsonl"
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)
        raise InputError(f"{path}: expected the log of a run ({why}); give folders that `train --run` made") from error
    if not entries or not all(isinstance(entry, dict) and "epoch" in entry for entry in entries):
        raise InputError(f"{path}: expected a line an epoch, found none; the run has finished no epoch yet")
    return entries


def _drawn(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _figure() -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise InputError(
            "plot: matplotlib is not installed; install the extra: pip install 'giftwrap[plot]'"
        ) from error
    return Figure(figsize=(12, 8), layout="constrained")
