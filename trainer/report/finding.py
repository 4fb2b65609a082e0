"""Find stores, image sets, runs, projectors and generators at paths, and in folders below them."""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from labelstore.command.names import natural_key, printable
from labelstore.durable.places import is_store, is_synthesised
from labelstore.errors import FormatError, InputError
from labelstore.operations.generator import is_generator
from labelstore.operations.projector import is_projector
from labelstore.storage_table import as_typed, scheme_of
from labelstore.store import LabelStore
from pipeline.images.opening import recognised
from pipeline.images.places import is_there
from pipeline.images.source_table import CLASS_FOLDER
from trainer.file_names import CONFIG, LOG
from trainer.runs import STORE_ROOT, read_run

Kind: TypeAlias = Literal["store", "set", "run", "projector", "generator"]
STORE_MARKERS = "markers"
KINDS = "a run, a store, an image set, a projector or a generator"


@dataclass(frozen=True, slots=True)
class Found:
    """A thing for the page.

    Attributes:
        kind: its kind.
        path: its folder, file or address, as it was typed.
    """

    kind: Kind
    path: Path


def find(places: Sequence[Path]) -> list[Found]:
    """Find all things at some places, each once, in the order of the places.

    Args:
        places: paths of things, of folders that hold some at any depth, or patterns such as ``runs/*``.

    Raises:
        InputError: names the first place without a thing.
    """
    found: dict[str, Found] = {}
    for place in places:
        for each in _at(place):
            key = str(each.path) if scheme_of(each.path) else str(each.path.resolve())
            found.setdefault(key, each)
    return list(found.values())


def _at(place: Path) -> list[Found]:
    """The things at one place."""
    if scheme_of(place):
        return [Found("store" if _opens(place) else "set", place)]
    if place.exists():
        found = _below(place)
    else:
        matches = [Path(name) for name in sorted(glob.glob(str(place)), key=natural_key)]  # noqa: PTH207  an absolute pattern too
        found = [each for match in matches for each in _below(match)]
    if not found and _holds_images(place):
        return [Found("set", place)]
    if not found:
        name = printable(str(as_typed(place)))
        why = "found none of them" if place.exists() else "no such file or folder"
        raise InputError(f"{name}: expected {KINDS}, or a folder of them: {why}")
    return found


def _opens(place: Path) -> bool:
    """Whether there is a store at an address."""
    try:
        LabelStore.open(place)
    except FormatError:
        return False
    return True


def kind_at(folder: Path) -> Kind | None:
    """The kind of a folder, judged by its files; None if it is none of them."""
    if is_store(folder) or ((folder / STORE_ROOT).is_file() and (folder / STORE_MARKERS).is_dir()):
        return "store"  # or what was one, whose root is damaged: opening it names the damage
    if is_generator(folder):
        return "generator"
    if is_projector(folder):
        return "projector"
    if is_synthesised(folder):
        return "set"
    return "run" if _is_run(folder) else None


def _is_run(folder: Path) -> bool:
    """Whether a folder is that of a run: it has a description and a log, or one of them that can be read."""
    there = [(folder / name).is_file() for name in (CONFIG, LOG)]
    if all(there) or not any(there):  # with both it is a run: a damaged one is refused, not skipped
        return all(there)
    try:
        read_run(folder)
    except InputError:
        return False
    return True


def _below(place: Path) -> list[Found]:
    """The things at a place or below it; things within things are not searched for."""
    found: list[Found] = []
    for name, folders, _files in os.walk(place):
        folders.sort(key=natural_key)
        folder = Path(name)
        if kind := kind_at(folder):
            found.append(Found(kind, folder))
            folders.clear()
    return found


def _holds_images(place: Path) -> bool:
    """Whether a place may hold images: a container of them, or a folder with folders."""
    if not is_there(place):
        return False
    if recognised(place) != CLASS_FOLDER:
        return True
    return place.is_dir() and any(entry.is_dir() for entry in place.iterdir())
