"""What happens to disks and files in these tests: operations that fail, and files that are harmed."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

from labelstore.durable import disk

STEPS = ("write_file", "sync_file", "sync_folder", "link", "replace", "unlink", "make_folder")


class KilledError(BaseException):
    """Stands for the end of the process: nothing in the program catches it."""


@contextmanager
def failing_after(steps: int, error: Callable[[], BaseException], spared: tuple[str, ...] = ()) -> Iterator[None]:
    """Every operation on the disk after the first ``steps`` fails, a write when half of it is written."""
    count = 0

    def watched(name: str) -> Callable[..., object]:
        plain = getattr(disk, name)

        def call(*args: Any, **options: Any) -> object:
            nonlocal count
            if count < steps or name in spared:
                count += 1
                return plain(*args, **options)
            if name == "write_file" and args[1:]:
                first = bytes(memoryview(args[1]).cast("B"))
                plain(args[0], first[: len(first) // 2])
            raise error()

        return call

    with mock.patch.multiple(disk, **{name: watched(name) for name in STEPS}):
        yield


def killed_after(steps: int, work: Callable[[], object]) -> bool:
    """Run ``work`` and end it at its n-th operation on the disk, before or halfway; whether it came to that.

    The lease of a living process is not taken over, so callers remove the one that is left.
    """
    try:
        with failing_after(steps, KilledError):
            work()
    except KilledError:
        return True
    return False


def full_after(steps: int, work: Callable[[], object]) -> bool:
    """Run ``work`` on a disk that is full after its first ``steps`` operations; whether it came to that."""
    try:
        with failing_after(steps, lambda: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), spared=("unlink",)):
            work()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        return True
    return False


def flip(at: float) -> Callable[[Path], object]:
    def act(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[int(at * (len(data) - 1))] ^= 0x10
        path.write_bytes(data)

    return act


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-5])


def link_elsewhere(path: Path) -> None:
    other = path.rename(path.with_name("elsewhere"))
    path.symlink_to(other)


HARM: dict[str, Callable[[Path], object]] = {
    **{f"a byte at {at}": flip(at) for at in (0.0, 0.31, 0.62, 0.97, 1.0)},
    "cut short": truncate,
    "emptied": lambda path: path.write_bytes(b""),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "gone": Path.unlink,
    "a link": link_elsewhere,
}
