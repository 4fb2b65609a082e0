"""A class folder in a ZIP archive: its directory is the index; each image is read by one call, and inflated."""

from __future__ import annotations

import errno
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.errors import InputError, reason
from labelstore.storage_table import as_typed, scheme_of
from pipeline.images.addresses import files_at
from pipeline.images.class_names import refuse_class_names
from pipeline.images.containers import Containers
from pipeline.images.kinds import HEAD_BYTES
from pipeline.images.members import Members, named_as_image
from pipeline.images.places import Place, not_there, split
from pipeline.images.remote import RemoteFiles, read_together
from pipeline.images.source import Listing, Stamp
from pipeline.images.source_table import Request, SourceKind

SUFFIX = ".zip"
_LOCAL = struct.Struct("<4s22xHH")  # a member's own header: lengths of its name and of what is after it
_LOCAL_MAGIC = b"PK\3\4"
_SLACK = 128  # bytes that a member's own header may be longer than its entry in the directory
_ENCRYPTED = 1
_METHODS = {zipfile.ZIP_STORED: "stored", zipfile.ZIP_DEFLATED: "deflated"}


class _Member(NamedTuple):
    """The place of a member in the archive, from the archive's directory.

    Attributes:
        start: of the member's own header.
        names: bytes of its name and what is after it, about.
        packed: bytes of its content in the archive.
        size: bytes of its content.
        checksum: CRC-32 of its content.
        method: of its compression.
    """

    start: int
    names: int
    packed: int
    size: int
    checksum: int
    method: int

    @classmethod
    def of(cls, info: zipfile.ZipInfo) -> _Member:
        """An entry of the directory."""
        names = len(info.filename.encode()) + len(info.extra)
        return cls(info.header_offset, names, info.compress_size, info.file_size, info.CRC, info.compress_type)


_SIZE = _Member._fields.index("size")


class ZipImages:
    """The images of a ZIP archive: an `ImageSource`.

    Attributes:
        listing: the images, as of a class folder.
    """

    def __init__(self, path: Path, request: Request) -> None:
        """List the archive by its directory.

        Raises:
            InputError: it is damaged, encrypted or compressed in another way, holds one name twice, or has no classes.
        """
        refuse_class_names(path, request.class_names)
        place = _split_address(path) if scheme_of(path) else split(path)
        if place is None:
            raise not_there(path)
        self._containers: Containers | RemoteFiles = (
            files_at(place.file, "zip") if scheme_of(path) else Containers([str(place.file.absolute())])
        )
        members = Members(printable(str(as_typed(place.file))))
        if len(self._containers.paths) > 1:
            raise InputError(f"{members.location}: expected one ZIP archive, found several; give one of them")
        table = _images(self._containers, members)[members.sort()]
        chosen = members.choose(place.inside, request.class_order, request.leave_out)
        self._table, self._images, self._paths = table[chosen.images], chosen.images, members.paths
        count = len(chosen.names)
        self.listing = Listing(
            location=str(as_typed(path) if scheme_of(path) else path.absolute()),
            classes=chosen.classes,
            names=chosen.names,
            targets=chosen.targets,
            sizes=self._table[:, _SIZE].copy(),
            stamps=np.repeat(self._containers.times, count),
            layout=np.argsort(np.argsort(self._table[:, 0])).astype(np.int64),
            left_out=members.left_out,
            remote=bool(scheme_of(path)),
        )

    def place(self, image: int) -> str:
        """The archive, and the path in it."""
        return f"{self._containers.paths[0]}: {self._paths[int(self._images[image])]}"

    def stamp(self, image: int) -> Stamp:
        """The image's size, and the modification time of the archive."""
        return int(self.listing.sizes[image]), self._containers.stamp(0)

    def open(self, image: int) -> BytesIO:
        """The image in memory."""
        return BytesIO(self.read(image))

    def read(self, image: int) -> bytes:
        """The bytes of an image; OSError if they are not those of its checksum."""
        return _content(self._containers, _Member(*self._table[image].tolist()))

    def read_many(self, images: Sequence[int]) -> Iterator[bytes]:
        """The bytes of some images, each read when its turn comes; at an address many at a time."""
        return read_together(self, images) if self.listing.remote else map(self.read, images)


