"""Files that a stopped build leaves besides temporary ones, and foreign files that block a build."""

from __future__ import annotations

import os
from collections.abc import Iterator, Set
from pathlib import Path

from labelstore.durable.removing import Proof, may_go, remove, require
from labelstore.format import calibration
from labelstore.format.arrays import AUDIT_BLOCK, ArrayLayout, StoreLayout
from labelstore.format.blocks import BlockIndex
from labelstore.format.leftovers import shard_of
from labelstore.format.root import ROOT, clear, proof_of
from labelstore.format.seals import PART, seal_file, seal_of
from labelstore.spec import Identity, State


def leftovers(
    root: Path,
    identity: Identity,
    state: State,
    missing: Set[BlockIndex],
    *,
    calibrated: bool,
    parts: Set[str] | None = None,
) -> Iterator[tuple[Path, Proof]]:
    """Files to remove before blocks are written, with their proofs: shards without a marker, seals that seal nothing.

    Args:
        root: folder of the store.
        identity: the store's.
        state: its state.
        missing: blocks that have no marker.
        calibrated: whether its calibration, where it takes one, has a marker.
        parts: files of the parts of its seals; None if a seal is damaged, and what it names is not known.
    """
    for path, array in _shards(root, StoreLayout.of(identity), missing, calibrated=calibrated):
        if may_go(path, shard_of(array)):
            yield path, shard_of(array)
    for path in sorted((root / "seals").glob("*.json")):
        stop, _, part = path.stem.partition(".")
        if not stop.isdecimal() or not stop.isascii():
            continue
        unnamed = bool(part) and parts is not None and f"seals/{path.name}" not in parts
        proof = PART if part else seal_of(identity)
        if (int(stop) > state.views_sealed or unnamed) and may_go(path, proof):
            yield path, proof


def require_clear(root: Path, identity: Identity, missing: Set[BlockIndex], views: int, *, calibrated: bool) -> None:
    """Refuse to write blocks, and their seal, while files that are no leftovers have their names.

    Args:
        root: folder of the store.
        identity: the store's.
        missing: blocks that have no marker.
        views: the views that will be sealed.
        calibrated: as of :func:`leftovers`.

    Raises:
        InputError: names the first such file.
    """
    for path, array in _shards(root, StoreLayout.of(identity), missing, calibrated=calibrated):
        require(path, shard_of(array))
    if missing:
        require(root / seal_file(views), seal_of(identity))


def take_back(root: Path, identity: Identity, state: State) -> bool:
    """Remove what creating a store, and calibrating it, has published; False if there is anything else.

    A store whose removal is killed is one whose creation was stopped.
    """
    layout, names = StoreLayout.of(identity), Path(calibration.FILE)
    markers = {path.name for path in (root / names.parent).iterdir()} if (root / names.parent).is_dir() else set()
    arrays = (*layout.blocks, *layout.audit)
    shards = any(array.block(path.name) for array in arrays for path in (root / array.name).glob("c.*"))
    if state.views_sealed or markers - {names.name} or shards:
        return False
    ours = [
        (root / calibration.FILE, calibration.marker_of(layout)),
        *((root / array.file(), shard_of(array)) for array in layout.calibration),
        (root / ROOT, proof_of(identity)),
    ]
    for path, proof in ours:
        if may_go(path, proof):
            remove(path, proof)
    clear(root)
    return True


def _shards(
    root: Path, layout: StoreLayout, missing: Set[BlockIndex], *, calibrated: bool
) -> Iterator[tuple[Path, ArrayLayout]]:
    """Files with the name of an unpublished shard."""
    for array in layout.blocks:
        for path in sorted((root / array.name).glob("c.*")):
            if array.block(path.name) in missing:
                yield path, array
    once = (*(layout.audit if AUDIT_BLOCK in missing else ()), *(() if calibrated else layout.calibration))
    for array in once:
        if os.path.lexists(root / array.file()):
            yield root / array.file(), array
