"""CIFAR-10 and CIFAR-100 in their authors' formats: Python or binary files, in a folder or an archive.

The Python files are pickles. They are not unpickled: a small reader interprets only the operations that such files use,
makes bytes, numbers, lists and dicts, and refuses anything else.
"""

from __future__ import annotations

import os
import pickletools
import re
import tarfile
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.errors import InputError, reason
from pipeline.images.arrays import ArrayImages, named_classes
from pipeline.images.class_names import refuse_class_names, require_named
from pipeline.images.containers import Containers
from pipeline.images.source_table import Request, SourceKind

_SIDE = 32
_PIXELS = 3 * _SIDE * _SIDE
_MOST_BYTES = 256 << 20  # of a file
_BATCH = re.compile(r"(data_batch_\d+|test_batch|train|test)(\.bin)?")
_OWN_NAME = re.compile(r"(data_batch_\d+|test_batch)(\.bin)?")  # which no other image set has
_META = ("batches.meta", "meta", "batches.meta.txt", "fine_label_names.txt")
_ARCHIVE = re.compile(r"cifar-100?-(python|binary)\.(tar\.gz|tgz|tar)", re.IGNORECASE)
_SPLITS = ("train", "test")
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Place:
    """The place of the files.

    Attributes:
        whole: the folder or the archive.
        batch: the selected file of images, or ``train`` or ``test``; None for all.
    """

    whole: Path
    batch: str | None


def _place(path: Path) -> Place | None:
    """The place that a path names; None if it is not CIFAR."""
    if _is_whole(path):
        return Place(path, None)
    if _OWN_NAME.fullmatch(path.name) and path.is_file():  # perhaps alone, without names of its classes
        return Place(path.parent, path.name)
    known = _BATCH.fullmatch(path.name)
    return Place(path.parent, path.name) if known and _is_whole(path.parent) else None


def _is_whole(path: Path) -> bool:
    """Whether a path is the archive, or a folder with files of images, and names of their classes or nothing else."""
    if _ARCHIVE.fullmatch(path.name):
        return path.is_file()
    if not path.is_dir():
        return False
    entries = list(os.scandir(path))
    names = {entry.name for entry in entries if entry.is_file()}
    alone = any(map(_OWN_NAME.fullmatch, names)) and len(names) == len(entries)
    return alone or (not names.isdisjoint(_META) and any(map(_BATCH.fullmatch, names)))


def recognises(path: Path) -> bool:
    """Whether a path is a folder of CIFAR's files, its archive, or one of its files or splits in them."""
    try:
        return _place(path) is not None
    except OSError:
        return False


def open_cifar(path: Path, request: Request) -> ArrayImages:
    """The images of CIFAR, in memory: 30 MB for 10,000.

    Raises:
        InputError: a file is damaged or holds something else; or there are both splits, and none is chosen.
    """
    try:
        place = _place(path)
    except OSError as error:
        raise InputError(f"{printable(str(path))}: cannot be reached ({error.strerror}); check the path") from error
    if place is None:
        raise InputError(
            f"{printable(str(path))}: expected a folder of CIFAR's files with {', '.join(_META[:2])} or names of "
            f"classes as text, one of its files, or an archive such as cifar-10-python.tar.gz, found none of them"
        )
    files = _files(place)
    batches = sorted(name for name in files if _BATCH.fullmatch(name))
    splits = sorted({_split_of(name) for name in batches})
    if not batches or (len(splits) > 1 and place.batch is None):
        found = " and ".join(splits) or "none"
        raise InputError(
            f"{printable(str(path))}: expected one split, found {found}; give one of them: --images "
            f"{printable(str(place.whole))}/train (or /test)"
        )
    parts = [_batch(name, files[name], f"{place.whole}/{name}") for name in batches]
    pixels, labels = np.concatenate([part[0] for part in parts]), np.concatenate([part[1] for part in parts])
    names, labels = _classes(place, files, labels, printable(str(path)), request)
    planes = pixels.reshape(-1, 3, _SIDE, _SIDE)
    sources = [str(place.whole)] if place.whole.is_file() else [str(place.whole / name) for name in batches]
    stamp = int(Containers(sources).times.max())  # what is in memory does not change
    return ArrayImages(
        str(path.absolute()),
        names,
        labels,
        lambda image: planes[image].transpose(1, 2, 0),
        (_SIDE, _SIDE, 3),
        lambda: stamp,
        request,
    )


