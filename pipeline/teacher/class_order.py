"""Match a teacher's columns with classes: select columns, check names, measure agreement with the folders."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from labelstore.command.console import quantity
from labelstore.command.names import natural_key, printable, same_form, told_apart
from labelstore.errors import InputError
from pipeline.images.class_names import entries
from pipeline.teacher.imagenet import COLUMNS as IMAGENET_COLUMNS
from pipeline.teacher.imagenet import FOLDERS, IMAGENET, PublicMapping, is_public, public_mapping

TEACHER_CLASSES, CLASS_COLUMNS = "--teacher-classes", "--class-columns"
MIN_ROWS = 30  # fewer crops are no evidence for the order of classes
SHOWN = 100


def select_columns(
    selection: str, names: Sequence[str] | None, total: int, *, flag: str = TEACHER_CLASSES
) -> tuple[int, ...]:
    """Columns chosen by comma-separated indexes or class names, or by a file with one a line.

    A name with commas is quoted in a list; a single name need not be.

    Args:
        selection: what the user wrote.
        names: class names of all columns, where known.
        total: columns of the network.
        flag: the flag it was given to, for messages.
    """
    found = entries(selection, names or (), flag)
    columns = [_column(entry, names, total, flag) for entry in found if entry]
    twice = sorted({column for column in columns if columns.count(column) > 1})
    if twice or not columns:
        what = f"columns {twice} more than once" if twice else "no class at all"
        raise InputError(f"{flag} {selection}: expected each class once, found {what}")
    return tuple(columns)


def _column(entry: str, names: Sequence[str] | None, total: int, flag: str) -> int:
    if entry.isdecimal():
        if int(entry) < total:
            return int(entry)
        raise InputError(f"{flag}: index {entry} of a network of {total} columns; expected 0 to {total - 1}")
    if names is None:
        raise InputError(f"{flag}: {entry!r} is no index and no file, and the network's class names are unknown")
    found = [column for column, name in enumerate(names) if same_form(name) == same_form(entry)]
    if len(found) == 1:
        return found[0]
    if found:
        raise InputError(f"{flag}: {entry!r} names the columns {found}; give the index")
    near = difflib.get_close_matches(entry, names, 3)
    hint = f"; near it: {printable(', '.join(near))}" if near else ""
    if near and not (entry.isascii() and near[0].isascii()):
        hint += f" (it is {' and not '.join(told_apart(entry, near[0]))})"
    elif any(entry in name for name in names if "," in name):
        hint += "; quote names that hold commas, or give a file with one name a line"
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
    known = _by_form(names or ())
    forms = [same_form(folder) for folder in folders]
    all_known = known.keys() >= {*forms}
    if len(columns) != len(folders):
        if all_known:
            remedy = f"the folders are among the network's classes: {_remedies(flags, known, folders)}"
        else:
            remedy = f"name the {len(folders)} columns in the folders' order: {_remedies(flags, None, folders)}"
            remedy += _by_public_list(folders, names, len(columns), flags)
        raise InputError(
            f"expected a column for each of the {len(folders)} class folders ({printable(', '.join(folders[:5]))}"
            f"{', ...' if len(folders) > 5 else ''}), found {len(columns)} columns; {remedy}"
        )
    if names is None:
        return None
    chosen = [same_form(names[column]) for column in columns]
    differing = [i for i, (name, form) in enumerate(zip(chosen, forms, strict=True)) if name != form]
    if not differing:
        return None
    elsewhere = [i for i in differing if forms[i] in known]
    first = (elsewhere or differing)[0]
    ours, theirs = told_apart(chosen[first], folders[first])
    difference = f"column {columns[first]} of the network is {ours}, folder {first} is {theirs}"
    implied = tuple(columns) == tuple(range(len(names)))  # no flag has chosen them
    if all_known or (elsewhere and implied):
        raise InputError(
            f"the classes of the network are others than the folders, or in another order: {difference}; "
            f"{_remedies(flags[:1], known if all_known else None, folders)}"
        )
    if shared := {*chosen} & {*forms}:
        return f"only {len(shared)} of the {len(folders)} folders are classes of the network: {difference}"
    # Other words for the same classes, as WordNet ids and English names, or other classes.
    note = f"no folder has the name of a class of the network: {difference}; column k is taken for folder k"
    return note if implied else None


def _by_form(names: Sequence[str]) -> dict[str, list[int]]:
    """The columns of each class name, whatever its Unicode form."""
    known: dict[str, list[int]] = {}
    for column, name in enumerate(names):
        known.setdefault(same_form(name), []).append(column)
    return known


def _remedies(flags: tuple[str, ...], known: dict[str, list[int]] | None, folders: Sequence[str]) -> str:
    """The value for each flag: the columns of the folders in order, if known."""
    selection, twice = "", ""
    if known:
        found = [known[same_form(folder)] for folder in folders]
        several = next((i for i, columns in enumerate(found) if len(columns) > 1), None)
        if several is not None:
            twice = f"; {folders[several]!r} is the name of the columns {found[several]}, which only you can separate"
        if several is None and len(folders) <= SHOWN:
            selection = f" {','.join(str(columns[0]) for columns in found)}"
        else:
            numbers = several is not None or any(folder.isdecimal() for folder in folders)
            selection = f" a file with the {'indexes' if numbers else 'folder names'}, one a line, in their order"
    only, *both = (f"{flag}{selection}" for flag in flags)
    what = f"give {only} to keep only these columns, or {both[0]} to keep all" if both else f"give {only}"
    return what + twice


def _by_public_list(folders: Sequence[str], names: Sequence[str] | None, total: int, flags: tuple[str, ...]) -> str:
    """What to give where the folders are classes of ImageNet; empty if they are not, or the network's are others."""
    if not is_public(folders) or (names is None and total != IMAGENET_COLUMNS):
        return ""
    try:
        found = public_mapping(folders, names, total)
    except InputError as error:
        return f"; the folders are named as classes of ImageNet, but {error}"
    only, *both = (f"{flag} {IMAGENET}" for flag in flags)
    either = f"{only} (or {both[0]})" if both else only
    order = "" if names else " if the network's columns are in ImageNet's order"
    return f", or {either}{order}: by its public list they are {found.text}"


