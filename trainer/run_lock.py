"""The lock that keeps a second process out of a run's folder."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from labelstore.durable import removing
from labelstore.errors import InputError, LeaseError
from pipeline.images.manifest_cache import CACHE
from trainer.file_names import CACHES, CONFIG, LOCK


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the system releases it however this process ends.

    A call that is refused before its run has begun leaves nothing behind.

    Raises:
        InputError: when there is something else than a run.
        LeaseError: when another process trains there.
    """
    made = not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: expected a folder, found a file in its place; give another --run") from error
    except OSError as error:
        raise InputError(f"{folder}: cannot be made ({error.strerror}); give another --run") from error
    others = [
        path
        for path in folder.iterdir()
        if path.name != LOCK and not (path.name in CACHES and removing.may_go(path, CACHE))
    ]
    if others and not (folder / CONFIG).exists():
        raise InputError(f"{folder}: expected an empty folder or a run, found other files; give another --run")
    with _open_lock(folder / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(file.fileno()), (folder / LOCK).stat()):
                raise FileNotFoundError  # another call removed it when it was refused
        except (BlockingIOError, FileNotFoundError) as error:
            raise LeaseError(
                f"{folder}: another process trains in this folder; wait for it, or give another --run"
            ) from error
        try:
            yield
        finally:
            if not (folder / CONFIG).exists():
                caches = ((folder / name, CACHE) for name in CACHES)
                for path, proof in (*caches, (folder / LOCK, removing.EMPTY)):
                    if removing.may_go(path, proof):
                        removing.remove(path, proof)
                if made:
                    removing.remove_folder(folder)


def _open_lock(path: Path) -> IO[bytes]:
    """The file that is locked; whatever is in it stays."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "rb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be locked ({error.strerror}); give another --run") from error
