"""The record of a synthesised image set: two files beside its class folders, from which its images can be made again.

``synthesis.json`` has what made the set: the method and every number, the teacher, the images. It ends with the CRC-32C
of all before it. ``pieces.npz`` has the pieces of each image, and the digest of its file.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.durable import disk, documents
from labelstore.durable.places import SYNTHESIS
from labelstore.durable.removing import Proof
from labelstore.errors import DamagedError, GiftwrapError, InputError
from labelstore.operations.synthesised import MARK, MAX_JSON
from labelstore.spec import Json

PIECES = "pieces.npz"
RECORD_FILES = (SYNTHESIS, PIECES)
FORMAT = 1
MAX_PIECES = 4 << 30
ADVICE = "get the set again from where it came, or make it again"

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class Pieces:
    """The pieces of the n images of a set, or of one job.

    Attributes:
        files: their paths in the set, with ``/``.
        digests: SHA-256 of each file, uint8 ``[n, 32]``.
        targets: class of each, an index of the classes that ``synthesis.json`` lists, int64 ``[n]``.
        numbers: number of each within its class, int64 ``[n]``.
        copied: image of the manifest whose file it is, unchanged; -1 if it was made, int64 ``[n]``.
        arrays: arrays of the method, by name; the first axis is the images.
    """

    files: tuple[str, ...]
    digests: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]
    copied: npt.NDArray[np.int64]
    arrays: Mapping[str, Array]

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index: npt.NDArray[np.integer]) -> Pieces:
        """The images at ``index``, in that order."""
        return Pieces(
            files=tuple(self.files[each] for each in index),
            digests=self.digests[index],
            targets=self.targets[index],
            numbers=self.numbers[index],
            copied=self.copied[index],
            arrays={name: array[index] for name, array in self.arrays.items()},
        )

    def to_bytes(self) -> bytes:
        """As an npz file, the same for the same content."""
        own = {
            "format": np.array(FORMAT),
            "files": np.frombuffer("\0".join(self.files).encode(), np.uint8),
            "digests": self.digests,
            "targets": self.targets,
            "numbers": self.numbers,
            "copied": self.copied,
        }
        if taken := own.keys() & self.arrays.keys():
            raise GiftwrapError(f"pieces: expected names of a method's own, found {', '.join(sorted(taken))}")
        file = io.BytesIO()
        np.savez(file, **own, **self.arrays)  # type: ignore[arg-type]  # names of arrays
        return file.getvalue()


def join_pieces(parts: list[Pieces]) -> Pieces:
    """The images of all parts, by class and number.

    Raises:
        GiftwrapError: when parts have other arrays than the first.
    """
    first = parts[0].arrays
    for part in parts:
        kinds = {name: (array.dtype, array.shape[1:]) for name, array in part.arrays.items()}
        if kinds != {name: (array.dtype, array.shape[1:]) for name, array in first.items()}:
            raise GiftwrapError(
                f"pieces: expected the arrays of {parts[0].files[0]} for every job, found others for {part.files[0]}"
            )
    whole = Pieces(
        files=tuple(file for part in parts for file in part.files),
        digests=np.concatenate([part.digests for part in parts]),
        targets=np.concatenate([part.targets for part in parts]),
        numbers=np.concatenate([part.numbers for part in parts]),
        copied=np.concatenate([part.copied for part in parts]),
        arrays={name: np.concatenate([part.arrays[name] for part in parts]) for name in first},
    )
    return whole.take(np.lexsort([whole.numbers, whole.targets]))


def read_pieces(path: Path) -> Pieces:
    """The pieces in a file.

    Raises:
        DamagedError: it is not such a file.
        OSError: it cannot be read.
    """
    data = disk.read_file(path, MAX_PIECES)
    try:
        arrays = _arrays(data)
        if int(arrays.pop("format")) != FORMAT:
            raise ValueError("of another format")
        files = tuple(bytes(arrays.pop("files")).decode().split("\0"))
        found = Pieces(
            files=files,
            digests=arrays.pop("digests"),
            targets=arrays.pop("targets"),
            numbers=arrays.pop("numbers"),
            copied=arrays.pop("copied"),
            arrays=arrays,
        )
        _require_shapes(found)
    except Exception as error:  # whatever damaged bytes lead to
        raise _damaged(path, f"expected the pieces of a synthesised set, found something else ({error})") from error
    return found


def _require_shapes(found: Pieces) -> None:
    """Raise ValueError unless the arrays are of as many images, and of their types."""
    count = len(found.files)
    for array, dtype, shape in (
        (found.digests, np.uint8, (count, 32)),
        (found.targets, np.int64, (count,)),
        (found.numbers, np.int64, (count,)),
        (found.copied, np.int64, (count,)),
    ):
        if array.dtype != dtype or array.shape != shape:
            raise ValueError("arrays of other types or lengths")
    if any(array.shape[:1] != (count,) for array in found.arrays.values()):
        raise ValueError("arrays of other lengths")
    for file in found.files:
        if not file or file.startswith("/") or ".." in file.split("/"):
            raise ValueError("a file outside of the set")


def _arrays(data: bytes) -> dict[str, Array]:
    """The arrays of an npz file; none takes more memory than the file."""
    found = {}
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        for member in archive.infolist():
            if member.compress_type != zipfile.ZIP_STORED or member.file_size > len(data):
                raise ValueError("a member that is compressed")
            with archive.open(member) as file:
                version = np.lib.format.read_magic(file)
                if version != (1, 0):
                    raise ValueError("an array of another version")
                shape, by_columns, dtype = np.lib.format.read_array_header_1_0(file)
                content = file.read()
            if dtype.hasobject or math.prod(shape) * dtype.itemsize != len(content):
                raise ValueError("an array that is cut off")
            array: Array = np.frombuffer(content, dtype)
            found[member.filename.removesuffix(".npy")] = array.reshape(shape, order="F" if by_columns else "C")
    return found


def is_pieces(path: Path) -> bool:
    """Whether a file begins as pieces do."""
    with path.open("rb") as file:
        head = file.read(4096)
    return head.startswith(b"PK\3\4") and head[30:40] == b"format.npy" and b"files.npy" in head


def record_bytes(values: Mapping[str, Json]) -> bytes:
    """The bytes of ``synthesis.json``, indented for readers."""
    return json.dumps(documents.stamp({MARK: FORMAT, **values}), indent=1, allow_nan=False).encode() + b"\n"


def read_record(path: Path) -> dict[str, Json]:
    """The content of ``synthesis.json``, without its mark and its checksum.

    Raises:
        DamagedError: it was changed, or is another file.
        InputError: it is of a later version.
        OSError: it cannot be read.
    """
    try:
        values = documents.parse(path, disk.read_file(path, MAX_JSON))
        if MARK not in values:
            raise _damaged(path, "expected the record of a synthesised set, found another file")
        documents.require_stamp(path, values)
    except DamagedError as error:
        raise _damaged(path, error.why or str(error)) from error
    if values[MARK] != FORMAT:
        raise InputError(f"{path}: expected format {FORMAT}, found {values[MARK]!r}; read it with a later giftwrap")
    return {key: value for key, value in values.items() if key not in (MARK, "crc32c")}


def is_record(path: Path) -> bool:
    """Whether a file is a record; one that is damaged, or another file, is none."""
    try:
        read_record(path)
    except GiftwrapError:
        return False
    return True


def record_of(folder: Path) -> dict[str, Json] | None:
    """The record of an image set; None if it has none.

    Raises:
        GiftwrapError: its file was changed or is another one.
    """
    path = folder / SYNTHESIS
    return read_record(path) if path.is_file() else None


RECORD = Proof("the record of a synthesised set", is_record)
PIECES_OF_SET = Proof("the pieces of a synthesised set", is_pieces)


def _damaged(path: Path, why: str) -> DamagedError:
    error = DamagedError(f"{path}: {why}; {ADVICE}")
    error.why = why
    return error
