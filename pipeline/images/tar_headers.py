"""The headers of a tar file: ordinary ones are read here, in a fraction of the time; all others by Python's tarfile."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, NamedTuple, Self

from labelstore.command.names import printable
from labelstore.errors import InputError, reason

_BLOCK = 512
_PIECE = 1 << 20
COMPRESSED = (b"\x1f\x8b", b"BZh", b"\xfd7zXZ\0", b"\x28\xb5\x2f\xfd")
"""What gzip, bzip2, xz and zstd files begin with."""
_LONG = (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
_FILE, _LINK, _FOLDER = ord("0"), ord("1"), ord("5")


class Entry(NamedTuple):
    """The content of a header.

    Attributes:
        name: the name in the header.
        kind: ``file``, ``folder``, ``link`` (another name of an earlier file), ``symlink`` or ``other``.
        start: of its content in the tar.
        size: of its content in bytes.
        target: what a link points to.
    """

    name: str
    kind: str
    start: int
    size: int
    target: str = ""


def entries(tar: str, open_tar: Callable[[], BinaryIO] | None = None) -> Iterator[Entry]:
    """Every entry of a tar file, in order; its end is checked.

    Args:
        tar: its path, or its address where ``open_tar`` is given.
        open_tar: opens it where it is no file of this machine.

    Raises:
        InputError: the file is no tar, damaged, or truncated, or has something after its end.
    """
    shown = printable(tar)
    try:
        with open_tar() if open_tar else Path(tar).open("rb") as file:
            yield from _entries(file, shown)
    except tarfile.TarError as error:
        with suppress(OSError), open_tar() if open_tar else Path(tar).open("rb") as file:
            if file.read(6).startswith(COMPRESSED):
                raise compressed(tar) from error
        raise InputError(
            f"{shown}: expected a whole tar file, found it damaged or truncated ({reason(error)}); copy it again"
        ) from error
    except OSError as error:
        raise InputError(f"{shown}: cannot be read ({error.strerror or reason(error)})") from error


def compressed(tar: str) -> InputError:
    """The error for a compressed tar."""
    return InputError(
        f"{printable(tar)}: expected a tar that is not compressed, since a compressed one has no image that can be "
        f"read alone; decompress it first: `gunzip`, `unxz` or `zstd -d`, or unpack it"
    )


def _entries(file: BinaryIO, shown: str) -> Iterator[Entry]:
    """As `entries`."""
    position, plain = 0, True
    read_at = _reading(file)
    with tarfile.TarFile(fileobj=file, mode="r", tarinfo=_Header) as tar:
        vars(tar)["firstmember"] = None  # it is read again
        while True:
            found = _plain(read_at(position), position) if plain else None
            if found is not None:
                position = found.start + -(-found.size // _BLOCK) * _BLOCK
                yield found
                continue
            file.seek(position)
            vars(tar)["offset"] = position
            info = tar.next()
            vars(tar)["members"].clear()  # which keeps all of them
            position = vars(tar)["offset"]
            if info is None:
                break
            if info.size < 0:
                raise tarfile.ReadError("an entry of a negative size")
            plain = plain and not tar.pax_headers  # which hold for all entries that follow
            yield Entry(info.name, _kind(info), info.offset_data, info.size, info.linkname)
    _require_end(file, position, shown)


def _reading(file: BinaryIO) -> Callable[[int], bytes]:
    """What reads a block at an offset: of a file of this machine, one call of the system."""
    try:
        descriptor = file.fileno()
    except OSError:
        return lambda position: (file.seek(position), file.read(_BLOCK))[1]
    return lambda position: os.pread(descriptor, _BLOCK, position)


def _kind(info: tarfile.TarInfo) -> str:
    """The kind of an entry."""
    if info.isdir():
        return "folder"
    if info.islnk():
        return "link"
    if info.issym():
        return "symlink"
    return "file" if info.isreg() and not info.issparse() else "other"


def _plain(head: bytes, position: int) -> Entry | None:
    """What an ordinary header of a file, folder or hard link declares; None where tarfile is to read it."""
    kind = head[156] if len(head) == _BLOCK else None
    if kind not in (_FILE, _LINK, _FOLDER) or head[257:262] != b"ustar" or head[124] >= 0x80:
        return None
    prefix = head[345:500].split(b"\0", 1)[0]
    if prefix and head[257:263] != b"ustar\0":
        return None
    try:
        size = int(head[124:136].strip(b"\0 ") or b"0", 8)
        checksum = int(head[148:156].strip(b"\0 "), 8)
        name = head[:100].split(b"\0", 1)[0].decode()
        target = head[157:257].split(b"\0", 1)[0].decode()
        whole = f"{prefix.decode()}/{name}" if prefix else name
    except ValueError:
        return None
    if checksum != sum(head) - sum(head[148:156]) + 8 * 32 or size < 0:
        return None
    if kind != _FILE and size:
        return None
    if kind == _FOLDER:
        return Entry(whole.rstrip("/"), "folder", position + _BLOCK, 0)
    if kind == _LINK:
        return Entry(whole, "link", position + _BLOCK, 0, target)
    return Entry(whole, "file", position + _BLOCK, size)


class _Header(tarfile.TarInfo):
    """A header, refused where it would have much of the file read as a name."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> Self:
        """As of any header; ReadError for one that no tar program writes."""
        found = super().frombuf(buf, encoding, errors)
        if found.size < 0 or (found.type in _LONG and found.size > _PIECE):
            raise tarfile.ReadError("a header of an impossible size")
        return found


def _require_end(file: BinaryIO, offset: int, shown: str) -> None:
    """Refuse a tar that ends without its end marker, or has more after it."""
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
