"""An index of the images in tar files: made by reading the headers once, and stored in a file."""

from __future__ import annotations

import json
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.durable.newfile import new_version
from labelstore.errors import InputError
from pipeline.images.containers import Containers
from pipeline.images.kinds import HEAD_BYTES
from pipeline.images.left_out import LeftOut
from pipeline.images.manifest_cache import CACHE, is_foreign
from pipeline.images.members import Members, named_as_image
from pipeline.images.remote import RemoteFiles
from pipeline.images.tar_headers import entries

_VERSION = 1
_CLASS = ".cls"
_LONGEST_CLASS = 1024  # bytes of a .cls
_NO_CLASS = re.compile(r"(-\d+)?")  # a negative number marks images without one
_REFUSED = {
    "link": ("a link", "with `tar --dereference --hard-dereference`"),
    "other": ("a sparse file or a device", "of plain files, without `--sparse`"),
}


@dataclass(frozen=True, eq=False, slots=True)
class TarIndex:
    """The M images in some tars, by folder and name.

    Attributes:
        members: their paths.
        files: the tar of each, int64 ``[M]``.
        offsets: of the first byte of each in its tar, int64 ``[M]``.
        sizes: in bytes, int64 ``[M]``.
        labels: what the ``.cls`` files hold, each once; empty if there are none.
        classes: of each image the index in ``labels``, int64 ``[M]``; -1 if it has no ``.cls``. Empty without
            labels.
    """

    members: Members
    files: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    classes: npt.NDArray[np.int64]


def load_or_make(containers: Containers | RemoteFiles, location: str, kept: Path | None) -> TarIndex:
    """The index of some tars: the one that is kept, if none of them has changed.

    Args:
        containers: the tars.
        location: of all of them, for messages.
        kept: file of the index; None keeps none.

    Raises:
        InputError: a tar is damaged, or no tar, or holds one name twice.
    """
    location = printable(location)
    if kept is not None and (found := _load(kept, containers, location)):
        return found
    made = make(containers, location)
    if kept is not None:
        _save(kept, containers, made)
    return made


def make(containers: Containers | RemoteFiles, location: str) -> TarIndex:
    """Read the headers of all tars."""
    reader = _Reader(Members(location))
    for number, path in enumerate(containers.paths):
        reader.read(number, path, containers)
    members, where = reader.members, np.array(reader.where, np.int64).reshape(-1, 3)
    names = [printable(Path(path).name) for path in containers.paths]
    order = members.sort(lambda one, other: f" (in {' and '.join({names[where[i, 0]]: 0 for i in (one, other)})})")
    labels = {label: number for number, label in enumerate(dict.fromkeys(reader.label_of.values()))}
    classes = [labels.get(_label_of(path, reader.label_of) or "", -1) for path in members.paths] if labels else []
    files, offsets, sizes = where[order].T
    return TarIndex(members, files, offsets, sizes, tuple(labels), np.array(classes, np.int64))


