"""The images in the numbering of the authors' code, from a list of their paths."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path, PurePosixPath

import numpy as np

from labelstore.command.names import printable
from labelstore.errors import InputError, reason
from pipeline.adopt.labels import Int64Array
from pipeline.images.manifest import Manifest


def numbering(path: Path, manifest: Manifest) -> Int64Array:
    """The image that each line of a list names, int64 ``[N]``.

    Lines are paths whose ends are the names of images: of a class folder, ``.../CLASS/FILE``.

    Raises:
        InputError: the list has another length, or a line names no image, several, or one that another line names.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"--image-list {path}: not a readable text file ({reason(error)})") from error
    if len(lines) != len(manifest):
        raise InputError(
            f"--image-list {path}: expected {len(manifest):,} lines, one for each image of {manifest.location}, found "
            f"{len(lines):,}"
        )
    by_name: dict[str, list[int]] = defaultdict(list)
    for image, name in enumerate(manifest.names):
        by_name[PurePosixPath(name).name].append(image)
    found = np.array([_image(path, line, by_name, manifest) for line in lines], np.int64)
    twice = np.flatnonzero(np.bincount(found, minlength=len(manifest)) > 1)
    if len(twice):
        raise InputError(f"--image-list {path}: names {printable(manifest.names[twice[0]])} twice")
    return found


def _image(path: Path, line: str, by_name: dict[str, list[int]], manifest: Manifest) -> int:
    """The image whose name the line ends with."""
    parts = PurePosixPath(line.replace("\\", "/")).parts
    fitting = [
        image
        for image in by_name.get(parts[-1], [])
        if (own := PurePosixPath(manifest.names[image]).parts)[-len(parts) :] == parts[-len(own) :]
    ]
    if len(fitting) != 1:
        which = "none of them" if not fitting else f"{len(fitting)} of them"
        raise InputError(
            f"--image-list {path}: expected paths that end in CLASS/FILE of an image of {manifest.location}, found "
            f"{printable(line)}, which names {which}"
        )
    return fitting[0]