KIND = SourceKind(recognises, open_cifar)


def _split_of(name: str) -> str:
    return "test" if name.startswith("test") else "train"


def _wanted(name: str, batch: str | None) -> bool:
    """Whether a file of images is selected."""
    if not _BATCH.fullmatch(name):
        return False
    return batch is None or name == batch or (batch in _SPLITS and _split_of(name) == batch)


def _files(place: Place) -> dict[str, bytes]:
    """The contents of the selected files, and of those with class names, by name."""
    shown = printable(str(place.whole))
    try:
        if place.whole.is_dir():
            names = [entry.name for entry in os.scandir(place.whole) if entry.is_file()]
            names = [name for name in names if name in _META or _wanted(name, place.batch)]
            for name in names:
                _require_size(f"{shown}/{name}", (place.whole / name).stat().st_size)
            return {name: (place.whole / name).read_bytes() for name in names}
        found: dict[str, bytes] = {}
        with tarfile.open(place.whole) as archive:
            for info in archive:
                name = info.name.rpartition("/")[2]
                if info.isreg() and (name in _META or _wanted(name, place.batch)):
                    _require_size(f"{shown}: {name}", info.size)
                    held = archive.extractfile(info)
                    found[name] = held.read() if held else b""
        return found
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise InputError(f"{shown}: is truncated or damaged ({reason(error)}); download it again") from error
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror or reason(error)})") from error


def _require_size(shown: str, size: int) -> None:
    if not 0 <= size <= _MOST_BYTES:
        raise InputError(f"{shown}: expected a file of CIFAR of at most {_MOST_BYTES >> 20} MiB, found {size:,} bytes")


def _batch(name: str, data: bytes, shown: str) -> tuple[npt.NDArray[np.uint8], Int64Array]:
    """Pixels ``[n, 3072]`` and class indexes of a file of images."""
    shown = printable(shown)
    if name.endswith(".bin"):
        labels = 2 if name in ("train.bin", "test.bin") else 1
        if len(data) % (_PIXELS + labels):
            raise InputError(f"{shown}: expected records of {_PIXELS + labels} bytes, found {len(data):,}: truncated?")
        records = np.frombuffer(data, np.uint8).reshape(-1, _PIXELS + labels)
        return records[:, labels:], records[:, labels - 1].astype(np.int64)  # the fine class is the second
    held = read_plain(data, shown)
    pixels, found = held.get("data"), held.get("fine_labels", held.get("labels"))
    right = isinstance(pixels, np.ndarray) and pixels.shape[1:] == (_PIXELS,)
    whole = isinstance(found, list) and all(type(label) is int and 0 <= label < 1 << 16 for label in found)
    if pixels is None or found is None or not right or not whole or len(pixels) != len(found):
        raise InputError(f"{shown}: expected uint8 data [n, {_PIXELS}] and n class indexes, found others")
    return pixels, np.array(found, np.int64)


def _classes(
    place: Place, files: Mapping[str, bytes], labels: Int64Array, shown: str, request: Request
) -> tuple[tuple[str, ...], Int64Array]:
    """Class names and targets, from the file of names beside the images, the flag, or else the indexes themselves."""
    for name in _META:
        if name in files and (found := _names_in(name, files[name], f"{place.whole}/{name}")):
            refuse_class_names(place.whole, request.class_names)
            if not len(labels):
                raise InputError(f"{shown}: expected images, found none")
            require_named(shown, int(labels.max()), found)
            return found, labels
    return named_classes(shown, labels, request.class_names)


def _names_in(name: str, data: bytes, shown: str) -> tuple[str, ...]:
    """The class names in a file."""
    try:
        if name.endswith(".txt"):
            return tuple(line.strip() for line in data.decode().splitlines() if line.strip())
        held = read_plain(data, printable(shown))
        found = held.get("fine_label_names", held.get("label_names", []))
        return tuple(word.decode() if isinstance(word, bytes) else str(word) for word in found)
    except (UnicodeDecodeError, TypeError) as error:
        raise InputError(f"{printable(shown)}: expected names of classes, found {reason(error)}") from error


