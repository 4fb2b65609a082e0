"""The root of a store: its zarr.json, which holds format, identity and state, and the folder around it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.durable import disk, documents, removing
from labelstore.durable.documents import Fields
from labelstore.durable.places import require_local
from labelstore.durable.publish import PARTIAL, Described, FileEntry, publish
from labelstore.durable.removing import Proof
from labelstore.durable.storage import LocalStorage, ReadStorage, read_whole
from labelstore.errors import DamagedError, FormatError, GiftwrapError, InputError, reason
from labelstore.format import leftovers
from labelstore.format.arrays import StoreLayout, group_metadata
from labelstore.format.blocks import BlockGrid
from labelstore.format.leftovers import LEASE
from labelstore.format.parsing import read_identity, read_state
from labelstore.format.seals import read_entries
from labelstore.format.shards import described
from labelstore.spec import FORMAT, MAX_BLOCKS, READABLE, Identity, Json, State, require_integer

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


class Root(NamedTuple):
    """The content of a store's root.

    Attributes:
        identity: identity of the store.
        files: what is known of the shards of the images' tables, by array; empty in format 1.
        notes: provenance of the images and the like; never compared.
        state: what grows.
    """

    identity: Identity
    files: Mapping[str, FileEntry]
    notes: Mapping[str, Json]
    state: State


def root_document(root: Root) -> bytes:
    """The zarr.json of a store: the format first."""
    attributes: dict[str, Json] = {
        "giftwrap_format": root.identity.format,
        "identity": root.identity.to_json(),
        "files": {name: entry.to_json() for name, entry in root.files.items()},
        "notes": dict(root.notes),
        "state": root.state.to_json(root.identity.format),
    }
    if root.identity.format == 1:
        del attributes["files"], attributes["notes"]
    return group_metadata(documents.stamp(attributes))


def read_root(storage: ReadStorage) -> Root:
    """The root metadata of a store.

    Raises:
        FormatError: when it is not a store, or one of another format.
        DamagedError: when it is not what was written.
    """
    try:
        return _read_root(storage)
    except DamagedError as error:
        raise DamagedError(
            f"{storage.root / ROOT}: {error.why or error}; restore it from a copy of the store"
        ) from error
    except FormatError:
        raise
    except InputError as error:
        raise FormatError(f"{storage.root}: {error}") from error


def _read_root(storage: ReadStorage) -> Root:
    root, path = storage.root, storage.root / ROOT
    try:
        data = documents.parse(path, read_whole(storage, ROOT, documents.MAX_BYTES))
    except (FileNotFoundError, NotADirectoryError) as error:
        why = f"expected a label store, found no {ROOT} in it"
        if isinstance(storage, LocalStorage) and not root.exists():
            why = "no such folder"
        raise FormatError(f"{root}: {why}; give the folder that `build --store` made") from error
    attributes = data.get("attributes")
    if not isinstance(attributes, dict) or "giftwrap_format" not in attributes:
        raise FormatError(f"{root}: expected a label store, found a zarr hierarchy without giftwrap_format")
    number = attributes["giftwrap_format"]
    if type(number) is not int or number not in READABLE:
        raise FormatError(
            f"{root}: this version reads formats {', '.join(map(str, READABLE))}, the store has format {number!r}; "
            f"install a version of giftwrap that reads it"
        )
    documents.require_stamp(path, attributes)
    fields = Fields(path, {name: value for name, value in attributes.items() if name != "crc32c"})
    fields.integer("giftwrap_format")
    identity = read_identity(fields.fields("identity"), number)
    layout, files, notes = StoreLayout.of(identity), {}, {}
    if number > 1:
        files = read_entries(fields.fields("files"), [layout.digest.name, layout.target.name], identity)
        notes = fields.plain("notes")
    found = Root(identity, files, notes, read_state(fields.fields("state"), identity))
    fields.end()
    return found


def make_skeleton(
    root: Path,
    identity: Identity,
    state: State,
    digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.integer[Any]],
    notes: Mapping[str, Json],
) -> Root:
    """Write all of an empty store into ``root``, zarr.json last; the lease is held.

    What a stopped creation left is removed first.
    """
    layout = StoreLayout.of(identity)
    require_own(root)
    clear(root)
    metadata = {f"{array.name}/{ROOT}": array.metadata(state.views_target) for array in layout.all}
    metadata |= {f"{group}/{ROOT}": group_metadata({}) for group in groups(layout)}
    files = {name: Described.of(data) for name, data in metadata.items()}
    tables = ((layout.digest, digests), (layout.target, targets.astype(np.uint32)))
    files |= {array.file(): described(array, values) for array, values in tables}
    for folder in folders(layout):
        disk.make_folder(root / folder)
    publish(root, files)
    for folder in (*groups(layout), "", ".."):
        disk.sync_folder(root / folder)
    made = Root(identity, {array.name: files[array.file()].entry for array, _ in tables}, notes, state)
    publish(root, {ROOT: Described.of(root_document(made))})
    return made


def require_storable(root: Path, identity: Identity, state: State, notes: Mapping[str, Json]) -> None:
    """Refuse, before anything is written, what a root's metadata cannot hold or would not be read from it.

    Raises:
        InputError: names it.
    """
    try:
        data = root_document(Root(identity, {}, notes, state))
        fields = Fields(root / ROOT, json.loads(data)["attributes"])
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{root}: expected numbers, texts, lists and objects of JSON: {reason(error)}") from error
    try:
        read_identity(fields.fields("identity"), FORMAT)
        fields.plain("notes")
    except DamagedError as error:
        raise InputError(f"{root}: {error.why or error}") from error


def clear(root: Path) -> None:
    """Remove what a creation publishes, but the root's zarr.json, then the folders that are empty; all else stays."""
    for path, proof in leftovers.of_creation(root):
        if path.parent.name != PARTIAL and path.name != LEASE and removing.may_go(path, proof):
            removing.remove(path, proof)
    for folder in sorted(leftovers.folders() - {PARTIAL}, reverse=True):
        removing.remove_folder(root / folder)