@dataclass(frozen=True, slots=True)
class Choice:
    """Columns that a flag selects.

    Attributes:
        columns: in the order given; None where column k is class k.
        mapping: by which the public list found them, else None.
    """

    columns: tuple[int, ...] | None
    mapping: PublicMapping | None = None


def choose(selection: str, names: Sequence[str] | None, total: int, folders: Sequence[str], *, flag: str) -> Choice:
    """The columns that a flag selects: as `select_columns` does, by ImageNet's list, or as the folders are.

    Args:
        selection: what the user wrote.
        names: class names of all columns, where known.
        total: columns of the network.
        folders: class folders in target order.
        flag: the flag it was given to, for messages.
    """
    if selection == FOLDERS:
        return Choice(None)
    if selection != IMAGENET:
        return Choice(select_columns(selection, names, total, flag=flag))
    try:
        mapping = public_mapping(folders, names, total)
    except InputError as error:
        raise InputError(f"{flag} {IMAGENET}: {error}") from error
    return Choice(None if mapping.in_order and total == len(folders) else mapping.columns, mapping)


def require_known_columns(
    folders: Sequence[str], names: Sequence[str] | None, total: int, flags: tuple[str, ...]
) -> None:
    """Refuse to take column k for folder k silently where ImageNet's list puts the folders elsewhere.

    Raises:
        InputError: all 1,000 classes of ImageNet by name, whose byte order is not the order of published networks.
    """
    if total != len(folders) or total != IMAGENET_COLUMNS or not is_public(folders):
        return
    if names is not None and _by_form(names).keys() >= {*map(same_form, folders)}:
        return  # the network's own names decide
    try:
        mapping = public_mapping(folders, names, total)
        where = "" if mapping.in_order else f"by ImageNet's public list the folders are {mapping.text}"
    except InputError as error:
        where = f"the folders are named as classes of ImageNet, but {error}"
    if where:
        raise InputError(
            f"which column of the network is which folder's is not known: {where}; give {flags[0]} {IMAGENET} where "
            f"the columns are in that list's order, or {flags[0]} {FOLDERS} where column k is folder k"
        )


@dataclass(frozen=True, slots=True)
class Agreement:
    """How often the teacher's first choice is the folder of the image.

    Attributes:
        rows: number of crops that were checked.
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
        """One line of text."""
        if not self.rows:
            return "how often the teacher agrees with the folders is not known: these crops are mostly other images'"
        return (
            f"the teacher agrees with the folders on {self.top1:.2f} % of {quantity(self.rows, 'crop')} "
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
                f"stop, and start again with --class-order {order}"
            )
    if not warnings and len(classes) > 1 and rows >= MIN_ROWS and hits <= max(guessing, poor):
        warnings.append(
            "the teacher agrees with the folders hardly more often than chance: its classes may be in "
            f"another order ({TEACHER_CLASSES}, {CLASS_COLUMNS}, --class-order), or its normalisation another "
            "(--mean, --std)"
        )
    return Agreement(rows, 100 * hits / max(rows, 1), 100 * chance, "; ".join(warnings) or None)


def _other_orders(classes: Sequence[str]) -> dict[str, npt.NDArray[np.int64]]:
    """Orders of the names that numbers in them make others: order -> the column of each target if it were that."""
    sortings = {"numeric": sorted(classes, key=natural_key), "bytes": sorted(classes)}
    if sortings["numeric"] == sortings["bytes"]:
        return {}
    places = {order: {name: place for place, name in enumerate(names)} for order, names in sortings.items()}
    return {
        order: np.array([place[name] for name in classes])
        for order, place in places.items()
        if sortings[order] != list(classes)
    }
