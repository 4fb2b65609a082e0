"""A lock that keeps a second process out of a folder; the system releases it however this process ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from labelstore.errors import InputError, LeaseError


@contextmanager
def hold(path: Path, busy: str, advice: str) -> Iterator[None]:
    """Hold the lock of a file, which is created if absent, and kept.

    Args:
        path: the file; whatever is in it stays.
        busy: the message where another process holds it.
        advice: what to do where it cannot be locked.

    Raises:
        InputError: when it cannot be locked.
        LeaseError: when another process holds it.
    """
    with _open_lock(path, advice) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), path.stat()):
                raise FileNotFoundError  # another call removed it when it ended
        except (BlockingIOError, FileNotFoundError) as error:
            raise LeaseError(busy) from error
        yield


def _open_lock(path: Path, advice: str) -> IO[bytes]:
    """The file that is locked."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "rb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be locked ({error.strerror}); {advice}") from error


def is_held(path: Path) -> bool | None:
    """Whether another process, on this host or another, holds the lock of a file; None when there is no such file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    return is_locked(descriptor)


def is_locked(descriptor: int) -> bool:
    """Whether another process holds the lock of an open file or folder, which is closed."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
