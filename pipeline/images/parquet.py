"""Parquet files as Hugging Face's image sets have them: an image's bytes, its name and its class a row.

Rows are read by whole row groups, of which the last used are kept. pyarrow is imported when it is needed.
"""

from __future__ import annotations

import errno
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from labelstore.command.names import natural_key, printable
from labelstore.errors import AddressError, InputError, reason
from labelstore.storage_table import as_typed, scheme_of
from pipeline.images.addresses import files_at
from pipeline.images.class_folder import named, order_classes, require_one_form
from pipeline.images.class_names import FLAG, read_class_names, refuse_class_names, require_named
from pipeline.images.containers import Containers
from pipeline.images.patterns import files_named
from pipeline.images.remote import RemoteFiles, read_together
from pipeline.images.row_groups import RowGroups
from pipeline.images.source import Listing, Stamp
from pipeline.images.source_table import Request, SourceKind

SUFFIX = ".parquet"
_LABELS = ("label", "fine_label")  # which of several columns of classes is meant
_SPLIT = re.compile(r"(.+)-\d+-of-\d+(-[0-9a-f]+)?")
Int64Array = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Columns:
    """The columns of a table that are read.

    Attributes:
        content: column of the bytes, such as ``image.bytes``.
        path: column of the names; None if there is none.
        label: column of the classes.
        classes: names of the class indexes, where the file has them.
    """

    content: str
    path: str | None
    label: str
    classes: tuple[str, ...] | None


