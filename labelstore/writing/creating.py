"""Making an empty store, and removing one that nothing was written into."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.durable import disk, removing
from labelstore.durable.storage import LocalStorage
from labelstore.errors import GiftwrapError
from labelstore.format.root import (
    Root,
    clear,
    make_skeleton,
    read_root,
    require_images,
    require_own,
    require_storable,
    require_views,
    require_writable,
)
from labelstore.spec import Identity, Json, State
from labelstore.writing import lease as leases
from labelstore.writing import sweeping


class Created(NamedTuple):
    """An empty store that was just made.

    Attributes:
        root: what its root metadata holds.
        folders: the folders that were made for it, its own first; those that were there before are not among them.
    """

    root: Root
    folders: tuple[Path, ...]


def create_root(
    root: Path,
    identity: Identity,
    image_digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.integer[Any]],
    views: int,
    versions: Sequence[Mapping[str, Json]] | None,
    notes: Mapping[str, Json],
) -> Created:
    """Make an empty store at ``root``; arguments and errors as of :meth:`labelstore.LabelStore.create`."""
    require_writable(root, identity)
    require_images(identity, image_digests, targets)
    target = require_views(identity, views)
    require_own(root)
    version: dict[str, Json] = {
        "first_view": 0,
        "engine": dict(identity.engine) if identity.engine is not None else None,
        "renderer": dict(identity.renderer) if identity.renderer is not None else None,
    }
    state = State(views_target=target, views_sealed=0, versions=tuple(versions or (version,)))
    require_storable(root, identity, state, notes)
    folders = tuple(folder for folder in (root, *root.parents) if not folder.exists())
    disk.make_folder(root)
    try:
        with leases.hold(root):
            try:
                return Created(make_skeleton(root, identity, state, image_digests, targets, notes), folders)
            except GiftwrapError:
                clear(root)
                raise
    except GiftwrapError:
        for folder in folders:
            removing.remove_folder(folder)
        raise


def take_back(root: Path, identity: Identity, folders: Sequence[Path]) -> bool:
    """Remove the store at ``root`` when nothing was written into it; whether it is gone.

    Args:
        root: folder of the store.
        identity: the store's.
        folders: the folders that were made for it; they go when they are empty.
    """
    try:
        with leases.hold(root):
            if not sweeping.take_back(root, identity, read_root(LocalStorage(root)).state):
                return False
    except GiftwrapError:
        return False
    for folder in folders:
        removing.remove_folder(folder)
    return True
