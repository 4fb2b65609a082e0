"""Which images are where in tar files: found by reading the headers once, and kept in a file."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO, Self

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.durable.newfile import new_version
from labelstore.errors import InputError, reason
from pipeline.images.containers import Containers
from pipeline.images.kinds import HEAD_BYTES
from pipeline.images.left_out import LeftOut
from pipeline.images.manifest_cache import CACHE, is_foreign
from pipeline.images.members import Members, named_as_image

_VERSION = 1
_CLASS = ".cls"
_LONGEST_CLASS = 1024  # bytes of a .cls
_BLOCK = 512
_PIECE = 1 << 20
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)


@dataclass(frozen=True, eq=False, slots=True)
class TarIndex:
    """The M images in some tars.

    Attributes:
        members: their paths.
        files: the tar of each, int64 ``[M]``.
        offsets: of the first byte of each in its tar, int64 ``[M]``.
        sizes: in bytes, int64 ``[M]``.
        labels: what the ``.cls`` files hold, each once; empty where there are none.
        classes: of each image the index in ``labels``, int64 ``[M]``; -1 where it has no ``.cls``.
    """

    members: Members
    files: npt.NDArray[np.int64]
    offsets: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int64]
    labels: tuple[str, ...]
    classes: npt.NDArray[np.int64]


def load_or_make(containers: Containers, location: str, kept: Path | None) -> TarIndex:
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


def make(containers: Containers, location: str) -> TarIndex:
    """Read the headers of all tars."""
    members = Members(location)
    where: list[tuple[int, int, int]] = []
    label_of: dict[str, str] = {}
    for number, path in enumerate(containers.paths):
        for info, path_in, head in _entries(path, members):
            if path_in.endswith(_CLASS):
                label_of[path_in.removesuffix(_CLASS)] = _label(path, info.name, head)
            elif members.is_image(path_in, head):
                members.paths.append(path_in)
                where.append((number, info.offset_data, info.size))
    _require_once(members, containers, [number for number, _, _ in where])
    labels = {label: number for number, label in enumerate(dict.fromkeys(label_of.values()))}
    classes = [labels.get(_label_of(path, label_of) or "", -1) for path in members.paths]
    table = np.array(where, np.int64).reshape(-1, 3)
    return TarIndex(
        members, table[:, 0], table[:, 1], table[:, 2], tuple(labels), np.array(classes, np.int64).reshape(-1)
    )


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
    if not label or "\0" in label or len(label) >= _LONGEST_CLASS or not label.isprintable():
        raise InputError(
            f"{printable(tar)}: {printable(name)}: expected the name or the number of a class, found "
            f"{(content or b'')[:20]!r}"
        )
    return str(int(label)) if label.isdecimal() else label


def _entries(tar: str, members: Members) -> Iterator[tuple[tarfile.TarInfo, str, bytes | None]]:
    """Each file of a tar that is not left out: its entry, its path, and its first bytes where these are needed."""
    shown = printable(tar)
    sizes: dict[str, tuple[int, int]] = {}
    try:
        with open(tar, "rb") as file, _opened(file) as opened:  # noqa: PTH123
            while (info := opened.next()) is not None:
                vars(opened)["members"].clear()  # which keeps all of them
                if info.size < 0:
                    raise tarfile.ReadError("negative size")
                path = members.path(info.name)
                if path is None or not path:
                    continue
                if info.isdir():
                    members.add_folder(path)
                    continue
                if info.islnk() and (target := sizes.get(info.linkname)) is not None:
                    info.offset_data, info.size = target
                elif not info.isreg() or info.issparse():
                    kind = "a link" if info.issym() or info.islnk() else "no regular file"
                    raise InputError(
                        f"{shown}: {printable(info.name)}: expected a file, found {kind}; make the tar again with "
                        f"`tar --dereference --hard-dereference`"
                    )
                sizes[info.name] = info.offset_data, info.size
                yield info, path, _head(file, info, path)
            _require_end(file, opened.offset, shown)
    except tarfile.TarError as error:
        raise InputError(
            f"{shown}: expected a whole tar file, found it damaged or truncated ({reason(error)}); copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror or reason(error)})") from error


class _Header(tarfile.TarInfo):
    """A header of a tar, refused where it would have much of the file read as a name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As of any header; ReadError for one that no tar program writes."""
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _LONG and found.size > _PIECE):
            raise tarfile.ReadError("a header of an impossible size")
        return found


def _opened(file: BinaryIO) -> tarfile.TarFile:
    """A tar, to be read header by header."""
    return tarfile.TarFile(fileobj=file, mode="r", tarinfo=_Header)


def _head(file: BinaryIO, info: tarfile.TarInfo, path: str) -> bytes | None:
    """The first bytes of an entry whose name does not decide what it is."""
    if named_as_image(path):
        return None
    before = file.tell()
    file.seek(info.offset_data)
    head = file.read(min(info.size, _LONGEST_CLASS if path.endswith(_CLASS) else HEAD_BYTES))
    file.seek(before)
    return head


def _require_end(file: BinaryIO, offset: int, shown: str) -> None:
    """Refuse a tar that ends without its end marker, or goes on after it."""
    file.seek(offset)
    marker = file.read(_BLOCK)
    if len(marker) < _BLOCK or any(marker):
        raise InputError(
            f"{shown}: expected a whole tar file, found none of the zeros that end one: it is truncated, or damaged at "
            f"byte {offset:,}; copy it again"
        )
    while more := file.read(_PIECE):
        if more.count(0) < len(more):
            raise InputError(
                f"{shown}: expected the end of the tar file at byte {offset:,}, found more after it, as in several "
                f"tars in one; separate them, or make one of them"
            )


def _require_once(members: Members, containers: Containers, files: list[int]) -> None:
    """Refuse one path in two entries."""
    order = sorted(range(len(members.paths)), key=members.paths.__getitem__)
    for one, other in pairwise(order):
        if members.paths[one] == members.paths[other]:
            places = dict.fromkeys(Path(containers.paths[files[image]]).name for image in (one, other))
            members.refuse_twice(members.paths[one], f" (in {' and '.join(map(printable, places))})")


def _identity(containers: Containers) -> bytes:
    """Names, sizes and times of the tars, digested: the index is valid for these alone."""
    return sha256(
        b"\0".join([*(path.encode(errors="surrogateescape") for path in containers.paths)])
        + containers.sizes.tobytes()
        + containers.times.tobytes()
    ).digest()


def _load(kept: Path, containers: Containers, location: str) -> TarIndex | None:
    """The index in a file; None where it is none of these tars."""
    try:
        with kept.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if file["version"] != _VERSION or bytes(file["root"]) != _identity(containers):
                return None
            where, paths, folders, labels = (file[name] for name in ("where", "paths", "folders", "labels"))
            left_out = LeftOut.from_json(json.loads(bytes(file["left_out"])))
        members = Members(location, _split(paths), set(_split(folders)), left_out)
    except Exception:  # whatever damaged bytes lead to, the tars themselves can be read
        return None
    if where.dtype != np.int64 or where.shape != (4, len(members.paths)):
        return None
    return TarIndex(members, where[0], where[1], where[2], tuple(_split(labels)), where[3])


def _save(kept: Path, containers: Containers, index: TarIndex) -> None:
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
                where=np.stack([index.files, index.offsets, index.sizes, index.classes]),
                paths=_joined(index.members.paths),
                folders=_joined(sorted(index.members.folders)),
                labels=_joined(list(index.labels)),
                left_out=np.frombuffer(json.dumps(index.members.left_out.to_json()).encode(), np.uint8),
            )


def _joined(words: list[str]) -> npt.NDArray[np.uint8]:
    return np.frombuffer("".join(f"{word}\0" for word in words).encode(), np.uint8)


def _split(words: npt.NDArray[np.uint8]) -> list[str]:
    return bytes(words).decode().split("\0")[:-1]