class _Reader:
    """Collects the images and the ``.cls`` of tars."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.where: list[tuple[int, int, int]] = []  # tar, offset and size of each image
        self.label_of: dict[str, str] = {}

    def read(self, number: int, tar: str, containers: Containers | RemoteFiles) -> None:
        """Read the headers of a tar."""
        members, first = self.members, len(self.where)
        linked: dict[str, tuple[int, int]] | None = None
        open_tar = None if isinstance(containers, Containers) else partial(containers.opened, number)
        for entry in entries(tar, open_tar):
            path = members.path(entry.name)
            if not path:
                continue
            start, size, kind = entry.start, entry.size, entry.kind
            if kind == "folder":
                members.add_folder(path)
                continue
            if kind == "link":
                if linked is None:
                    found = zip(members.paths[first:], self.where[first:], strict=True)
                    linked = {name: (at, length) for name, (_, at, length) in found}
                start, size = linked.get(members.path(entry.target) or "", (-1, 0))
            if kind not in ("file", "link") or start < 0:
                what, how = _REFUSED["other" if kind == "other" else "link"]
                raise InputError(
                    f"{printable(tar)}: {printable(entry.name)}: expected a file, found {what}; make the tar again "
                    f"{how}"
                )
            if path.endswith(_CLASS):
                self.label_of[path.removesuffix(_CLASS)] = _label(
                    tar, entry.name, _head(containers, number, start, min(size, _LONGEST_CLASS))
                )
                continue
            head = None if named_as_image(path) else _head(containers, number, start, min(size, HEAD_BYTES))
            if members.is_image(path, head):
                members.paths.append(path)
                self.where.append((number, start, size))
                if linked is not None:
                    linked[path] = start, size


def _head(containers: Containers | RemoteFiles, file: int, start: int, count: int) -> bytes:
    """The first bytes of an entry; empty if the tar ends before them, which is detected at its end."""
    try:
        return containers.near(file, start, count)
    except OSError:
        return b""


def _label_of(path: str, label_of: dict[str, str]) -> str | None:
    """The content of an image's ``.cls``: of its name without the suffix, or up to its first dot, as WebDataset's."""
    folder, slash, file = path.rpartition("/")
    own = label_of.get(folder + slash + file.rpartition(".")[0])
    return own if own is not None else label_of.get(folder + slash + file.partition(".")[0])


def _label(tar: str, name: str, content: bytes | None) -> str:
    """The class in a ``.cls``."""
    try:
        label = (content or b"").decode().strip()
    except UnicodeDecodeError:
        label = ""
    if not label.isprintable() or len(label) >= _LONGEST_CLASS or _NO_CLASS.fullmatch(label):
        raise InputError(
            f"{printable(tar)}: {printable(name)}: expected the name or the number of a class, found "
            f"{(content or b'')[:20]!r}"
        )
    return str(int(label)) if label.isdecimal() else label


def _identity(containers: Containers | RemoteFiles) -> bytes:
    """Digest of names, sizes and times of the tars; the index is valid only for these."""
    return sha256(
        b"\0".join([*(path.encode(errors="surrogateescape") for path in containers.paths)])
        + containers.sizes.tobytes()
        + containers.times.tobytes()
    ).digest()


def _load(kept: Path, containers: Containers | RemoteFiles, location: str) -> TarIndex | None:
    """The index in a file; None if it is none of these tars."""
    try:
        with kept.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if file["version"] != _VERSION or bytes(file["root"]) != _identity(containers):
                return None
            where, classes, folder_of = (file[name] for name in ("where", "classes", "folder_of"))
            paths, folders, holding, labels = (_split(file[name]) for name in ("paths", "folders", "holding", "labels"))
            left_out = LeftOut.from_json(json.loads(bytes(file["left_out"])))
        members = Members(location, paths, set(folders), left_out, holding, folder_of)
    except Exception:  # whatever damaged bytes lead to, the tars themselves can be read
        return None
    count = len(paths)
    shapes = (where.shape, folder_of.shape, classes.shape) == ((3, count), (count,), (count if labels else 0,))
    types = all(array.dtype == np.int64 for array in (where, classes, folder_of))
    if not shapes or not types or (count and not 0 <= folder_of.min() <= folder_of.max() < len(holding)):
        return None
    return TarIndex(members, where[0], where[1], where[2], tuple(labels), classes)


def _save(kept: Path, containers: Containers | RemoteFiles, index: TarIndex) -> None:
    """Keep an index; a folder that cannot be written, or another file of that name, is no error."""
    if is_foreign(kept):
        return
    with suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True)
        with new_version(kept, CACHE) as file:
            np.savez(
                file,
                version=np.array(_VERSION),
                root=np.frombuffer(_identity(containers), np.uint8),
                where=np.stack([index.files, index.offsets, index.sizes]),
                classes=index.classes,
                folder_of=index.members.folder_of,
                holding=_joined(index.members.holding),
                paths=_joined(index.members.paths),
                folders=_joined(sorted(index.members.folders)),
                labels=_joined(list(index.labels)),
                left_out=np.frombuffer(json.dumps(index.members.left_out.to_json()).encode(), np.uint8),
            )


def _joined(words: list[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("".join(f"{word}\0" for word in words).encode(), np.uint8)


def _split(words: npt.NDArray[np.uint8]) -> list[str]:
    return bytes(words).decode().split("\0")[:-1]
