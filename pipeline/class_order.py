"""Which column of a teacher is which class: selecting columns, checking names, agreement with the folders."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.errors import InputError

TEACHER_CLASSES, CLASS_COLUMNS = "--teacher-classes", "--class-columns"
MIN_ROWS = 30  # fewer crops say nothing about the order of classes
SHOWN = 100


def select_columns(
    selection: str, names: Sequence[str] | None, total: int, *, flag: str = TEACHER_CLASSES
) -> tuple[int, ...]:
    """Columns chosen by comma-separated indexes or class names, or by a file with one a line.

    Args:
        selection: what the user wrote.
        names: class names of all columns, where known.
        total: columns of the network.
        flag: the flag it was given to, for messages.
    """
    entries = [entry.strip() for entry in _entries(selection, flag)]
    columns = [_column(entry, names, total, flag) for entry in entries if entry]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice or not columns:
        found = f"columns {twice} more than once" if twice else "no class at all"
        raise InputError(f"{flag} {selection}: expected each class once, found {found}")
    return tuple(columns)


def _entries(selection: str, flag: str) -> list[str]:
    if "," in selection or selection.strip().isdecimal():
        return selection.split(",")
    try:
        if Path(selection).is_file():
            return Path(selection).read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {selection}: not a readable text file: {error}") from error
    return [selection]


def _column(entry: str, names: Sequence[str] | None, total: int, flag: str) -> int:
    if entry.isdecimal():
        if int(entry) < total:
            return int(entry)
        raise InputError(f"{flag}: index {entry} of a network of {total} columns; expected 0 to {total - 1}")
    if names is None:
        raise InputError(f"{flag}: {entry!r} is no index and no file, and the network's class names are unknown")
    found = [column for column, name in enumerate(names) if name == entry]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{flag}: {entry!r} names the columns {found}; give the index")
    near = difflib.get_close_matches(entry, names, 3)
    hint = f"; near it: {', '.join(near)}" if near else ""
    raise InputError(f"{flag}: {entry!r} is no file and none of the network's {len(names)} classes{hint}")


def check_classes(
    columns: Sequence[int],
    names: Sequence[str] | None,
    folders: Sequence[str],
    *,
    flags: tuple[str, ...] = (TEACHER_CLASSES, CLASS_COLUMNS),
) -> str | None:
    """Refuse columns that are not those of the class folders; a warning where that is doubtful.

    Args:
        columns: the columns of a network that are taken for the folders, in their order.
        names: class names of all its columns, where known.
        folders: class folders in target order.
        flags: the flag that selects those columns, and the one that keeps the others too, for messages.
    """
    known = {name: column for column, name in enumerate(names or ())}
    all_known = known.keys() >= set(folders)
    if len(columns) != len(folders):
        if all_known:
            remedy = f"the folders are among the network's classes: {_remedies(flags, known, folders)}"
        else:
            remedy = f"name the {len(folders)} columns in the folders' order: {_remedies(flags, None, folders)}"
        raise InputError(
            f"expected a column for each of the {len(folders)} class folders "
            f"({', '.join(folders[:5])}{', ...' if len(folders) > 5 else ''}), found {len(columns)} columns; {remedy}"
        )
    chosen = None if names is None else [names[column] for column in columns]
    if chosen is None or chosen == list(folders):
        return None
    shared = {*chosen} & {*folders}
    if not shared and not all_known:  # other words for the same classes, as WordNet ids and English names
        return None
    first = next(i for i, (name, folder) in enumerate(zip(chosen, folders, strict=True)) if name != folder)
    difference = f"column {columns[first]} of the network is {chosen[first]!r}, folder {first} is {folders[first]!r}"
    if all_known:
        raise InputError(
            f"the classes of the network are others than the folders, or in another order: {difference}; "
            f"{_remedies(flags[:1], known, folders)}"
        )
    return f"only {len(shared)} of the {len(folders)} folders are classes of the network: {difference}"


def _remedies(flags: tuple[str, ...], known: dict[str, int] | None, folders: Sequence[str]) -> str:
    """What to give each flag: the columns of the folders in their order, where known."""
    if known and len(folders) <= SHOWN:
        selection = f" {','.join(str(known[folder]) for folder in folders)}"
    else:
        selection = " a file with the folder names, one a line, in their order" if known else ""
    only, *both = (f"{flag}{selection}" for flag in flags)
    return f"give {only} to keep these columns alone, or {both[0]} to keep all" if both else f"give {only}"


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often the teacher's first choice is the folder of the image.

    Attributes:
        rows: crops looked at.
        top1: share of them that agree, in percent.
        chance: what guessing would give, in percent.
        warning: what to look at when the teacher hardly agrees, else None.
    """

    rows: int
    top1: float
    chance: float
    warning: str | None

    @property
    def text(self) -> str:
        """One line for people."""
        return (
            f"the teacher agrees with the folders on {self.top1:.2f} % of {self.rows:,} crops "
            f"(chance {self.chance:.2f} %)"
        )


def agreement(logits: npt.NDArray[np.floating], targets: npt.NDArray[np.integer], classes: Sequence[str]) -> Agreement:
    """Compare the teacher's first choices with the folders, in their order and in others they might have.

    Args:
        logits: ``[n, C]``; crops that are mostly another image's do not belong here.
        targets: folder of each crop's image, ``[n]``.
        classes: the C folder names in target order.
    """
    choices = logits.argmax(axis=1)
    rows, chance = len(choices), 1 / len(classes)
    hits = int((choices == targets).sum())
    # What guessing stays below (3 standard deviations), and what no teacher worth its labels stays below.
    guessing = rows * chance + 3 * (rows * chance * (1 - chance)) ** 0.5
    poor = rows * min(2 * chance, (1 + chance) / 2)
    warnings = []
    for order, other in _other_orders(classes).items():
        better = int((choices == other[targets]).sum())
        if rows >= MIN_ROWS and better > max(2 * hits, guessing):
            warnings.append(
                f"in {order} order of the folder names it would agree on {100 * better / rows:.2f} %: "
                f"stop, and start a new store with --class-order {order}"
            )
    if not warnings and rows >= MIN_ROWS and hits <= max(guessing, poor):
        warnings.append(
            "the teacher agrees with the folders hardly more often than chance: its classes may be in "
            f"another order ({TEACHER_CLASSES}, {CLASS_COLUMNS}, --class-order), or its normalisation another "
            "(--mean, --std)"
        )
    return Agreement(rows, 100 * hits / max(rows, 1), 100 * chance, "; ".join(warnings) or None)


def _other_orders(classes: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Where all names are integers: order -> the column of each target if the columns were in that order."""
    if not all(name.isascii() and name.isdecimal() for name in classes):
        return {}
    sortings = {"numeric": sorted(classes, key=int), "bytes": sorted(classes, key=str.encode)}
    return {
        order: np.array([names.index(name) for name in classes])
        for order, names in sortings.items()
        if names != list(classes)
    }