class ParquetImages:
    """The images of Parquet files: an `ImageSource`.

    Attributes:
        listing: the images, by class and name, whichever file they are in.
    """

    def __init__(self, path: Path, request: Request) -> None:
        """List the files by their footers, classes and names; no image is read.

        Raises:
            InputError: pyarrow is missing; a file is truncated, or has no images, no bytes of them, or no classes.
        """
        self._containers: Containers | RemoteFiles
        self._containers = files_at(path, "parquet") if scheme_of(path) else Containers(files_of(path))
        tables = [_Table(file, self._source(number)) for number, file in enumerate(self._containers.paths)]
        columns = tables[0].columns
        for table in tables[1:]:
            if table.columns != columns:
                raise InputError(
                    f"{table.shown}: expected the columns and classes of {tables[0].shown}, found others; give files "
                    f"of one set"
                )
        self._groups = RowGroups(
            size=lambda file, group: int(tables[file].content_of(group).total_uncompressed_size),
            read=lambda file, group: tables[file].read(columns.content, group),
        )
        located = [table.located(number) for number, table in enumerate(tables)]
        where: Int64Array = np.concatenate(located)
        classes, targets = _classes(tables, request)
        names = _names(tables, classes, targets)
        gone = frozenset(request.leave_out)
        order = [row for row in _order(names, targets) if names[row] not in gone]
        _require_full(tables[0].shown, classes, targets[order])
        self._where = where[order]
        files = self._where[:, 0]
        self.listing = Listing(
            location=str(as_typed(path) if scheme_of(path) else path.absolute()),
            classes=classes,
            names=[names[row] for row in order],
            targets=targets[order],
            sizes=np.zeros(len(order), np.int64),
            stamps=self._containers.times[files],
            layout=np.array(order, np.int64),
            remote=bool(scheme_of(path)),
        )

    def _source(self, number: int) -> Callable[[], str | BinaryIO]:
        """The argument that opens a file in pyarrow: its path, or a remote file that is read by ranges."""
        files = self._containers
        return (lambda: files.opened(number)) if isinstance(files, RemoteFiles) else (lambda: files.paths[number])

    def place(self, image: int) -> str:
        """The file of an image, and its name."""
        return f"{self._containers.paths[int(self._where[image, 0])]}: {self.listing.names[image]}"

    def stamp(self, image: int) -> Stamp:
        """No size, and the modification time of the file."""
        return 0, self._containers.stamp(int(self._where[image, 0]))

    def open(self, image: int) -> BytesIO:
        """The image in memory."""
        return BytesIO(self.read(image))

    def read(self, image: int) -> bytes:
        """The bytes of an image; its row group is read with it."""
        file, group, row = self._where[image].tolist()
        found = self._groups.get(file, group)[row].as_py()
        if not isinstance(found, bytes):
            raise OSError(errno.EIO, "its row has no bytes")
        return found

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The bytes of some images, read one by one; at an address many at a time."""
        return read_together(self, images) if self.listing.remote else map(self.read, images)


def recognises(path: Path) -> bool:
    """Whether a path is a Parquet file, a pattern of them, or a folder that has some, there or in ``data``."""
    try:
        if path.name.lower().endswith(SUFFIX):
            return not path.is_dir()
        return path.is_dir() and bool(_in_folder(path))
    except OSError:
        return False


KIND = SourceKind(recognises, ParquetImages)


def _in_folder(folder: Path) -> list[str]:
    """The Parquet files in a folder, or else in its ``data``."""
    for place in (folder, folder / "data"):
        if place.is_dir() and (found := [str(entry) for entry in place.iterdir() if entry.suffix.lower() == SUFFIX]):
            return found
    return []


def files_of(path: Path) -> list[str]:
    """The files that ``--images`` names, in order.

    Raises:
        InputError: none is there, or they are of several splits.
    """
    if path.is_dir():
        found = _in_folder(path)
        splits = sorted({match[1] if (match := _SPLIT.fullmatch(Path(file).stem)) else "" for file in found})
        if len(splits) > 1 and "" not in splits:
            one = "train" if "train" in splits else splits[0]
            raise InputError(
                f"{printable(str(path))}: expected one split, found {named(splits)}; give one of them: "
                f"--images '{printable(str(Path(found[0]).parent))}/{printable(one)}-*{SUFFIX}'"
            )
    else:
        found = files_named(path)
    if not found:
        raise InputError(f"{printable(str(path))}: expected Parquet files, found none; check the path")
    return sorted((str(Path(file).absolute()) for file in found), key=natural_key)


def _parquet() -> Any:
    """The module for Parquet of pyarrow."""
    try:
        return import_module("pyarrow.parquet")
    except ImportError as error:
        raise InputError(
            f"Parquet files are read by pyarrow, which is not installed ({reason(error)}): "
            f"pip install 'giftwrap[parquet]'"
        ) from error


class _Table:
    """One file: its footer, and the columns that are read."""

    def __init__(self, path: str, source: Callable[[], str | BinaryIO]) -> None:
        self.path, self.shown, self._source = path, printable(path), source
        try:
            self.footer = _parquet().read_metadata(source())
            self.columns = _columns(self.shown, self.footer.schema.to_arrow_schema())
            self._require_bytes()
        except InputError:
            raise
        except Exception as error:  # whatever pyarrow raises: ArrowInvalid, OSError, ...
            if isinstance(error.__cause__, AddressError):
                raise error.__cause__ from None
            raise InputError(
                f"{self.shown}: expected a whole Parquet file, found it damaged or truncated ({reason(error)}); copy "
                f"it again"
            ) from error

    def _require_bytes(self) -> None:
        """Refuse images that are only paths."""
        lacking = 0
        for group in range(self.footer.num_row_groups):
            statistics = self.content_of(group).statistics
            lacking += statistics.null_count if statistics is not None and statistics.has_null_count else 0
        if lacking:
            raise InputError(
                f"{self.shown}: expected the bytes of each image, found {lacking:,} of {self.footer.num_rows:,} rows "
                f"with only a path; write it again with the images in it (`embed_external_files=True`)"
            )

    def content_of(self, group: int) -> Any:
        """The footer's part on the bytes of images in a row group."""
        part = self.footer.row_group(group)
        return next(
            part.column(index)
            for index in range(part.num_columns)
            if part.column(index).path_in_schema == self.columns.content
        )

    def located(self, file: int) -> Int64Array:
        """File, row group and row within it of each row, int64 ``[n, 3]``."""
        counts = [self.footer.row_group(group).num_rows for group in range(self.footer.num_row_groups)]
        rows = [np.arange(count, dtype=np.int64) for count in counts] or [np.arange(0, dtype=np.int64)]
        groups = np.repeat(np.arange(len(counts), dtype=np.int64), counts)
        return np.stack([np.full(len(groups), file, np.int64), groups, np.concatenate(rows)], axis=1)

    def read(self, column: str, group: int | None = None) -> Any:
        """One column, all of it or of a row group, as an Arrow array; its outermost struct is taken apart.

        Raises:
            OSError: it cannot be read.
        """
        try:
            with _parquet().ParquetFile(self._source(), metadata=self.footer) as file:
                if group is None:
                    table = file.read(columns=[column], use_threads=False)
                else:
                    table = file.read_row_group(group, columns=[column], use_threads=False)
            held = table.column(0).combine_chunks()
            for part in column.split(".")[1:]:
                held = held.field(part)
        except Exception as error:  # whatever pyarrow raises
            raise OSError(errno.EIO, f"the Parquet file has changed or is damaged ({reason(error)})") from error
        return held

    def values(self, column: str) -> list[Any]:
        """The values of a column."""
        try:
            found: list[Any] = self.read(column).to_pylist()
        except (OSError, ValueError) as error:  # of text that is no UTF-8, too
            why = error.strerror if isinstance(error, OSError) else reason(error)
            raise InputError(f"{self.shown}: column {column}: {why}; copy the file again") from error
        return found


