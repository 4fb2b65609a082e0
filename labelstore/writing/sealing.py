"""Checks before a seal is written: views show every image once, and removed blocks are made again as before."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

from labelstore.durable import publish
from labelstore.durable.storage import LocalStorage
from labelstore.errors import InputError, NotStoredError
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.images import add_digests, whole_digest
from labelstore.format.seals import PART_BLOCKS, Marker, changed_seal_documents, read_marker, seal_file, seal_of
from labelstore.format.table import BlockTable
from labelstore.spec import Identity, State


def permutations(identity: Identity, markers: Iterable[Marker]) -> Iterator[Marker]:
    """The markers, as long as their views show every image once.

    Args:
        identity: of the store.
        markers: of all blocks of some views, in stored order.

    Raises:
        InputError: names the first such views.
    """
    grid, wanted = BlockGrid.of(identity), whole_digest(identity.images, identity.block.views)
    for _, run in itertools.groupby(markers, lambda marker: marker.block.i):
        blocks = list(run)
        if add_digests(marker.images or "0" for marker in blocks) != wanted:
            first, stop = grid.views(blocks[0].block)
            raise InputError(
                f"views {first} to {stop - 1}: expected every image once in each, found an image twice or none of it; "
                f"remove the store, and write views that are permutations of the {identity.images:,} images"
            )
        yield from blocks


def reseal(root: Path, identity: Identity, state: State, table: BlockTable) -> list[str]:
    """Make seals list what the blocks of ``state.missing`` are now, where their bytes are others than before.

    A seal is replaced in one step, after the new part that it names is there.

    Args:
        root: folder of the store.
        identity: of the store.
        state: of the store; the markers of its missing blocks are there again.
        table: of the store.

    Returns:
        Parts that no seal names any more, to be removed once the state does not list the blocks.

    Raises:
        InputError: when a block shows other images than before.
    """
    stale: list[str] = []
    for block in map(BlockIndex._make, state.missing):
        made, sealed = _marker(root, identity, state, table, block), table.sealed_marker(block, state)
        if made == sealed:
            continue
        if made.images != sealed.images:
            raise InputError(f"{root}: block {block} has other images than before; build with the store's plan")
        stale.append(_replace_part(root, identity, state, table, block))
        table.forget()
    return stale


def _replace_part(root: Path, identity: Identity, state: State, table: BlockTable, block: BlockIndex) -> str:
    """Replace the part of a seal that lists ``block``; returns the file of the old one."""
    grid = BlockGrid.of(identity)
    seal = table.seal(grid.views(block)[0], state)
    part = grid.ordinal(block, seal.first) // PART_BLOCKS
    start = part * PART_BLOCKS
    listed = itertools.islice(grid.blocks(seal.first, seal.stop), start, start + seal.count(part))
    markers = [_marker(root, identity, state, table, each) for each in listed]
    first = _marker(root, identity, state, table, next(grid.blocks(seal.first, seal.stop)))
    files = changed_seal_documents(identity, state, seal, part, markers, first)
    head = files.pop(seal_file(seal.stop))
    publish.publish(root, files)
    publish.replace(root, seal_file(seal.stop), b"".join(map(bytes, head.pieces)), seal_of(identity))
    return seal.files[part]


def _marker(root: Path, identity: Identity, state: State, table: BlockTable, block: BlockIndex) -> Marker:
    """The record of a sealed block: from its marker if it was made again, else from its seal."""
    made = (
        read_marker(LocalStorage(root), identity, block)
        if block in state.missing
        else table.sealed_marker(block, state)
    )
    if made is None:
        raise NotStoredError(f"{root}: block {block} is missing; write it")
    return made
