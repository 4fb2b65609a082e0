"""Clean up after a command that is refused before it has started."""

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
    """Remove files, and the folders made for them, if a command is refused before it has started.

    The manifest cache is kept if single image files must be repaired, since reading all others again may take hours.

    Args:
        files: files that the command makes before it starts, the manifest cache first; existing ones are kept.
        begun: whether the command has started to write what it would continue.
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
