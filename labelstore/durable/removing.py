"""The only module that removes and replaces files, and the rule for it: nothing of the user's (P13).

A file is removed only when one of these is true:

* this process published it under its name, and it has not changed since;
* a call that was stopped left it: it is a regular file, and both its name and its content are those of a file that
  we publish in that place;
* a check has proven it damaged, and the user gave ``--repair``.

The last two are proven by a `Proof`. Anything else of that name is refused and left unchanged, links, folders and pipes
too. A folder is removed only when it is empty. No other module removes, renames over or truncates a file; a test reads
their source.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from labelstore.durable import disk
from labelstore.errors import InputError


@dataclass(frozen=True, slots=True)
class Proof:
    """How an existing file is proven to be ours.

    Attributes:
        what: what we publish there, for the refusal: "the shard of block 0.1".
        holds: whether a regular file is that.
        damaged: whether a check has proven the file damaged: then a symbolic link may have its name (what it points
            to stays).
    """

    what: str
    holds: Callable[[Path], bool]
    damaged: bool = False


ABSENT = Proof("no file", lambda _path: False)
EMPTY = Proof("an empty file", lambda path: not path.stat().st_size)
# Files that this process has published outside of stores: device, inode, size and time of the last change.
_published: dict[Path, tuple[int, int, int, int]] = {}


def may_go(path: Path, proof: Proof) -> bool:
    """Whether nothing is at ``path``, or a file that may be removed or replaced."""
    found = _found(path)
    if found is None:
        return True
    if stat.S_ISLNK(found.st_mode):
        return proof.damaged and proof.holds(path)
    return stat.S_ISREG(found.st_mode) and (_published.get(_place(path)) == _mark(found) or proof.holds(path))


def require(path: Path, proof: Proof) -> None:
    """Refuse what may not be removed or replaced.

    Raises:
        InputError: names the file, and what may be there.
    """
    if not may_go(path, proof):
        raise InputError(
            f"{path}: expected {proof.what}, found {_kind(path)} that was not written by this command; nothing of "
            f"yours is removed or overwritten: move it away, then run the same again"
        )


def remove(path: Path, proof: Proof) -> None:
    """Remove a file; it may be gone already.

    Raises:
        InputError: when it is not proven to be ours.
    """
    require(path, proof)
    if _found(path) is not None:
        disk.unlink(path)


def replace(source: Path, target: Path, proof: Proof) -> None:
    """Give ``source``, which this call has written, the name ``target``, in place of a file of ours if there is one.

    Raises:
        InputError: when there is another file.
    """
    require(target, proof)
    if _found(target) is None:
        give_name(source, target)
    else:
        disk.replace(source, target)


def give_name(source: Path, target: Path) -> None:
    """Rename ``source``, which this call has written, to a name that nothing has.

    Raises:
        InputError: when the name is taken.
    """
    try:
        disk.link(source, target)
    except FileExistsError as error:
        raise taken(target) from error
    except OSError as error:
        if error.errno not in disk.NO_LINKS:
            raise
    else:
        disk.unlink(source)
        return
    try:
        disk.write_file(target)  # no hard links here: an empty file of our own takes the name, unless it is taken
    except FileExistsError as error:
        raise taken(target) from error
    disk.replace(source, target)


def taken(path: Path) -> InputError:
    """The error for a name that is taken."""
    return InputError(
        f"{path}: exists already, and nothing is overwritten: expected no file; move it away or give another name"
    )


def require_absent(path: Path) -> None:
    """Refuse a name that is taken, by whatever it is."""
    if _found(path) is not None:
        raise taken(path)


def remove_folder(path: Path) -> bool:
    """Remove a folder when it is empty; whether it is gone."""
    if path.is_symlink():
        return False
    try:
        disk.remove_folder(path)
    except FileNotFoundError:
        return True
    except OSError:
        return False
    return True


def move_folder(source: Path, target: Path) -> None:
    """Rename a folder that this call has made; OSError unless ``target`` is absent or an empty folder."""
    disk.replace(source, target)


def published(path: Path) -> None:
    """Remember that this process has published a file: it may replace it, as long as it has not changed."""
    _published[_place(path)] = _mark(os.lstat(path))


def _found(path: Path) -> os.stat_result | None:
    try:
        return os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def _place(path: Path) -> Path:
    return path.parent.resolve() / path.name


def _mark(found: os.stat_result) -> tuple[int, int, int, int]:
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _kind(path: Path) -> str:
    mode = os.lstat(path).st_mode
    kinds = {stat.S_IFLNK: "a symbolic link", stat.S_IFDIR: "a folder", stat.S_IFREG: "a file"}
    return kinds.get(stat.S_IFMT(mode), "a device or pipe")