@dataclass(slots=True)
class _Made:
    """A placeholder for an array of numpy, or its dtype, until its state is set."""

    what: str
    arguments: tuple[Any, ...]
    state: tuple[Any, ...] = ()

    def array(self) -> npt.NDArray[np.uint8]:
        """The array of bytes that this is; ValueError if it is another one."""
        _, shape, dtype, fortran, content = self.state
        content = content.encode("latin-1") if isinstance(content, str) else content
        if dtype.what != "numpy dtype" or dtype.arguments[0] not in ("u1", b"u1") or not isinstance(content, bytes):
            raise ValueError("an array that is not of bytes")
        return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")


_KNOWN = {
    "numpy.core.multiarray _reconstruct": "array",
    "numpy._core.multiarray _reconstruct": "array",
    "numpy dtype": "numpy dtype",
    "numpy ndarray": "numpy ndarray",
    "_codecs encode": "bytes",
}


@dataclass(slots=True)
class _Machine:
    """The stack and the memo of a pickle."""

    stack: list[Any] = field(default_factory=list)
    marks: list[int] = field(default_factory=list)
    memo: dict[int, Any] = field(default_factory=dict)

    def since_mark(self) -> list[Any]:
        """Pop everything above the last mark."""
        start = self.marks.pop()
        found = self.stack[start:]
        del self.stack[start:]
        return found

    def take(self, count: int) -> tuple[Any, ...]:
        """Pop the top ``count`` values."""
        found = tuple(self.stack[len(self.stack) - count :])
        del self.stack[len(self.stack) - count :]
        return found

    def step(self, name: str, argument: Any) -> None:
        """Execute one operation; KeyError for an unknown one."""
        match name:
            case "MARK":
                self.marks.append(len(self.stack))
            case "EMPTY_DICT" | "EMPTY_LIST" | "EMPTY_TUPLE":
                self.stack.append({"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_TUPLE": tuple}[name]())
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                self.stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[name])
            case "BININT" | "BININT1" | "BININT2" | "BINBYTES" | "SHORT_BINBYTES" | "BINUNICODE" | "SHORT_BINUNICODE":
                self.stack.append(argument)
            case "BINSTRING" | "SHORT_BINSTRING":
                self.stack.append(argument.encode("latin-1") if isinstance(argument, str) else argument)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "APPEND":
                (value,) = self.take(1)
                self.stack[-1].append(value)
            case "APPENDS":
                found = self.since_mark()
                self.stack[-1].extend(found)
            case "SETITEM" | "SETITEMS":
                found = list(self.take(2)) if name == "SETITEM" else self.since_mark()
                for key, value in zip(found[::2], found[1::2], strict=True):
                    self.stack[-1][key.decode() if isinstance(key, bytes) else str(key)] = value
            case "TUPLE":
                found = self.since_mark()
                self.stack.append(tuple(found))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                self.stack.append(self.take(int(name[-1])))
            case "GLOBAL":
                self.stack.append(_Made(_KNOWN[argument], ()))
            case "REDUCE":
                made, arguments = self.take(2)
                self.stack.append(_reduced(made, arguments))
            case "BUILD":
                (state,) = self.take(1)
                self.stack[-1].state = state
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise KeyError(name)


def _reduced(made: _Made, arguments: tuple[Any, ...]) -> Any:
    """The result of one of the few known functions."""
    if made.what == "bytes":
        return str(arguments[0]).encode("latin-1")
    if made.what not in ("array", "numpy dtype") or made.arguments:
        raise KeyError(made.what)
    return _Made(made.what, arguments)


def read_plain(data: bytes, shown: str) -> dict[str, Any]:
    """Read a pickled dict of bytes, numbers, lists, dicts and arrays of bytes; nothing in it is executed.

    Raises:
        InputError: when it contains something else, or is not a pickle.
    """
    machine = _Machine()
    try:
        for operation, argument, _ in pickletools.genops(data):
            machine.step(operation.name, argument)
        (held,) = machine.stack
        return {key: value.array() if isinstance(value, _Made) else value for key, value in held.items()}
    except Exception as error:  # whatever odd bytes lead to
        raise InputError(
            f"{shown}: expected a file as CIFAR's authors wrote it, a dict of bytes, numbers and lists, found another "
            f"one ({reason(error)[:100]}); nothing in it was executed"
        ) from error
