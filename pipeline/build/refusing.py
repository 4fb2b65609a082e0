"""A command that is refused before it has begun leaves nothing behind."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from labelstore.durable import removing
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.images.manifest import UnusableFilesError


@contextmanager
def nothing_left(files: Mapping[Path, Proof], begun: Callable[[], bool]) -> Iterator[None]:
    """Remove files, and the folders made for them, where a command is refused before it has begun.

    What was read of images is kept where single files are to be mended: reading all others again may take hours.

    Args:
        files: that the command makes before it begins, the cache of its images first; those that are there stay.
        begun: whether the command has begun what is continued.
    """
    made = {path: proof for path, proof in files.items() if not os.path.lexists(path)}
    folders = [folder for folder in next(iter(files)).parents if not folder.exists()]
    try:
        yield
    except InputError as error:
        if not (isinstance(error, UnusableFilesError) or begun()):
            for path, proof in made.items():
                removing.remove(path, proof)
            for folder in folders:
                removing.remove_folder(folder)
        raise