def recognises(path: Path) -> bool:
    """Whether a path is a ZIP archive, or a folder in one."""
    place = split(path)
    return place is not None and place.file.name.lower().endswith(SUFFIX)


KIND = SourceKind(recognises, ZipImages)


def _split_address(path: Path) -> Place:
    """As `split`, of an address, by the names in it."""
    file = next((each for each in (path, *path.parents) if each.name.lower().endswith(SUFFIX)), path)
    return Place(file, "/".join(path.parts[len(file.parts) :]))


def _images(containers: Containers | RemoteFiles, members: Members) -> npt.NDArray[np.int64]:
    """The `_Member` of each image in an archive, in the order of ``members.paths``, int64 ``[M, 6]``."""
    try:
        with containers.opened(0) as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, NotImplementedError, ValueError, struct.error) as error:
        raise InputError(
            f"{members.location}: expected a whole ZIP archive, found it damaged or truncated ({reason(error)}); copy "
            f"it again"
        ) from error
    except OSError as error:
        raise InputError(f"{members.location}: cannot be read ({error.strerror or reason(error)})") from error
    found = []
    for info in entries:
        path = members.path(info.filename)
        if not path:
            continue
        if info.is_dir():
            members.add_folder(path)
        elif members.is_image(path, None if named_as_image(path) else _head(containers, info)):
            _require_usable(info, members)
            members.paths.append(path)
            found.append(_Member.of(info))
    return np.array(found, np.int64).reshape(-1, len(_Member._fields))


def _head(containers: Containers | RemoteFiles, info: zipfile.ZipInfo) -> bytes:
    """The first bytes of an entry whose name does not decide what it is; empty if it cannot be read."""
    if info.flag_bits & _ENCRYPTED or info.compress_type not in _METHODS:
        return b""
    try:
        return _content(containers, _Member.of(info), HEAD_BYTES)
    except OSError:
        return b""


def _require_usable(info: zipfile.ZipInfo, members: Members) -> None:
    """Refuse an image that cannot be read: a password, another compression, a link."""
    place = f"{members.location}: {printable(info.filename)}"
    if max(info.header_offset, info.compress_size, info.file_size) >= 1 << 62:
        raise InputError(f"{place}: expected sizes of a file, found impossible ones: the archive is damaged")
    if info.flag_bits & _ENCRYPTED:
        raise InputError(f"{place}: is encrypted; make the archive again without a password")
    if info.compress_type not in _METHODS:
        raise InputError(
            f"{place}: expected {' or '.join(_METHODS.values())} members, found compression {info.compress_type}; make "
            f"the archive again with `zip -0`"
        )
    if info.external_attr >> 28 == 0xA:  # a symbolic link of Unix
        raise InputError(f"{place}: expected a file, found a symbolic link; make the archive again without `zip -y`")


def _content(containers: Containers | RemoteFiles, member: _Member, most: int | None = None) -> bytes:
    """The content of a member, or its first bytes.

    Raises:
        OSError: it cannot be read, or is not that of its checksum.
    """
    packed = member.packed if most is None else min(member.packed, 2 * most)
    room = max(int(containers.sizes[0]) - member.start, 0)
    data = containers.read(0, member.start, min(_LOCAL.size + member.names + _SLACK + packed, room))
    if len(data) < _LOCAL.size or data[:4] != _LOCAL_MAGIC:
        raise OSError(errno.EIO, "the archive has changed or is damaged: no member begins there")
    _, name, extra = _LOCAL.unpack_from(data)
    start = _LOCAL.size + name + extra
    if start + packed > room:
        raise OSError(errno.EIO, "the archive has changed or is damaged: it ends within a member")
    if start + packed > len(data):
        data = containers.read(0, member.start, start + packed)
    content: bytes | memoryview = memoryview(data)[start : start + packed]
    size = member.size if most is None else min(member.size, most)
    if member.method == zipfile.ZIP_DEFLATED:
        try:
            content = zlib.decompressobj(-zlib.MAX_WBITS).decompress(content, size or 1)
        except zlib.error as error:
            raise OSError(errno.EIO, f"the archive is damaged ({error})") from error
    content = bytes(content[:size])
    if most is None and (len(content) != size or zlib.crc32(content) != member.checksum):
        raise OSError(errno.EIO, "the archive has changed or is damaged: its checksum is another")
    return content
