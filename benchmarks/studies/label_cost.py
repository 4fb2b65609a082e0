"""Test accuracy against bytes of labels: stored, pruned, by the teacher online, and by HeLlO's projector.

On the same images, teacher, student and epochs, at least two seeds each. *Wide*: 1,000 Imagenette photographs at 64
px, all 1,000 columns of MobileNetV2: float16, int8, transform, transform with fewer views that are played several
times, top-k with fewer views as LPQLD stores labels (a stand-in of ours: its probabilities are not renormalised, its
loss is soft cross-entropy, and a kept column counts 4 bytes), and the teacher online, counted by its weights.
*Narrow*: 50 CIFAR-10 images a class, the ten columns of ResNet-56: float16, int8, top-k, the teacher online, and
projectors of rank 2, 8 and 32 on MobileNetV2, trained on all real images for few epochs.

The narrow one cannot decide HeLlO's claim, for an encoder outweighs ten columns. So what its authors state is printed
beside the wide one, marked as theirs, with what projectors would take there. Bytes are counted without and with the
encoder. Seconds are those of the teacher or the projector over one training, on the machine that measures, which the
summary states; beside them stands how long a projector is trained, by its pace in a few epochs. Both are timed at the
end, while nothing else runs. ``above`` lists peers that are more accurate than each of our stores of at most as many
bytes.

It computes on a GPU where there is one, a few cells at the same time. At full size, some two hours on 2 cores without
one, it needs the images and weights that GIFTWRAP_DATA names. A finished cell is a line of
benchmarks/results/label-cost.jsonl, and is not done again: the same command continues.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from benchmarks.harness import Report, machine
from benchmarks.step import draw_set
from benchmarks.studies.jobs import run_together
from benchmarks.studies.label_cost_cells import PEERS, REAL, TOY, Cell, Frontier, Scale, Way, cells, needs
from benchmarks.studies.label_cost_run import GUESSED_S, Lab, projector_sizes
from benchmarks.studies.ledger import Ledger, run_cells
from benchmarks.studies.tables import markdown, spread
from labelstore.command.console import byte_count
from labelstore.durable.newfile import new_file, write_new
from labelstore.durable.removing import require_absent
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.networks import build_network, save_weights

FOLDER, LINES = Path("runs/label-cost"), Path("benchmarks/results/label-cost.jsonl")
GPU_JOBS = 6  # cells at the same time on a GPU, which networks this small leave idle
PICTURE, TABLE = "label-cost.png", "label-cost.md"
PUBLISHED: dict[str, Json] = {
    "by": "HeLlO's authors (arXiv 2408.08201), not measured here",
    "set": "ImageNet-1K, IPC 10, ResNet-18",
    "top1": 43.7,
    "parameters": 800_000,
    "bytes_as_they_count": 800_000,
    "bytes_float32": 3_200_000,
    "bytes_with_encoder_float16": 77_000_000 + 1_600_000,
}
"""0.003 % of 28.33 GB is a byte a parameter; the encoder, 38.3 million parameters of CLIP's RN50, is not counted."""


