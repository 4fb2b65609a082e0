"""Compare several checkpoints on the same images: accuracy, entropy, and agreement with the last one."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from glob import glob

import torch
from torch import Tensor

from labelstore.command.console import Console
from labelstore.command.flags import changed
from labelstore.command.names import printable
from labelstore.durable.newfile import write_new
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.device.memory import keep_freed_memory
from pipeline.images.remarks import report_left_out
from trainer.evaluate import measure
from trainer.evaluate_config import EvaluateConfig, is_pattern
from trainer.subject import settle

DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """The measurements of one checkpoint.

    Attributes:
        weights: file of the weights.
        top1: percentage of images whose class has the largest logit.
        top5: percentage of images whose class is among the five largest logits.
        loss: mean cross-entropy.
        entropy: mean entropy of the softmax of its logits, in nats.
        agreement: percentage of images for which its first choice is that of the last checkpoint.
    """

    weights: str
    top1: float
    top5: float
    loss: float
    entropy: float
    agreement: float

    def to_json(self) -> dict[str, Json]:
        """The fields; numbers that are not finite become None."""
        values: dict[str, Json] = asdict(self)
        return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in values.items()}


class Seen:
    """Accumulates statistics of the logits of a checkpoint, batch by batch."""

    def __init__(self) -> None:
        self._choices: list[Tensor] = []
        self._entropy, self._count = 0.0, 0

    def __call__(self, logits: Tensor) -> None:
        """Add the logits of a batch, ``[n, C]``."""
        logs = logits.float().log_softmax(1)
        self._entropy += float(torch.special.entr(logs.exp()).sum(dtype=torch.float64))
        self._count += len(logits)
        self._choices.append(logits.argmax(1).cpu())

    @property
    def entropy(self) -> float:
        """The mean entropy of the softmax, in nats."""
        return self._entropy / self._count

    def agreement(self, other: Seen) -> float:
        """The percentage of images for which both have the same largest logit."""
        return 100 * float((torch.cat(self._choices) == torch.cat(other._choices)).float().mean())


def compare_checkpoints(config: EvaluateConfig, console: Console) -> list[Checkpoint]:
    """Measure each of several weights on the same images, in their order; ``--csv`` gets a line for each.

    Raises:
        InputError: when a pattern matches nothing, or a file does not fit the network or the images.
    """
    keep_freed_memory()
    files = matched(config.weights)
    subjects = [settle(changed(config, weights=(file,), csv=None)) for file in files]
    images = subjects[-1].scan()
    console.report(subjects[-1].notes, subjects[-1].warnings)
    report_left_out(images, console)
    found, results = [], []
    with console.progress("evaluate", len(files) * len(images), "images") as progress:
        for subject in subjects:
            seen = Seen()
            results.append(measure(subject, images, console, advance=progress.advance, see=seen))
            found.append(seen)
    rows = [
        Checkpoint(file, result.top1, result.top5, result.loss, seen.entropy, seen.agreement(found[-1]))
        for file, result, seen in zip(files, results, found, strict=True)
    ]
    if config.csv:
        write_new(config.csv, as_csv(rows).encode())
    return rows


def matched(weights: Sequence[str]) -> list[str]:
    """The files that names and patterns match; files of one pattern in natural order.

    Raises:
        InputError: when a pattern matches nothing.
    """
    files: list[str] = []
    for name in weights:
        if not is_pattern(name):
            files.append(name)
            continue
        if not (found := glob(name)):  # noqa: PTH207  the pattern may begin anywhere
            raise InputError(f"--weights {name}: matches no file; give a pattern of existing files")
        files += sorted(found, key=by_numbers)
    return files


def by_numbers(name: str) -> list[tuple[int, int, str]]:
    """The sort key of a name: runs of digits compare as numbers."""
    return [(0, int(part), part) if part.isdecimal() else (1, 0, part) for part in DIGITS.split(name)]


def as_csv(rows: Sequence[Checkpoint]) -> str:
    """A header line, then one line for each checkpoint."""
    text = io.StringIO(newline="")
    table = csv.writer(text)
    table.writerow([field.name for field in fields(Checkpoint)])
    table.writerows([[printable(row.weights), *map(shown, list(row.to_json().values())[1:])] for row in rows])
    return text.getvalue()


def in_columns(rows: Sequence[Checkpoint]) -> str:
    """The rows as a table for people."""
    names = [field.name for field in fields(Checkpoint)]
    cells = [names, *([printable(row.weights), *map(shown, list(row.to_json().values())[1:])] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    return "\n".join("  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]) for line in cells)


def shown(value: Json) -> str:
    """A number with four decimals; empty if it is not finite."""
    return "" if value is None else f"{value:.4f}"
