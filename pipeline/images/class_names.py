"""Names of classes as a flag gives them: a list, a file with one a line, or a file of JSON."""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Sequence
from pathlib import Path

from labelstore.command.names import printable, same_form
from labelstore.errors import InputError, reason

FLAG = "--class-names"
SHOWN = 100  # characters of a value
MAX_PATH = 4096  # characters of a path
_FILE_NAME = re.compile(r"^\.{0,2}/|\.(txt|json|csv)$", re.IGNORECASE)  # a list would be strange


def entries(selection: str, names: Sequence[str], flag: str) -> list[str]:
    """What a flag lists: itself where it is one of ``names``, the lines of a file, or what commas separate."""
    if same_form(selection) in map(same_form, names):
        return [selection]
    numbers = selection.replace(",", "").replace(" ", "").isdecimal()
    try:
        if not numbers and len(selection) < MAX_PATH and Path(selection).is_file():
            lines = re.split(r"\r\n|\r|\n", Path(selection).read_text(encoding="utf-8-sig"))
            return [line.strip() for line in lines if line.strip()]
        if _FILE_NAME.search(selection) and "," not in selection:
            raise InputError(f"{flag} {printable(selection[:SHOWN])}: expected a file of names, found none there")
        rows = csv.reader(io.StringIO(selection, newline=""), skipinitialspace=True)
        return [entry.strip() for row in rows for entry in row]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{flag} {printable(selection)}: not a readable text file: {reason(error)}") from error
    except csv.Error as error:
        raise InputError(
            f"{flag} {printable(selection[:SHOWN])}: no list separated by commas: {reason(error)}"
        ) from error


def read_class_names(given: str) -> tuple[str, ...]:
    """The names of the classes 0, 1, ..., as --class-names is typed.

    A file of JSON has a list of names, or an object with a name for each index: ``{"0": "tench", ...}``.

    Raises:
        InputError: no names, or one of them twice.
    """
    path = Path(given)
    names = _of_json(path) if given.lower().endswith(".json") and path.is_file() else entries(given, (), FLAG)
    if not names or not all(names):
        raise InputError(f"{FLAG} {printable(given[:SHOWN])}: expected a name for each class, found an empty one")
    seen: set[str] = set()
    for name in names:
        if (form := same_form(name)) in seen:
            raise InputError(f"{FLAG}: expected each name once, found {printable(name)!r} again")
        seen.add(form)
    return tuple(names)


def _of_json(path: Path) -> list[str]:
    """The names in a file of JSON."""
    wrong = f"{FLAG} {printable(str(path))}: expected a JSON list of names, or an object of index and name"
    try:
        held = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{wrong}; {reason(error)}") from error
    if isinstance(held, dict):
        if any(str(index) not in held for index in range(len(held))):
            raise InputError(f"{wrong}, found other keys than 0 to {len(held) - 1}")
        held = [held[str(index)] for index in range(len(held))]
    if not isinstance(held, list) or not all(isinstance(name, str) for name in held):
        raise InputError(wrong)
    return held


def refuse_class_names(path: Path, given: str | None) -> None:
    """Refuse --class-names for images whose classes have names.

    Raises:
        InputError: names the flag.
    """
    if given is not None:
        raise InputError(f"{FLAG}: the classes of {printable(str(path))} have names already; leave it out")


def require_named(place: str, highest: int, names: Sequence[str]) -> None:
    """Refuse a class index that has no name.

    Args:
        place: what has the indexes, for messages.
        highest: the highest index.
        names: of the classes 0, 1, ...

    Raises:
        InputError: states both numbers.
    """
    if highest >= len(names):
        raise InputError(
            f"{place}: expected classes 0 to {len(names) - 1}, as many as there are names, found {highest}"
        )