def _columns(shown: str, schema: Any) -> Columns:
    """The columns of images and classes of a table."""
    features = _features(schema)
    types = {field.name: field.type for field in schema}
    images = [name for name, kind in types.items() if _holds_images(name, kind, features)]
    if len(images) != 1:
        what = f"several, {named(images)}" if images else f"the columns {named(list(types))}"
        raise InputError(f"{shown}: expected one column of images (a struct of bytes and path), found {what}")
    image, kind = images[0], types[images[0]]
    parts = [part.name for part in kind] if str(kind).startswith("struct") else []
    content = f"{image}.bytes" if parts else image
    path = f"{image}.path" if "path" in parts else None
    labels = [name for name in types if features.get(name, {}).get("_type") == "ClassLabel"]
    labels = labels or [name for name in _LABELS if name in types]
    chosen = labels[0] if len(labels) == 1 else next((name for name in _LABELS if name in labels), None)
    if chosen is None:
        what = f"several, {named(labels)}" if labels else f"the columns {named(list(types))}"
        raise InputError(f"{shown}: expected one column of classes (a ClassLabel, or `label`), found {what}")
    names = features.get(chosen, {}).get("names")
    return Columns(content, path, chosen, _words(names))


def _words(names: Any) -> tuple[str, ...] | None:
    """The names of a ClassLabel; None where they are no list of words."""
    return tuple(names) if isinstance(names, list) and all(isinstance(name, str) for name in names) else None


def _features(schema: Any) -> Mapping[str, Any]:
    """Hugging Face's metadata of each column; empty if there are none."""
    try:
        found = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    return (
        {str(key): value for key, value in found.items() if isinstance(value, dict)} if isinstance(found, dict) else {}
    )


def _holds_images(name: str, kind: Any, features: Mapping[str, Any]) -> bool:
    """Whether a column has images: a struct with bytes, or bytes marked as images by metadata or name."""
    if str(kind).startswith("struct"):
        return "binary" in {str(part.type).removeprefix("large_") for part in kind if part.name == "bytes"}
    known = features.get(name, {}).get("_type") == "Image" or name in ("image", "img")
    return known and str(kind).removeprefix("large_") == "binary"


def _classes(tables: Sequence[_Table], request: Request) -> tuple[tuple[str, ...], Int64Array]:
    """Class names in target order, and the target of each row."""
    first, columns = tables[0], tables[0].columns
    values = [value for table in tables for value in table.values(columns.label)]
    if not values:
        raise InputError(f"{first.shown}: expected images, found no rows")
    if all(isinstance(value, str) and value for value in values):
        refuse_class_names(Path(first.path), request.class_names)
        order = order_classes(set(values), request.class_order)
        places = {name: target for target, name in enumerate(order)}
        return tuple(order), np.array([places[value] for value in values], np.int64)
    wrong = next((value for value in values if type(value) is not int or value < 0), None)
    if wrong is not None or any(value is None for value in values):
        raise InputError(
            f"{first.shown}: column {columns.label}: expected a class for each row, found {wrong!r}; give a split that "
            f"has classes"
        )
    if columns.classes is not None:
        refuse_class_names(Path(first.path), request.class_names)
        names = columns.classes
    elif request.class_names is not None:
        names = read_class_names(request.class_names)
    else:
        raise InputError(
            f"{first.shown}: the classes are numbers, up to {max(values)}, and the file has no names of them (no "
            f"ClassLabel); {FLAG} gives them: comma-separated, or a file with one a line or of JSON"
        )
    require_named(f"{first.shown}: column {columns.label}", max(values), names)
    require_one_form(first.path, names)
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise InputError(f"{first.shown}: expected each class name once, found {named(twice)} again")
    return names, np.array(values, np.int64)


def _names(tables: Sequence[_Table], classes: Sequence[str], targets: Int64Array) -> list[str]:
    """A unique name of each row: its class and its path, or its number where paths are missing or not unique."""
    column = tables[0].columns.path
    paths = [path for table in tables for path in table.values(column)] if column else []
    pairs = zip(targets.tolist(), paths, strict=False)
    named_rows = [name for target, path in pairs if (name := _name(classes[target], path or ""))]
    if len(named_rows) == len(targets) == len(set(named_rows)):
        return named_rows
    digits = len(str(len(targets) - 1))
    return [f"{classes[target]}/{row:0{digits}d}" for row, target in enumerate(targets.tolist())]


def _name(folder: str, path: str) -> str:
    """The name of an image of a class, from the path in its row; empty if that names nothing."""
    parts = [part for part in path.replace("\0", "").split("/") if part not in ("", ".")]
    if path.startswith("/") or ".." in parts:
        parts = parts[-1:]
    if not parts:
        return ""
    return "/".join(parts if parts[0] == folder and len(parts) > 1 else [folder, *parts])


def _order(names: Sequence[str], targets: Int64Array) -> list[int]:
    """Rows by class, then folder, then file name, as in a class folder."""
    keys = [(target, *name.rpartition("/")[::2]) for target, name in zip(targets.tolist(), names, strict=True)]
    return sorted(range(len(names)), key=keys.__getitem__)


def _require_full(shown: str, classes: Sequence[str], targets: Int64Array) -> None:
    """Refuse classes without images."""
    counts = np.bincount(targets, minlength=len(classes))
    if empty := [name for name, count in zip(classes, counts, strict=True) if not count]:
        raise InputError(f"{shown}: expected images of every class, found none of {named(empty)}; give all files")
