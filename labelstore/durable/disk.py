"""Every change that a store makes to the file system, and the reading of whole files.

Publishing uses only these functions, so that a test can record their order or stop at any of them. Only regular files
are opened, and symbolic links are not followed: all that is read is inside the store.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import google_crc32c

from labelstore.errors import DamagedError

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

READ_BYTES = 1 << 20
MAX_PIECES = 1024  # that the system writes at once
# Errors of file systems that have no hard links, no more of them to a file, or none between folders.
NO_LINKS = (errno.EPERM, errno.EOPNOTSUPP, errno.ENOTSUP, errno.ENOSYS, errno.EINVAL, errno.EMLINK, errno.EXDEV)
NO_UNNAMED = (errno.EOPNOTSUPP, errno.EISDIR, errno.ENOSYS, errno.EINVAL)
KINDS = {
    stat.S_IFREG: "a file",
    stat.S_IFDIR: "a folder",
    stat.S_IFLNK: "a symbolic link; put what it points to in its place",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}
Bytes: TypeAlias = "bytes | npt.NDArray[Any]"


def crc32c(data: Bytes, crc: int = 0) -> int:
    """CRC-32C of ``data``, continuing from ``crc``."""
    return int(google_crc32c.extend(crc, data))


def open_file(path: Path) -> int:
    """A descriptor for reading a regular file; nothing is waited for.

    Raises:
        FileNotFoundError: when it is not there.
        DamagedError: when it is anything else: a symbolic link, a folder, a FIFO, a socket, a device.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError:
        require_kind(path, stat.S_ISREG, "a file")  # a link or a socket
        raise
    try:
        require_kind(path, stat.S_ISREG, "a file", os.fstat(descriptor))
    except DamagedError:
        os.close(descriptor)
        raise
    return descriptor


def require_folder(path: Path) -> None:
    """Refuse what is no folder, a symbolic link to one included; it may be absent.

    Raises:
        DamagedError: names what is there.
    """
    try:
        require_kind(path, stat.S_ISDIR, "a folder")
    except FileNotFoundError:
        return


def require_kind(path: Path, wanted: Callable[[int], bool], name: str, found: os.stat_result | None = None) -> None:
    """Refuse what is not of the kind that ``wanted`` tests for; symbolic links are not followed.

    Args:
        path: the path.
        wanted: one of :mod:`stat`'s tests of a mode.
        name: the kind in words.
        found: what is known of it already.

    Raises:
        DamagedError: names the kind that was found.
    """
    mode = (found or path.lstat()).st_mode
    if not wanted(mode):
        raise DamagedError.of(path, f"expected {name}, found {KINDS.get(stat.S_IFMT(mode), 'something else')}")


def read_file(path: Path, limit: int) -> bytes:
    """The bytes of a file of at most ``limit`` bytes."""
    with os.fdopen(open_file(path), "rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size > limit:
            raise DamagedError(f"{path}: expected at most {limit} bytes, found {size}")
        return file.read()


def read_ahead(path: Path) -> None:
    """Have the system read a file into its cache: no copy is made, and other threads run meanwhile."""
    with os.fdopen(open_file(path), "rb") as file, Path(os.devnull).open("wb") as nowhere:
        offset, size = 0, os.fstat(file.fileno()).st_size
        while offset < size and (count := os.sendfile(nowhere.fileno(), file.fileno(), offset, size - offset)):
            offset += count


def read_pieces(path: Path) -> Iterator[npt.NDArray[np.uint8]]:
    """The bytes of a file in pieces, each in the place of the one before."""
    import numpy as np  # not needed by what else is done with files, among it reading a command line

    buffer = np.empty(READ_BYTES, np.uint8)
    with os.fdopen(open_file(path), "rb", buffering=0) as file:
        while count := file.readinto(buffer.data):
            yield buffer[:count]


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file to an error of the system that does not name it, as a write to a full disk does not."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = error.filename or str(path)
        raise


def write_file(path: Path, *pieces: Bytes) -> None:
    """Write a file that must not exist yet, piece by piece."""
    with naming(path), path.open("xb", buffering=0) as file:
        views = [memoryview(piece if isinstance(piece, bytes) else piece.data) for piece in pieces if len(piece)]
        while views:
            count = os.writev(file.fileno(), views[:MAX_PIECES])
            while views and count >= len(views[0]):
                count -= len(views.pop(0))
            if count:
                views[0] = views[0][count:]


def sync_file(path: Path) -> None:
    """Wait until the bytes of a file are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with naming(path):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_folder(path: Path) -> None:
    """Wait until the names in a folder are on the disk."""
    sync_file(path)


def link(source: Path, target: Path) -> None:
    """Give a file a second name; fails when that name is taken."""
    os.link(source, target, follow_symlinks=False)


def replace(source: Path, target: Path) -> None:
    """Rename a file over another one, atomically."""
    os.replace(source, target)  # noqa: PTH105  as all changes of the file system here


def unlink(path: Path) -> None:
    """Remove a file; it may be gone already."""
    path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Make a folder and its missing parents."""
    path.mkdir(parents=True, exist_ok=True)


def remove_folder(path: Path) -> None:
    """Remove an empty folder."""
    path.rmdir()


def open_unnamed(folder: Path) -> int | None:
    """A descriptor of a new unnamed file, which disappears when it is closed; None if the system has none."""
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno in NO_UNNAMED:
            return None
        raise
    if Path(f"/proc/self/fd/{descriptor}").exists():
        return descriptor
    os.close(descriptor)  # without /proc it could get no name
    return None


def link_unnamed(descriptor: int, target: Path) -> None:
    """Give a file without a name one; fails when that name is taken."""
    folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        # Only with a folder's descriptor does Python follow the link in /proc.
        os.link(f"/proc/self/fd/{descriptor}", target.absolute(), src_dir_fd=folder, follow_symlinks=True)
    finally:
        os.close(folder)


def sync_descriptor(descriptor: int) -> None:
    """Wait until the bytes of an open file are on the disk."""
    os.fsync(descriptor)


def allocate(descriptor: int, size: int) -> None:
    """Have a file of ``size`` bytes, all of which have their place on the disk."""
    os.posix_fallocate(descriptor, 0, size)