def require_own(root: Path) -> None:
    """Refuse a folder that is a store, or has anything in it that a stopped creation does not leave."""
    require_local(root)
    there = next(path for path in (root, *root.absolute().parents) if os.path.lexists(path))
    if not there.is_dir():
        found_at = "a file" if there == root else f"the file {there} in its way"
        raise InputError(f"{root}: expected a folder, found {found_at}; give another one")
    found = {path.name for path in root.iterdir()} if root.exists() else set()
    if ROOT in found:
        raise InputError(f"{root}: is a label store already; open it")
    if published := sorted(path.name for folder in FOLDERS for path in (root / folder).glob("*.json")):
        raise InputError(
            f"{root}: expected an empty folder, found a label store ({len(published)} markers and seals, "
            f"{published[0]} first) without its {ROOT}; restore that from a copy, or give another --store"
        )
    for path, proof in sorted(leftovers.of_creation(root), key=lambda each: each[0]) if found else ():
        if not removing.may_go(path, proof):
            inside = sorted(each for each in path.rglob("*") if not each.is_dir()) if path.is_dir() else []
            stray = next(iter(inside), path).relative_to(root).as_posix()
            raise InputError(f"{root}: expected an empty folder, found {stray!r}; give another --store")


def proof_of(identity: Identity) -> Proof:
    """The proof of the root's zarr.json of a store of this identity."""

    def holds(path: Path) -> bool:
        try:
            return read_root(LocalStorage(path.parent)).identity == identity
        except GiftwrapError:
            return False

    return Proof("the metadata of this store", holds)


def require_writable(root: Path, identity: Identity) -> None:
    """Refuse to write to a store of an earlier format."""
    if identity.format != FORMAT:
        raise FormatError(
            f"{root}: has format {identity.format}, which is read but not written any more; make a store of format "
            f"{FORMAT} of it: `giftwrap convert {root} NEW --encoding {identity.encoding.get('name')}`"
        )


def require_views(identity: Identity, views: int) -> int:
    """``views`` rounded up to whole blocks.

    Raises:
        InputError: when it is no integer, or more than a store can list.
    """
    views = require_integer("views", views)
    if views < 1:
        raise InputError(f"views: expected at least 1, found {views}")
    grid = BlockGrid.of(identity)
    most = MAX_BLOCKS // grid.runs * identity.block.views
    if grid.whole_views(views) > most:
        raise InputError(f"views: expected at most {most:,} of {identity.images:,} images, found {views}")
    return grid.whole_views(views)


def require_images(identity: Identity, digests: npt.NDArray[np.uint8], targets: npt.NDArray[np.integer[Any]]) -> None:
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
