"""The files of a class folder, packed as people pack them: tar, WebDataset, ZIP, Parquet; CIFAR and IDX files."""

from __future__ import annotations

import io
import json
import random
import struct
import tarfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

Files = Mapping[str, bytes]


def files_in(folder: Path) -> dict[str, bytes]:
    """All files of a folder, by path."""
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def mixed(files: Files, seed: int = 0) -> list[str]:
    """The names in an order that is nobody's."""
    names = sorted(files)
    random.Random(seed).shuffle(names)
    return names


def as_tar(files: Files, path: Path, seed: int = 0) -> Path:
    with tarfile.open(path, "w") as tar:
        for name in mixed(files, seed):
            add(tar, f"./{name}", files[name])
    return path


def as_shards(files: Files, folder: Path, count: int = 3, seed: int = 0) -> Path:
    """Shards whose class is the folder."""
    folder.mkdir(exist_ok=True)
    names = mixed(files, seed)
    for number in range(count):
        with tarfile.open(folder / f"s-{number:02d}.tar", "w") as tar:
            for name in names[number::count]:
                add(tar, name, files[name])
    return folder


def as_webdataset(files: Files, folder: Path, label: Mapping[str, str], count: int = 2, seed: int = 0) -> Path:
    """Shards of samples without folders of classes: an image, its ``.cls``, and a ``.json`` that nobody reads."""
    folder.mkdir(exist_ok=True)
    names = mixed(files, seed)
    for number in range(count):
        with tarfile.open(folder / f"s-{number:02d}.tar", "w") as tar:
            for name in names[number::count]:
                top, _, rest = name.partition("/")
                add(tar, rest, files[name])
                add(tar, f"{rest.rpartition('.')[0]}.cls", label[top].encode())
                add(tar, f"{rest.rpartition('.')[0]}.json", b'{"seen": 1}')
    return folder


def as_zip(files: Files, path: Path, method: int = zipfile.ZIP_DEFLATED, seed: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for name in mixed(files, seed):
            archive.writestr(name, files[name])
    return path


def as_parquet(
    files: Files,
    path: Path,
    classes: Sequence[str],
    *,
    seed: int = 0,
    rows: int = 2,
    part: slice = slice(None),
    **how: Any,
) -> Path:
    """A Parquet file as `datasets` writes image sets, some rows a group."""
    pa = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    names = mixed(files, seed)[part]
    images = [{"bytes": files[name] if how.get("content", True) else None, "path": name} for name in names]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = [list(classes).index(name.split("/")[0]) for name in names]
    table = pa.table({"image": pa.array(images, kind), "label": pa.array(labels, pa.int64())})
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": list(classes)}}
    if how.get("metadata", True):
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    parquet.write_table(table, path, row_group_size=rows)
    return path


def python2_pickle(pixels: npt.NDArray[np.uint8], labels: Sequence[int], key: bytes = b"labels") -> bytes:
    """A batch as Python 2 wrote it, operation by operation."""

    def short(text: bytes) -> bytes:
        return b"U" + bytes([len(text)]) + text

    raw = pixels.tobytes()
    shape = b"K" + bytes([len(pixels)]) + b"M" + struct.pack("<H", 3072) + b"\x86"
    dtype = (
        b"cnumpy\ndtype\n"
        + short(b"u1")
        + b"K\0K\1\x87R(K\3"
        + short(b"|")
        + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    )
    array = b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\0\x85" + short(b"b") + b"\x87R"
    state = b"(K\1" + shape + dtype + b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    numbers = b"](" + b"".join(b"K" + bytes([label]) for label in labels) + b"e"
    batch = short(b"batch_label") + short(b"training batch 1 of 1")
    return b"\x80\x02}q\1(" + batch + short(key) + numbers + short(b"data") + array + state + b"u."


def python2_names(names: Sequence[str], key: bytes = b"label_names") -> bytes:
    words = b"".join(b"U" + bytes([len(name)]) + name.encode() for name in names)
    return b"\x80\x02}q\1U" + bytes([len(key)]) + key + b"](" + words + b"es."


def idx(array: npt.NDArray[np.uint8]) -> bytes:
    return struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
