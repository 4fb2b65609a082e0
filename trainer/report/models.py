"""The cards of projectors and generators: their description, size, training and samples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from labelstore.command.console import byte_count, quantity
from labelstore.command.names import printable
from labelstore.operations.generator import generator_info, generator_lines
from labelstore.operations.projector import projector_info, projector_lines
from pipeline.teacher.column_names import class_title
from trainer.file_names import CONFIG, LOG
from trainer.report.page import Card, Curve, Facts, Item, LinePlot, Plots, Shares, Sheet, Text, Tile
from trainer.runs import RunRecord, read_run

NUMBERS = {
    "loss": "Training loss",
    "test_top1": "Test top-1, %",
    "test_top5": "Test top-5, %",
    "test_loss": "Test loss",
}
FEW_EPOCHS = 2


def projector_card(folder: Path) -> Card:
    """The card of a projector: what `giftwrap info` prints of it, and its training."""
    values: Mapping[str, Any] = projector_info(folder)
    weights = str(values["encoder"]["weights"])
    lines = [line.replace(weights, Path(weights).name) for line in projector_lines(values)]
    parts = [(name, float(size), byte_count(size)) for name, size in values["bytes"].items()]
    encoder = values["encoder"]["name"]
    items: list[Item] = [facts(lines), Shares("Bytes of the projector", parts), *training(folder)]
    columns = quantity(values["columns"], "column")
    subtitle = f"Makes labels of {columns} with {printable(str(encoder))}, in place of stored ones."
    return Card(printable(str(folder)), "projector", subtitle, items)


def generator_card(folder: Path, tiles: int) -> Card:
    """The card of a generator: what `giftwrap info` prints of it, its training, and its last sheet of samples."""
    values: Mapping[str, Any] = generator_info(folder)
    items: list[Item] = [facts(generator_lines(values)), *training(folder)]
    sheets = sorted(path for path in folder.glob("samples-*.png") if path.stem.partition("-")[2].isdecimal())
    drawn = _pixels(sheets[-1]) if sheets else None
    if drawn is not None:
        items.append(
            samples(sheets[-1], drawn, [class_title(name) for name in values["classes"]], values["size"], tiles)
        )
    else:
        why = f"{printable(sheets[-1].name)} cannot be read" if sheets else "none in its folder"
        items.append(Text(f"No sheet of samples: {why}.", "note"))
    subtitle = f"Draws images of {values['size']} px of {quantity(len(values['classes']), 'class')}."
    return Card(printable(str(folder)), "generator", subtitle, items)


def facts(lines: Sequence[str]) -> Facts:
    """Lines of `giftwrap info` as names and texts."""
    return Facts([(line[:16].strip(), printable(line[17:])) for line in lines])


def training(folder: Path) -> list[Item]:
    """How a model was trained, with curves, if its folder has the record of a run."""
    if not ((folder / CONFIG).is_file() and (folder / LOG).is_file()):
        return [Text("Its folder has no record of its training.", "note")]
    run = read_run(folder)
    items: list[Item] = [Text(progress(run))]
    plots = [_plot(run, key, title) for key, title in NUMBERS.items()]
    if drawn := [plot for plot in plots if plot.curves and len(plot.curves[0].points) > FEW_EPOCHS]:
        items.append(Plots(drawn))
    return items


def progress(run: RunRecord) -> str:
    """The finished epochs of a run, and its last measurements, in a sentence."""
    last = run.entries[-1] if run.entries else {}
    reached = ", ".join(
        f"{title[:1].lower()}{title[1:].removesuffix(', %')} {last[key]:.4g}{' %' * title.endswith('%')}"
        for key, title in NUMBERS.items()
        if isinstance(last.get(key), int | float)
    )
    steps = quantity(last.get("step", 0), "step")
    return f"Trained for {run.epochs_done:,} of {quantity(run.epochs, 'epoch')}, {steps}: {reached}."


def _plot(run: RunRecord, key: str, title: str) -> LinePlot:
    """The value ``key`` of a run's log over its epochs."""
    points = [
        (float(entry["epoch"] + 1), float(entry[key]))
        for entry in run.entries
        if isinstance(entry.get(key), int | float)
    ]
    return LinePlot(title.removesuffix(", %"), "epoch", title[:1].lower() + title[1:], [Curve("", points)])


def _pixels(path: Path) -> npt.NDArray[np.uint8] | None:
    """The pixels of a picture, uint8 ``[H, W, 3]``; None if it cannot be read."""
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def samples(path: Path, pixels: npt.NDArray[np.uint8], classes: list[str], size: int, tiles: int) -> Sheet:
    """The samples of a sheet that a training wrote to ``path``, one of each class, as tiles."""
    count = min(len(classes), 100)
    columns = min(count, max(round(count**0.5), 10))
    cell = pixels.shape[1] // columns
    enlarged = max(cell // (size + 1), 1)
    shown = []
    for number in range(min(count, tiles)):
        top, left = number // columns * cell, number % columns * cell
        tile = pixels[top : top + size * enlarged : enlarged, left : left + size * enlarged : enlarged]
        if tile.size:  # a picture of another size has fewer
            shown.append(Tile(np.ascontiguousarray(tile), classes[number]))
    return Sheet(
        shown,
        f"Samples after {int(path.stem.partition('-')[2]):,} steps: one of each class, of the same noise each time.",
    )
