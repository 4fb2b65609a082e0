"""The logs of a run: a line of JSON for each epoch, and for steps."""

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
    """What takes the entry of each epoch: a line of log.jsonl, and with ``tensorboard`` its numbers as scalars.

    Args:
        folder: of the run.
        epoch: the next one; lines of it and of later ones, written after the last checkpoint, are dropped.
        warn: called when epochs before it are missing.
        tensorboard: whether scalars are wanted.
        step: the last one of the last checkpoint; lines of later ones in steps.jsonl are dropped.
    """
    path = folder / LOG
    kept = {number: line for number, line in lines_of(path).items() if number < epoch}
    if len(kept) < epoch:
        warn(f"{path}: expected a line for each of {epoch} epochs, found {len(kept)}; the others are not made again")
    for file, key, first in ((path, "epoch", epoch), (folder / STEPS, "step", step + 1)):
        if file.exists():
            content, others = file.read_bytes(), Proof("the log of a run", lambda found: found.is_file())
            if (lines := without(content, first, key)) != content:
                write_over(file, lines, others)  # a line that is not the run's is kept
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
    """A log without the lines of epoch (or step) ``first`` and later ones, and without a last line cut off."""
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
    """The whole lines of a log, by their epochs."""
    lines: dict[int, str] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            lines[int(json.loads(line)["epoch"])] = line
        except (ValueError, KeyError, TypeError):  # cut off by a crash, or changed since
            continue
    return lines