class Work:
    """The cells of the claim, and what is done for each.

    Args:
        lab: does them.
        ledger: lines of finished cells.
    """

    def __init__(self, lab: Lab, ledger: Ledger[Cell]) -> None:
        self._lab, self._ledger = lab, ledger

    def every(self) -> list[Cell]:
        """All cells."""
        return [*cells(self._lab.scale)]

    def to_do(self) -> list[Cell]:
        """The cells without a line, but no students beyond the number that suffices.

        Labels whose files are gone are made again by the students that need them.
        """
        done = Counter((cell.frontier, cell.way) for cell in self.every() if cell in self._ledger and cell.trains)
        found = []
        for cell in self.every():
            if cell in self._ledger:
                continue
            done[cell.frontier, cell.way] += cell.trains
            if not cell.trains or done[cell.frontier, cell.way] <= self._lab.scale.enough:
                found.append(cell)
        return found

    def seconds(self, cell: Cell) -> float:
        """A guess, which finished cells correct."""
        del cell
        return GUESSED_S

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it."""
        return self._lab.run(cell)

    def needs(self, cell: Cell) -> list[Cell]:
        """Cells that have to be finished before it begins."""
        return needs(cell)

    def alone(self, cell: Cell) -> bool:
        """Whether it measures time."""
        return cell.timed

    def meaning(self, cell: Cell) -> str:
        """What is done."""
        return "labels timed" if cell.timed else "labels made" if cell.seed is None else "student trained"

    def found(self, values: Mapping[str, Any]) -> str:
        """The result of a cell as text."""
        if "top1" in values:
            return f"top-1 {values['top1']:.2f} %"
        return f"{values['labelling']:.1f} s of labelling" if "labelling" in values else byte_count(values["bytes"])


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Do what is left of the cells, then the table and the picture.

    Args:
        report: its folder takes the table and the picture.
        quick: the same on drawn images, with few ways, in seconds.
    """
    drawable = importlib.util.find_spec("matplotlib") is not None
    if report.folder:
        require_absent(report.folder / PICTURE)
        require_absent(report.folder / TABLE)
    scale = TOY if quick else REAL
    with places(quick=quick) as (folder, data), contextlib.redirect_stdout(sys.stderr), torch.random.fork_rng():
        ledger: Ledger[Cell] = Ledger(folder / "cells.jsonl" if quick else LINES)
        on_gpu = torch.cuda.is_available()
        lab = Lab(scale, folder, data, "cuda" if on_gpu else "cpu", GPU_JOBS if on_gpu else 1)
        if on_gpu:
            run_together(Work(lab, ledger), ledger, float("inf"), GPU_JOBS)
        else:
            run_cells(Work(lab, ledger), ledger, float("inf"))
        there = [projector_sizes(scale.there, lab.weights(scale.there), rank, scale.columns) for rank in scale.ranks]
    points = {each.name: points_of(each, scale, ledger) for each in scale.frontiers}
    for name, found in points.items():
        for point in found:
            for metric, unit in (("bytes", "B"), ("bytes_with_encoder", "B"), ("seconds", "s"), ("top1", "%")):
                report.add(f"{name}, {point['way']}", metric, point["values" if metric == "top1" else metric], unit)
    text = table(points, there)
    print(text, file=sys.stderr)
    values: dict[str, Json] = {
        "points": [
            {"frontier": name, **{key: value for key, value in point.items() if key not in ("kind", "values")}}
            for name, found in points.items()
            for point in found
        ],
        "above": {name: above(found) for name, found in points.items()},
        "projectors_beside_the_wide_labels": [*there],
        "published": PUBLISHED,
    }
    if report.folder:
        write_new(report.folder / TABLE, text.encode())
        values["table"] = str(report.folder / TABLE)
        values["picture"] = draw(points, report.folder / PICTURE) if drawable else "matplotlib is missing"
    return {**values, "machine": machine()}


@contextlib.contextmanager
def places(*, quick: bool) -> Iterator[tuple[Path, Path]]:
    """The folder of what is made, and that of all data; both temporary for a toy.

    Raises:
        InputError: when GIFTWRAP_DATA does not name the data.
    """
    if quick:
        with tempfile.TemporaryDirectory(prefix="label-cost-") as temporary:
            data = Path(temporary) / "data"
            for split in ("train", "test"):
                draw_set(data / split, 40, (TOY.there.size, TOY.there.size))
            network = build_network(TOY.there.name, TOY.there.args, 10, size=TOY.there.size)
            save_weights(network.state_dict(), data / TOY.there.weights)
            yield Path(temporary), data
        return
    data = Path(os.environ.get("GIFTWRAP_DATA", ""))
    if not all((data / each.train).is_dir() for each in REAL.frontiers):
        raise InputError("set GIFTWRAP_DATA to the folder with cifar10/, imagenette/ and models/")
    yield FOLDER, data


