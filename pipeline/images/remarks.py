"""Remarks on an image set before a command works with it: what is not read, and folders that may not be classes."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path

from labelstore.command.console import Console
from labelstore.command.names import printable
from pipeline.images.class_folder import named
from pipeline.images.manifest import Manifest
from pipeline.images.manifest_cache import is_foreign

SPLITS = frozenset(
    {"train", "training", "trainset", "val", "valid", "validation", "dev", "test", "testing", "testset", "eval",
     "evaluation", "holdout"}
)  # fmt: skip


def report_left_out(manifest: Manifest, console: Console) -> None:
    """Print which files are not read, and warn if the folders look like splits instead of classes."""
    for warning in (*manifest.left_out.warnings, *filter(None, [splits_warning(manifest)])):
        console.warn(warning)
    if manifest.left_out.line:
        console.line(manifest.left_out.line)


def report_foreign_cache(cache: Path, console: Console) -> None:
    """Warn if something else has the name of a cache of images."""
    if is_foreign(cache):
        console.warn(f"{cache}: is not a cache of images, and is left unchanged; all images are read again each time")


def report_skipped(manifest: Manifest, console: Console) -> None:
    """Warn of each image that was left out because it cannot be decoded."""
    for path in manifest.skipped:
        console.warn(f"left out, cannot be decoded: {printable(path)}")


def is_split(name: str) -> bool:
    """Whether a folder is named as a split of a data set: ``train``, ``Val``, ``test_images``, ``train2017``."""
    word = name.lower().rstrip("0123456789").strip("_-. ")
    for end in ("images", "imgs", "set", "split", "jpeg", "data", "crop"):
        word = word.removesuffix(end).rstrip("_-. ") or word
    return word in SPLITS


def splits_warning(manifest: Manifest) -> str | None:
    """A warning if the classes seem to be splits, or a single folder that contains the classes; else None."""
    inside = subfolders(manifest)
    splits = [name for name in manifest.classes if is_split(name)]
    nested = [name for name in splits if inside[name]]
    root = printable(manifest.location)
    if nested or len(splits) > 1 or len(splits) == len(manifest.classes):
        first = min(nested or splits, key=lambda name: (not name.lower().startswith("train"), name))
        what = f"the folders {named(splits)} of {root}" if len(splits) > 1 else f"the folder {named(splits)} of {root}"
        are = "are" if len(splits) > 1 else "is"
        if not nested:
            return f"{what} {are} taken for classes, but named as splits of a set without class folders"
        return (
            f"{what} {are} taken for classes, but seem{'' if len(splits) > 1 else 's'} to be splits with class folders "
            f"in them; give one of them: --images {root}/{printable(first)}"
        )
    folders = {path.rpartition("/")[0] for path in manifest.names}
    shared = os.path.commonpath(folders)
    if len(manifest.classes) == 1 and shared not in folders:
        below = len({folder.removeprefix(f"{shared}/").partition("/")[0] for folder in folders})
        return (
            f"{root} has one class folder, {manifest.classes[0]!r}, with {below:,} folders in "
            f"{'it' if shared == manifest.classes[0] else printable(shared)}; if these are the classes, give --images "
            f"{root}/{printable(shared)}"
        )
    return None


def subfolders(manifest: Manifest) -> Counter[str]:
    """The number of direct subfolders with images, by class folder."""
    found = {(parts[0], parts[1]) for path in manifest.names if len(parts := path.split("/", 2)) == 3}
    return Counter(name for name, _ in found)
