"""Patterns for several files: ``{000..099}``, ``{a,b}`` and ``*``."""

from __future__ import annotations

import glob
import re
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from itertools import chain, product
from math import prod
from pathlib import Path

from labelstore.command.names import natural_key, printable
from labelstore.errors import InputError

COMPRESSED_TARS = (".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".tar.zst", ".tar.zstd", ".txz", ".tbz2")
SUFFIXES: Mapping[str, tuple[str, ...]] = {
    "parquet": (".parquet",),
    "tar": (".tar", *COMPRESSED_TARS),
    "zip": (".zip",),
    "tensors": (".npz", ".npy", ".pt", ".pth", ".safetensors"),
    "idx": ("-ubyte", "-ubyte.gz"),
}
"""Of files of images, by kind."""
CIFAR = re.compile(r"cifar-100?-(python|binary)\b")  # of the authors' archives, and of the folders in them
_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILDCARDS = re.compile(r"[*?\[]")
_NUMBERED = re.compile(r"(.*?)\d+(-of-\d+(-[0-9a-f]+)?)?")
_MOST = 1_000_000  # files that a pattern may name


def names_files(address: Path) -> bool:
    """Whether an address names files of images, judged by its name."""
    return "{" in address.name or has_wildcards(address.name) or named_kind(address) is not None


def named_kind(address: Path) -> str | None:
    """The kind of the file that an address names, or a folder in which; None if no name has a known suffix."""
    for name in (part.lower() for part in reversed(address.parts[2:])):
        if CIFAR.match(name):
            return "cifar"
        for kind, suffixes in SUFFIXES.items():
            if name.endswith(suffixes):
                return kind
    return None


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


def files_named(path: Path) -> list[str]:
    """The files of this machine that a path or a pattern names, absolute: those of a wildcard in natural order.

    Raises:
        InputError: one is not there, or no file matches.
    """
    if path.exists():
        return [str(path.absolute())]
    shown = printable(str(path))
    base = next((parent for parent in path.parents if parent.is_dir()), Path())  # may have brackets in its name
    found: list[str] = []
    for name in (names := expanded("/".join(path.parts[len(base.parts) :]))):
        if not has_wildcards(name):
            found.append(name)
        elif matched := glob.glob(name, root_dir=base):  # noqa: PTH207  (a pattern below any folder)
            found += sorted(matched, key=natural_key)
        else:
            raise InputError(f"--images {shown}: expected files that match {printable(name)}, found none in {base}")
    if absent := [name for name in found if not (base / name).exists()]:
        raise InputError(
            f"--images {shown}: expected {'a file' if len(names) == 1 else f'{len(found):,} files'}, "
            f"{'it' if len(found) == 1 else f'{len(absent):,} of them'} cannot be found: "
            f"{printable(str((base / absent[0]).absolute()))}"
        )
    return [str((base / name).absolute()) for name in found]


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
