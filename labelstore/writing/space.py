"""The size of a store, and a check of free space."""

from __future__ import annotations

import shutil
from pathlib import Path

from labelstore.errors import InputError
from labelstore.format.arrays import ArrayLayout, StoreLayout
from labelstore.format.blocks import BlockGrid
from labelstore.format.shards import largest_shard
from labelstore.spec import Identity

FILE_BYTES = 4 << 10  # what a file system rounds a file up to
MARKER_BYTES = 2 << 10
PLANAR_RATIO = 12  # of int16 codes to what they are packed to at a fidelity of 0.99


def store_bytes(identity: Identity, views: int) -> int:
    """An upper bound on the bytes of a store of ``views`` views, temporaries included."""
    grid, layout = BlockGrid.of(identity), StoreLayout.of(identity)
    per_views = largest = 0
    for block in grid.blocks(0, identity.block.views):
        shards = [_shard_bytes(array, grid.extent(block)) for array in layout.blocks]
        per_views += sum(shards) + MARKER_BYTES + FILE_BYTES
        largest = max(largest, *shards)
    once = sum(
        largest_shard(array, array.shape) + FILE_BYTES
        for array in (*layout.audit, layout.digest, layout.target, *layout.calibration)
    )
    names = sum(len(name) for name in (*identity.classes, *identity.skipped)) * 6
    runs = grid.whole_views(views) // identity.block.views
    return runs * per_views + once + largest + names + (1 << 20)


def _shard_bytes(array: ArrayLayout, extent: dict[str, int]) -> int:
    """An upper bound on a shard; of planar codes, which nothing bounds, what a fidelity of 0.99 takes."""
    most = largest_shard(array, array.extent(extent)) + FILE_BYTES
    return most // PLANAR_RATIO if array.planar else most


def require_free_space(path: Path, needed: int) -> None:
    """Raise InputError unless the file system of ``path``, which need not exist yet, has ``needed`` bytes free."""
    folder = path.absolute()
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise InputError(
            f"{path}: needs up to {needed:,} bytes, the file system of {folder} has {free:,} free; "
            f"free {needed - free:,} bytes, ask for fewer --views, or write to another place"
        )
