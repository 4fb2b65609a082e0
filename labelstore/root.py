"""The root of a store: its zarr.json, which holds format, identity and state, and the folder around it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore import disk, documents
from labelstore.arrays import StoreLayout, group_metadata
from labelstore.errors import DamagedError, FormatError, InputError
from labelstore.lease import LEASE
from labelstore.publish import PARTIAL, Described, publish
from labelstore.shards import encode_shard
from labelstore.spec import FORMAT, Identity, Json, State

ROOT = "zarr.json"
FOLDERS = ("markers", "seals")


def groups(layout: StoreLayout) -> list[str]:
    """The zarr groups of a store, below its root."""
    return sorted({array.name.rpartition("/")[0] for array in layout.all} - {""})


def folders(layout: StoreLayout) -> list[str]:
    """The folders of a store, below its root."""
    return sorted({*FOLDERS, *groups(layout), *(array.name for array in layout.all)})


def require_folders(root: Path, layout: StoreLayout) -> None:
    """Refuse a store of which a folder is something else: by a symbolic link, files outside would be read and removed.

    Raises:
        DamagedError: names it.
    """
    for name in (*folders(layout), PARTIAL):
        disk.require_folder(root / name)


def root_document(identity: Identity, state: State) -> bytes:
    """The zarr.json of a store: the format first."""
    attributes: dict[str, Json] = {
        "giftwrap_format": FORMAT,
        "identity": identity.to_json(),
        "state": state.to_json(),
    }
    return group_metadata(documents.stamp(attributes))


def read_root(root: Path) -> tuple[Identity, State]:
    """Identity and state of the store at ``root``.

    Raises:
        FormatError: when it is not a store, or one of another format.
        DamagedError: when it is not what was written.
    """
    try:
        return _read_root(root, root / ROOT)
    except DamagedError as error:
        raise DamagedError(f"{root / ROOT}: {error.why or error}; restore it from a copy of the store") from error


def _read_root(root: Path, path: Path) -> tuple[Identity, State]:
    try:
        data = documents.parse(path, disk.read_file(path, documents.MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise FormatError(
            f"{root}: expected a label store, found no {ROOT} in it; give the folder that `build --store` made"
        ) from error
    attributes = data.get("attributes")
    if not isinstance(attributes, dict) or "giftwrap_format" not in attributes:
        raise FormatError(f"{root}: expected a label store, found a zarr hierarchy without giftwrap_format")
    if attributes["giftwrap_format"] != FORMAT:
        raise FormatError(
            f"{root}: this version reads format {FORMAT}, the store has format {attributes['giftwrap_format']!r}; "
            f"install a version of giftwrap that reads it"
        )
    documents.require_stamp(path, attributes)
    try:
        return Identity.from_json(attributes["identity"]), State.from_json(attributes["state"])
    except (KeyError, TypeError) as error:
        raise FormatError(f"{root}: identity and state cannot be read: {error!r}") from error


def make_skeleton(
    root: Path,
    identity: Identity,
    state: State,
    digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.integer[Any]],
) -> None:
    """Write all of an empty store into ``root``, zarr.json last; the lease is held.

    What a stopped creation left is removed first.
    """
    layout = StoreLayout.of(identity)
    require_own(root, layout)
    require_folders(root, layout)
    for name in _top_names(layout):
        shutil.rmtree(root / name, ignore_errors=True)
    files = {f"{array.name}/{ROOT}": array.metadata(state.views_target) for array in layout.all}
    files |= {f"{group}/{ROOT}": group_metadata({}) for group in groups(layout)}
    files[layout.digest.file()] = encode_shard(layout.digest, digests)
    files[layout.target.file()] = encode_shard(layout.target, targets.astype(np.uint32))
    for folder in folders(layout):
        disk.make_folder(root / folder)
    publish(root, {name: Described.of(data) for name, data in files.items()})
    for folder in (*groups(layout), "", ".."):
        disk.sync_folder(root / folder)
    publish(root, {ROOT: Described.of(root_document(identity, state))})


def _top_names(layout: StoreLayout) -> set[str]:
    return {*FOLDERS, *(array.name.partition("/")[0] for array in layout.all)}


def require_own(root: Path, layout: StoreLayout) -> None:
    """Refuse a folder that is a store, or has anything in it that a stopped creation does not leave."""
    if root.exists() and not root.is_dir():
        raise InputError(f"{root}: expected a folder, found a file; give another --store")
    found = {path.name for path in root.iterdir()} if root.exists() else set()
    if ROOT in found:
        raise InputError(f"{root}: is a label store already; open it")
    if published := sorted(path.name for folder in FOLDERS for path in (root / folder).glob("*.json")):
        raise InputError(
            f"{root}: expected an empty folder, found a label store ({len(published)} markers and seals, "
            f"{published[0]} first) without its {ROOT}; restore that from a copy, or give another --store"
        )
    if stray := sorted(found - _top_names(layout) - {LEASE, PARTIAL}):
        raise InputError(f"{root}: expected an empty folder, found {stray[0]!r}; give another --store")


def require_images(
    identity: Identity, digests: npt.NDArray[np.uint8], targets: npt.NDArray[np.integer[Any]], views: int
) -> None:
    """Refuse arrays of images that do not fit the identity."""
    count = identity.images
    if digests.dtype != np.uint8 or digests.shape != (count, 32):
        raise InputError(f"image_digests: expected uint8 [{count}, 32], found {digests.dtype} {list(digests.shape)}")
    if targets.dtype.kind not in "iu" or targets.shape != (count,):
        raise InputError(f"targets: expected integers [{count}], found {targets.dtype} {list(targets.shape)}")
    if targets.min() < 0 or targets.max() >= len(identity.classes):
        raise InputError(
            f"targets: expected 0 to {len(identity.classes) - 1}, found {targets.min()} to {targets.max()}"
        )
    if len(identity.classes) > identity.columns:
        raise InputError(f"columns: expected one for each of {len(identity.classes)} classes, found {identity.columns}")
    if views < 1:
        raise InputError(f"views: expected at least 1, found {views}")
