"""The tables of the study of HeLlO, of the cells that are finished, beside the paper's figures."""

from __future__ import annotations

from collections.abc import Iterator
from statistics import fmean

from benchmarks.studies.hello_cells import ABLATION, SETS, STORED, WHOLE, Cell, Scale
from benchmarks.studies.ledger import Ledger
from benchmarks.studies.tables import markdown, spread, write_tables
from labelstore.command.console import byte_count

TITLE = "# HeLlO on CIFAR-10"
# The paper's ablation: ImageNet-1K, IPC 10, ResNet-18, CLIP's RN50, text in the place of means; top-1 in percent.
PAPER = {"probe": 28.2, "taught": 30.1, "lora": 43.5, "means": 43.6, "updated": 43.7}
GOAL = 10.0  # points that the projector is to lie above the probe


def top1(scale: Scale, results: Ledger[Cell], images: str, labels: str) -> list[float]:
    """Top-1 in percent of the finished students of all seeds."""
    cells = [Cell(kind="student", set=images, labels=labels, seed=seed) for seed in scale.seeds]
    return [line["top1"] for cell in cells if (line := results.of(cell))]


def report(scale: Scale, results: Ledger[Cell]) -> str:
    """Write the tables beside the results; their text."""
    return write_tables(results.path, TITLE, sections(scale, results))


def sections(scale: Scale, results: Ledger[Cell]) -> Iterator[str]:
    """A title and a table for each question."""
    tables = {
        "Projectors": projectors(results),
        f"Students by labels, {scale.per_class} images a class": students(scale, results),
        "Ablation, students on RDED's images": ablation(scale, results),
    }
    for title, table in tables.items():
        if table:
            yield f"## {title}\n\n{table}"
    lines = [results.of(Cell(kind="projector", labels=name)) for name in ("probe", WHOLE)]
    probe, whole = (line["top1"] if line else None for line in lines)
    if probe is not None and whole is not None:
        reached = "reached" if whole - probe >= GOAL else "missed"
        yield f"The projector lies {whole - probe:+.2f} points from the linear probe (goal: {GOAL:+.0f}, {reached})."


def projectors(results: Ledger[Cell]) -> str:
    """Each projector on the test images, beside its teachers."""
    rows = []
    for name, step in ABLATION.items():
        line = results.of(Cell(kind="projector", labels=name))
        if line is None:
            continue
        teachers = line["teachers"]
        rows.append(
            [
                step.adds,
                f"{line['top1']:.2f}",
                f"{line['teachers_top1']:.2f} ({min(teachers):.2f} to {max(teachers):.2f})",
                f"{line['fidelity']:.4f}",
                f"{line['parameters']:,}",
                byte_count(line["bytes"]),
                byte_count(line["bytes_with_encoder"]),
                f"{line['seconds']:.0f}",
            ]
        )
    header = ["projector", "top-1, %", "its teachers together (alone)", "fidelity to them", "parameters", "bytes"]
    return markdown([*header, "with encoder", "trained in, s"], rows)


def students(scale: Scale, results: Ledger[Cell]) -> str:
    """Rows of labels, columns of sets."""
    names = {"hard": "hard labels", "weak": "stored, weak teachers", "strong": "stored, strong teacher"}
    names |= {WHOLE: "projector of the weak teachers", "of strong": "projector of the strong teacher"}
    rows = [
        [names[labels], *(spread(top1(scale, results, images, labels)) for images in SETS)]
        for labels in (*STORED, WHOLE, "of strong")
    ]
    return markdown(["labels", *SETS], rows)


def ablation(scale: Scale, results: Ledger[Cell]) -> str:
    """What each part is worth to a student, beside what the paper has for it."""
    places = [*((name, ABLATION[name].adds, "rded", name) for name in ("probe", "taught", "lora", WHOLE))]
    places.append(("updated", "+ image update", "updated", WHOLE))
    rows: list[list[str]] = []
    for name, adds, images, labels in places:
        found = top1(scale, results, images, labels)
        before = rows[-1][1] if rows else ""
        gain = f"{fmean(found) - float(before.split()[0]):+.2f}" if found and before else ""
        rows.append([adds, spread(found), gain, f"{PAPER[name]:.1f}"])
    if not any(row[1] for row in rows):
        return ""
    return markdown(["projector", "top-1, %", "gain", "the paper, ImageNet-1K, ResNet-18"], rows)
