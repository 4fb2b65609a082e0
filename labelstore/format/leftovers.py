"""Files that a stopped call can have left in a store's folder, recognised by name and content.

Nothing here changes a file: these are the proofs that `labelstore.durable.removing` takes.
"""

from __future__ import annotations

import json
import math
import os
import re
import stat
from dataclasses import replace
from functools import cache
from itertools import product
from pathlib import Path
from typing import get_args

import numpy as np

from labelstore.command.encoding_options import CodecName
from labelstore.durable import disk, documents
from labelstore.durable.publish import PARTIAL
from labelstore.durable.removing import ABSENT, EMPTY, Proof
from labelstore.encodings import ENCODINGS
from labelstore.errors import GiftwrapError
from labelstore.format.arrays import ArrayLayout, StoreLayout, group_metadata
from labelstore.format.shards import ABSENT as LEFT_OUT
from labelstore.format.shards import CRC_BYTES
from labelstore.spec import BlockShape, Identity

METADATA, LEASE = "zarr.json", "lease.json"
LOCK = "lease.lock"  # an empty file, locked in the place of its folder on file systems of a network
TABLES = ("images/digest", "images/target")  # the arrays that an empty store has shards of
MAX_METADATA = 1 << 20
COLUMNS = 64  # every encoding takes so many
STAGED_DOCUMENTS = re.compile(
    r"lease\.json|zarr\.json|markers~(\d+\.\d+|calibration)\.json|seals~\d+(\.\d+\.[0-9a-f]{16})?\.json"
)


@cache
def kinds() -> dict[str, list[ArrayLayout]]:
    """The arrays that stores have, by name: one of each encoding and codec, of some store."""
    plain = Identity(
        images=1, classes=("",), columns=COLUMNS, size=1, seed=0, group=1, manifest="", skipped=(), teacher={},
        engine={}, plan={}, crop_columns=("",), encoding={}, renderer={}, block=BlockShape(views=1, positions=1),
    )  # fmt: skip
    found: dict[str, list[ArrayLayout]] = {}
    for name, codec in product(ENCODINGS, (None, *get_args(CodecName))):
        encoding = {"name": name} if codec is None else {"name": name, "codec": codec}
        try:
            arrays = StoreLayout.of(replace(plain, encoding=encoding)).all
        except GiftwrapError:  # of another encoding's codecs
            continue
        for array in arrays:
            found.setdefault(array.name, []).append(array)
    return found


def array_of(name: str, data: bytes) -> ArrayLayout | None:
    """The array ``name`` of some store whose zarr.json this is; None when it is none of ours."""
    try:
        found = json.loads(data)
        (sharding,) = found["codecs"]
        axes, shape = tuple(found["dimension_names"]), found["shape"]
        known = ArrayLayout(
            name=name,
            dtype=found["data_type"],
            fill=found["fill_value"],
            axes=axes,
            shape=tuple(0 if axis == "view" else size for axis, size in zip(axes, shape, strict=True)),
            shard=tuple(found["chunk_grid"]["configuration"]["chunk_shape"]),
            chunk=tuple(sharding["configuration"]["chunk_shape"]),
        )
        views = next((size for axis, size in zip(axes, shape, strict=True) if axis == "view"), 0)
        for kind in kinds().get(name, []):
            array = replace(known, codec=kind.codec)
            same = (array.dtype, array.fill, array.axes) == (kind.dtype, kind.fill, kind.axes)
            if same and array.metadata(views) == data:
                return array
    except (ValueError, LookupError, TypeError, RecursionError, ArithmeticError):
        pass
    return None


def is_shard(array: ArrayLayout, path: Path) -> bool:
    """Whether a file is built as a shard of an array: chunks one after another, then their index with its CRC-32C."""
    size, crcs = math.prod(array.grid) * 16 + CRC_BYTES, math.prod(array.grid) * CRC_BYTES * array.chunk_crcs
    try:
        with os.fdopen(_open(path), "rb", buffering=0) as file:
            end = os.fstat(file.fileno()).st_size - size - crcs
            if end < 0:
                return False
            file.seek(end + crcs)
            table = file.read(size)
    except OSError:
        return False
    if len(table) != size or disk.crc32c(table[:-CRC_BYTES]) != int.from_bytes(table[-CRC_BYTES:], "little"):
        return False
    index = np.frombuffer(table[:-CRC_BYTES], "<u8").reshape(-1, 2)
    present = index[(index != LEFT_OUT).any(axis=1)]
    if not len(present) or (present > end).any():
        return False
    places = present.astype(np.int64)
    starts = np.concatenate([[0], np.cumsum(places[:, 1])])
    whole = array.codec != "raw" or bool((places[:, 1] == array.chunk_bytes + CRC_BYTES).all())
    return whole and np.array_equal(places[:, 0], starts[:-1]) and starts[-1] == end


