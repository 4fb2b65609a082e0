"""Patterns for several files: ``{000..099}``, ``{a,b}`` and ``*``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import chain, product
from math import prod
from pathlib import Path

from labelstore.command.names import printable
from labelstore.errors import InputError

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.zstd", ".txz", ".tbz2")
SUFFIXES: Mapping[str, tuple[str, ...]] = {"parquet": (".parquet",), "tar": (".tar", *COMPRESSED_TARS)}
"""Of the files of images that can be read at an address, by kind."""
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILDCARDS = re.compile(r"[*?\[]")
_NUMBERED = re.compile(r"(.*?)\d+(-of-\d+(-[0-9a-f]+)?)?")
_MOST = 1_000_000  # files that a pattern may name


def names_files(address: Path) -> bool:
    """Whether an address names tar or Parquet files, judged by its name."""
    name = address.name.lower()
    return "{" in name or has_wildcards(name) or any(map(name.endswith, SUFFIXES.values()))


def has_wildcards(text: str) -> bool:
    """Whether a pattern has to be matched with existing names, since it cannot be expanded."""
    return bool(_WILDCARDS.search(text))


def matching(names: Iterable[str], pattern: str) -> list[str]:
    """The names that a pattern with wildcards matches; wildcards do not match ``/``."""
    wanted = pattern.split("/")
    parted = ((name, name.split("/")) for name in names)
    return [name for name, parts in parted if len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))]


def pattern_of(name: str, suffix: str) -> str:
    """The pattern of the numbered files that a file belongs to: ``train-*.tar`` of ``train-003.tar``."""
    folder, slash, file = name.rpartition("/")
    stem, end = file[: -len(suffix)], file[-len(suffix) :]
    numbered = _NUMBERED.fullmatch(stem)
    return f"{folder}{slash}{f'{numbered[1]}*' if numbered else stem}{end}"


def expanded(pattern: str) -> list[str]:
    """The names of a pattern of braces: ``{000..099}`` counts, with leading zeros, ``{a,b}`` lists.

    Raises:
        InputError: braces with something else in them, or far too many names.
    """
    plain, inner = _BRACES.split(pattern)[::2], _BRACES.split(pattern)[1::2]
    choices = [_words(word, pattern) for word in inner]
    if prod(map(len, choices)) > _MOST:
        raise InputError(f"--images {printable(pattern)}: names more than {_MOST:,} files")
    return ["".join(chain(*zip(plain, (*words, ""), strict=True))) for words in product(*choices)]


def _words(inner: str, pattern: str) -> list[str]:
    """The alternatives in braces."""
    if counted := _RANGE.fullmatch(inner):
        first, last = counted[1], counted[2]
        if abs(int(last) - int(first)) >= _MOST:
            raise InputError(f"--images {printable(pattern)}: names more than {_MOST:,} files")
        width = max(len(first), len(last)) if first.startswith("0") or last.startswith("0") else 0
        step = 1 if int(first) <= int(last) else -1
        return [f"{number:0{width}d}" for number in range(int(first), int(last) + step, step)]
    words = inner.split(",")
    if len(words) < 2:
        raise InputError(
            f"--images {printable(pattern)}: expected braces of the form {{000..099}} or {{a,b}}, found {{{inner}}}"
        )
    return words
