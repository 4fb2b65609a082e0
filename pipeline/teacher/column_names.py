"""Classes and columns of labels as people read them: WordNet ids in words, and the names of ImageNet's list."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from labelstore.command.names import printable
from labelstore.errors import InputError
from labelstore.spec import Identity
from pipeline.teacher.imagenet import COLUMNS, public_classes, public_mapping

WORDNET_ID = re.compile(r"n\d{8}(?![A-Za-z0-9])")


def class_title(folder: str) -> str:
    """A class as people read it: the usual name of a WordNet id, with the id where several classes have it."""
    found = WORDNET_ID.match(folder)
    return printable(_usual_names().get(found[0], folder) if found else folder)


def column_titles(identity: Identity) -> dict[int, str]:
    """The names of a store's columns: of its classes, and of ImageNet's others where its classes are ImageNet's."""
    own = {column: class_title(name) for column, name in identity.column_names.items()}
    return {**_of_the_list(identity), **own}


def title_of(titles: dict[int, str], column: int) -> str:
    """The name of a column; its number in words where it has none."""
    return titles.get(column) or f"column {column} (no class here)"


def _of_the_list(identity: Identity) -> dict[int, str]:
    """The names of all columns, where those of the classes are the public list's."""
    if identity.columns != COLUMNS or not _in_the_order(identity.classes, identity.label_columns):
        return {}
    return {column: class_title(known.wordnet_id) for column, known in enumerate(public_classes())}


def _in_the_order(folders: Sequence[str], columns: Sequence[int]) -> bool:
    """Whether the folders are classes of the list, each in its own column."""
    try:
        return public_mapping(folders, None, COLUMNS).columns == tuple(columns)
    except InputError:
        return False


@cache
def _usual_names() -> dict[str, str]:
    """The usual name of each WordNet id of the list."""
    times = Counter(known.names[0] for known in public_classes())
    return {
        known.wordnet_id: known.names[0] if times[known.names[0]] == 1 else f"{known.names[0]} ({known.wordnet_id})"
        for known in public_classes()
    }