def shard_of(array: ArrayLayout) -> Proof:
    """The proof of a leftover shard of an array."""
    return Proof(f"a shard of {array.name}", lambda path: is_shard(array, path))


def metadata_of(array: ArrayLayout) -> Proof:
    """The proof of the zarr.json of a store's own array, for any number of views."""
    return Proof(f"the metadata of {array.name}", lambda path: array_of(array.name, _content(path)) == array)


def is_staged(path: Path) -> bool:
    """Whether a path in a folder of temporaries has a name that a store's file has there."""
    name = path.name
    if STAGED_DOCUMENTS.fullmatch(name):
        return True
    folder, _, file = name.rpartition("~")
    arrays = kinds()
    if file == METADATA:
        return folder.replace("~", "/") in arrays or folder in _groups()
    return any(array.block(file) is not None for array in arrays.get(folder.replace("~", "/"), []))


STAGED = Proof("a temporary of a store", is_staged)


def of_creation(root: Path) -> list[tuple[Path, Proof]]:
    """The files in the folder of a store whose creation did not finish, each with the proof that it is ours.

    In the order in which they are to be removed: shards before the metadata that identifies them. Of a foreign
    file or folder the proof does not hold.
    """
    found = [(path, _proof_of(root, path)) for path in _below(root)]
    return sorted(found, key=lambda each: (each[0].name == METADATA, each[0]))


def folders() -> set[str]:
    """The folders that stores have, below their roots."""
    return {*kinds(), *_groups(), "markers", "seals", PARTIAL}


def _proof_of(root: Path, path: Path) -> Proof:
    """The proof of a file of an empty store; of another name, one that never holds."""
    folder, _, file = path.relative_to(root).as_posix().rpartition("/")
    if file == LOCK and folder in ("", PARTIAL):
        return EMPTY
    if folder == PARTIAL:
        return STAGED
    if (folder, file) == ("", LEASE):
        return Proof("a lease", _is_lease)
    if file == METADATA and folder in kinds():
        return Proof(f"the metadata of {folder}", lambda found: array_of(folder, _content(found)) is not None)
    if file == METADATA and folder in _groups():
        return Proof("the metadata of a group", lambda found: _content(found) == group_metadata({}))
    if any(f"{folder}/{file}" == array.file() for name in TABLES for array in kinds()[name]):
        return Proof(f"a shard of {folder}", lambda found: _is_shard_beside_its_metadata(folder, found))
    return ABSENT


def _is_shard_beside_its_metadata(name: str, path: Path) -> bool:
    array = array_of(name, _content(path.with_name(METADATA)))
    return array is not None and is_shard(array, path)


def _is_lease(path: Path) -> bool:
    try:
        return documents.read(path).keys() >= {"build", "host", "pid"}
    except (OSError, GiftwrapError):
        return False


def _groups() -> set[str]:
    return {name.rpartition("/")[0] for name in kinds()} - {""}


def _below(root: Path) -> list[Path]:
    """Files below a folder, and folders that a store does not have; links are not followed."""
    known, found, waiting = folders(), list[Path](), [root]
    while waiting:
        for path in sorted(waiting.pop().iterdir()):
            if stat.S_ISDIR(os.lstat(path).st_mode) and path.relative_to(root).as_posix() in known:
                waiting.append(path)
            else:
                found.append(path)
    return sorted(found)


def _content(path: Path) -> bytes:
    """The bytes of a small regular file; empty if it is something else."""
    try:
        with os.fdopen(_open(path), "rb") as file:
            return file.read(MAX_METADATA)
    except OSError:
        return b""


def _open(path: Path) -> int:
    """A descriptor of a regular file; OSError when it is none."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(f"{path}: is no file")
    return descriptor