def points_of(frontier: Frontier, scale: Scale, ledger: Ledger[Cell]) -> list[dict[str, Any]]:
    """A point for each way whose cells are all finished."""

    def line(way: Way, seed: int | None, *, timed: bool = False) -> Mapping[str, Any] | None:
        return ledger.of(Cell(frontier=frontier.name, way=way.name, seed=seed, timed=timed))

    found = []
    for way in frontier.ways:
        labels, seconds = line(way, None), line(way, None, timed=True)
        students = [line(way, seed) for seed in scale.seeds]
        values = [student["top1"] for student in students if student]
        if labels and seconds and len(values) >= scale.enough:
            found.append(
                {
                    "way": way.name,
                    "kind": way.kind,
                    "bytes": labels["bytes"],
                    "bytes_with_encoder": labels["bytes_with_encoder"],
                    "seconds": seconds["labelling"],
                    "training_seconds": seconds["training"],
                    "top1": round(fmean(values), 2),
                    "seeds": len(values),
                    "values": values,
                }
            )
    return found


def above(points: Sequence[Mapping[str, Any]]) -> list[Json]:
    """Peers that are more accurate than each of our stores of at most as many bytes, by either count."""
    ours, found = [point for point in points if point["kind"] not in PEERS], list[Json]()
    for point in points:
        for counted in ("bytes", "bytes_with_encoder"):
            rivals = [each["top1"] for each in ours if each["bytes"] <= point[counted]]
            if point["kind"] in PEERS and point["top1"] > max(rivals, default=-1.0):
                found.append({"way": point["way"], "counted": counted})
    return found


def table(points: Mapping[str, Sequence[Mapping[str, Any]]], there: Sequence[Mapping[str, Any]]) -> str:
    """Both frontiers as Markdown, with the published point beside the wide one."""
    header = ["labels", "bytes", "with encoder", "labelling, s", "projector trained in, s", "top-1, %"]
    parts = ["# Accuracy against bytes of labels"]
    for name, found in points.items():
        rows = [
            [
                point["way"],
                byte_count(point["bytes"]),
                byte_count(point["bytes_with_encoder"]),
                f"{point['seconds']:.1f}",
                f"{point['training_seconds']:.0f}" if point["training_seconds"] else "",
                spread(point["values"]),
            ]
            for point in found
        ]
        parts.append(f"## {name}\n\n{markdown(header, rows)}")
        parts += [f"Above our stores: {', '.join(named)}." for named in [names(above(found))] if named]
        if name == "wide":
            parts.append(beside(there))
    return "\n\n".join(parts) + "\n"


def names(found: Sequence[Any]) -> list[str]:
    """Of peers that lie above our stores, and by which count."""
    return [f"{each['way']} ({each['counted'].replace('_', ' ')})" for each in found]


def beside(there: Sequence[Mapping[str, Any]]) -> str:
    """The published point, marked as theirs, and projectors of so many columns."""
    sizes = "; ".join(
        f"rank {each['rank']}: {byte_count(each['bytes'])}, with encoder {byte_count(each['bytes_with_encoder'])}"
        for each in there
    )
    return (
        f"Published by HeLlO's authors, not measured here: 43.7 % on ImageNet-1K (IPC 10, ResNet-18) by 0.8 million "
        f"parameters, which they count as 0.8 MB, without CLIP's RN50 (77 MB in float16). A projector on this teacher "
        f"for {there[0]['columns']:,} columns would take, by rank: {sizes}."
    )


def draw(points: Mapping[str, Sequence[Mapping[str, Any]]], path: Path) -> str:
    """Draw accuracy against bytes, a panel a frontier, into a PNG; peers are hollow, with encoder to their right."""
    from matplotlib.figure import Figure  # takes a second to import, and need not be there

    figure = Figure(figsize=(7 * len(points), 5), layout="constrained")
    for axes, (name, found) in zip(figure.subplots(1, len(points), squeeze=False)[0], points.items(), strict=True):
        for point in found:
            sizes = [point["bytes"], point["bytes_with_encoder"]]
            look = {"markerfacecolor": "none"} if point["kind"] in PEERS else {}
            axes.plot(sizes, [point["top1"]] * 2, marker="o", linestyle=":", label=point["way"], **look)
        axes.set(title=name, xscale="log", xlabel="bytes of labels; with encoder", ylabel="test top-1, %")
        axes.grid(visible=True, which="both", alpha=0.2)
        axes.legend(fontsize=7)
    with new_file(path) as file:
        figure.savefig(file, dpi=100, format="png")
    return str(path)
