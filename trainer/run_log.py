"""The logs of a run: a line of JSON for each epoch, and for logged steps."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from trainer.file_names import LOG, STEPS


@contextmanager
def open_log(
    folder: Path, epoch: int, warn: Callable[[str], object], *, tensorboard: bool = False, step: int = 0
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """A function that logs the entry of an epoch: a line of log.jsonl, and with ``tensorboard`` scalars.

    Args:
        folder: of the run.
        epoch: the next epoch; its lines and later ones, written after the last checkpoint, are dropped.
        warn: called if earlier epochs are missing.
        tensorboard: whether scalars are written.
        step: step of the last checkpoint; lines of later steps in steps.jsonl are dropped.
    """
    path = folder / LOG
    kept = {number: line for number, line in lines_of(path).items() if number < epoch}
    if len(kept) < epoch:
        warn(f"{path}: expected a line for each of {epoch} epochs, found {len(kept)}; the others cannot be restored")
    for file, key, first in ((path, "epoch", epoch), (folder / STEPS, "step", step + 1)):
        if file.exists():
            content, others = file.read_bytes(), Proof("the log of a run", lambda found: found.is_file())
            if (lines := without(content, first, key)) != content:
                write_over(file, lines, others)  # other lines are kept
    scalars = _scalars(folder / "tensorboard", epoch) if tensorboard else None

    def log(entry: Mapping[str, Any]) -> None:
        append(path, entry)
        for name, value in entry.items():
            if scalars and name != "epoch" and value is not None:
                scalars.add_scalar(name, value, entry["epoch"])

    try:
        yield log
    finally:
        if scalars:
            scalars.close()


def append(path: Path, entry: Mapping[str, Any]) -> None:
    """Add a line to a log."""
    with path.open("a") as file:
        file.write(json.dumps(entry) + "\n")


def _scalars(folder: Path, epoch: int) -> Any:
    """TensorBoard's writer."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "--tensorboard: tensorboard is not installed; install the extra: pip install 'giftwrap[tensorboard]'"
        ) from error
    writer: Any = SummaryWriter
    return writer(folder, purge_step=epoch)


def without(content: bytes, first: int, key: str = "epoch") -> bytes:
    """A log without the lines from epoch (or step) ``first`` on, and without an incomplete last line."""
    kept = []
    *lines, last = content.split(b"\n")
    for line in lines:
        try:
            if json.loads(line)[key] >= first:
                continue
        except (ValueError, LookupError, TypeError):
            pass
        kept.append(line + b"\n")
    begin = f'{{"{key}": '.encode()
    return b"".join(kept) + (b"" if last.startswith(begin) or begin.startswith(last) else last + b"\n")


def lines_of(path: Path) -> dict[int, str]:
    """The complete lines of a log, by epoch."""
    lines: dict[int, str] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            lines[int(json.loads(line)["epoch"])] = line
        except (ValueError, KeyError, TypeError):  # incomplete after a crash, or edited
            continue
    return lines
