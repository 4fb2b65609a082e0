"""Tensor files of distillation repositories become a class folder of PNG files, 8 bits a channel."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from labelstore.command.names import natural_key
from labelstore.durable import removing
from labelstore.durable.places import require_apart
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.importing.levels import Normalise, Rounding, levels, make_stretch
from pipeline.importing.pairs import channels_last, class_indexes, read_pair
from pipeline.networks.file_kinds import shown

MAX_NAME = 200  # bytes of a folder's name, below what file systems take


@dataclass(frozen=True)
class ImportReport:
    """The result of an import.

    Attributes:
        images: number of images.
        classes: number of class folders.
        notes: lines to print about the choices.
        max_rounding_error: largest distance between a value and the level it was rounded to, in levels of 0 to
            255, without clipped values; 0 for uint8 images.
        mean_rounding_error: mean of those distances.
        clipped_share: share of the values that lay outside 0 to 255.
        max_clipped: largest distance of a clipped value to 0 or 255, in levels.
        mean_clipped: mean distance of the clipped values, in levels.
    """

    images: int
    classes: int
    notes: tuple[str, ...]
    max_rounding_error: float
    mean_rounding_error: float
    clipped_share: float
    max_clipped: float
    mean_clipped: float


def import_tensors(
    file: Path,
    out: Path,
    *,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    normalise: Normalise | None = None,
    labels: Path | None = None,
    argmax: bool = False,
    index: int | None = None,
    class_names: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> ImportReport:
    """Write the images of a tensor file as a class folder of PNG files.

    The file holds a dict of images and labels, such a dict within another, or a pair (images, labels). Images are uint8
    or float, ``[N, C, H, W]`` or ``[N, H, W, C]`` with 1 or 3 channels; labels are class indexes ``[N]`` or ``[N, 1]``.
    Class folders are named by the index, padded with zeros so that byte order is numeric order, or by ``class_names``;
    files are named by their place in the tensor.

    Args:
        file: a file written by ``torch.save`` or safetensors; nothing in it is executed.
        out: the class folder to make; absent or empty.
        mean: channel means that the images were normalised with; needed for float images.
        std: their channel standard deviations, likewise.
        normalise: stretch each image (per-image) or all alike (min-max), or use the given ``mean`` and ``std``.
        labels: a file with the labels, if ``file`` has only images.
        argmax: of soft labels ``[N, C]`` take the class of the largest, instead of refusing them.
        index: which of several sets of images in the file.
        class_names: of the class indexes 0, 1, ...; preceded by the index where the names' own order is another.
        progress: called with (images written, images).

    Raises:
        InputError: names what in the file, or which flag, cannot be used. No partial folder remains.
    """
    require_apart({"--out": out}, {})
    out = require_empty(out.resolve())
    pair = read_pair(file, labels=labels, index=index, argmax=argmax)
    indexes, remarks = class_indexes(pair, file, argmax=argmax)
    folders, named = folder_names(indexes, class_names)
    images = channels_last(pair, file)
    place = f"{file}: {pair.images_name}"
    stretch = make_stretch(images, place, mean=mean, std=std, normalise=normalise)
    rounding, aside = Rounding(), make_aside(out)
    paths: list[Path] = []
    try:
        paths = _make_paths(aside, indexes, folders)
        _write_images(paths, levels(images, stretch, rounding, place), progress)
        removing.move_folder(aside, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    finally:
        remove_aside(aside, paths)
    return ImportReport(
        images=len(paths),
        classes=len(folders),
        notes=(*pair.notes, *remarks, *named),
        **rounding.numbers(images.numel()),
    )


def folder_names(
    labels: npt.NDArray[np.int64], names: Sequence[str] | None
) -> tuple[Mapping[int, str], tuple[str, ...]]:
    """The folder of each class that has images, and remarks; their byte order is that of the classes.

    Args:
        labels: class index of each image.
        names: of the class indexes 0, 1, ...; None names folders by the index.
    """
    digits = max(2, len(str(labels.max())))
    used = [int(label) for label in np.unique(labels)]
    if names is None:
        return {label: f"{label:0{digits}d}" for label in used}, ()
    if used[-1] >= len(names):
        raise InputError(f"--class-names: expected names of the classes 0 to {used[-1]}, found {len(names)}")
    for index, name in enumerate(names):
        bad = not name or name.startswith(".") or "/" in name or not name.isprintable()
        if bad or name != name.strip() or len(name.encode(errors="replace")) > MAX_NAME:
            raise InputError(f"--class-names: name {index}, '{shown(name)}', cannot name a folder")
    twice = sorted({name for name in names if [one.casefold() for one in names].count(name.casefold()) > 1})
    if twice:
        raise InputError(f"--class-names: expected each name once, found {', '.join(map(shown, twice[:3]))} again")
    chosen = [names[label] for label in used]
    if chosen == sorted(chosen, key=os.fsencode) == sorted(chosen, key=natural_key):
        return dict(zip(used, chosen, strict=True)), ()
    folders = {label: f"{label:0{digits}d}_{names[label]}" for label in used}
    note = f"folders are named {folders[used[0]]}, ...: sorted by name they would be in another order than the labels"
    return folders, (note,)


def require_empty(out: Path) -> Path:
    """A folder that is absent or empty, as it must be."""
    if out.is_dir() and (there := min((path.name for path in out.iterdir()), default=None)):
        raise InputError(f"{out}: expected a folder that is absent or empty, found {shown(there)} in it")
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: expected a folder that is absent or empty, found a file")
    return out


def _make_paths(root: Path, labels: npt.NDArray[np.int64], folders: Mapping[int, str]) -> list[Path]:
    """Make the class folders; the file of each image."""
    places = len(str(len(labels) - 1))
    for folder in folders.values():
        (root / folder).mkdir(parents=True)
    return [root / folders[int(label)] / f"{image:0{places}d}.png" for image, label in enumerate(labels)]


def _write_images(
    paths: Sequence[Path],
    images: Iterable[tuple[int, npt.NDArray[np.uint8]]],
    progress: Callable[[int, int], None] | None,
) -> None:
    """Write the files of images that come some at once: (index of the first, ``[n, H, W, C]``)."""
    with ThreadPoolExecutor() as pool:
        for start, some in images:
            part = paths[start : start + len(some)]
            list(pool.map(_write_png, part, some))
            if progress:
                progress(start + len(part), len(paths))


def make_aside(out: Path) -> Path:
    """A new folder beside the one to make; what is written there is renamed when it is whole."""
    aside = out.with_name(f".{out.name}.partial")
    if os.path.lexists(aside):
        raise InputError(
            f"{aside}: is there already: what a stopped command has left, or yours; remove it or move it away, then "
            f"run the same again"
        )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        aside.mkdir()
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    return aside


def remove_aside(aside: Path, paths: Sequence[Path]) -> None:
    """Remove what this call has written, file by file, then the folders that are empty."""
    own = Proof("what this command writes", lambda _path: True)  # the folder is new, and each file was made there
    for path in paths:
        removing.remove(path, own)
    folders = {folder for path in paths for folder in path.parents if aside in folder.parents}
    for folder in [*sorted(folders, key=lambda folder: len(folder.parts), reverse=True), aside]:
        removing.remove_folder(folder)


def _write_png(path: Path, levels: npt.NDArray[np.uint8]) -> None:
    """Write one image ``[H, W, C]``."""
    with path.open("xb") as file:
        Image.fromarray(levels.squeeze(2) if levels.shape[2] == 1 else levels).save(file, "PNG")
