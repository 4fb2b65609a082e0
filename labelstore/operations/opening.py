"""A store opened as the flags of a command ask."""

from __future__ import annotations

from pathlib import Path

from labelstore.command.cache_options import StoreCacheOptions
from labelstore.durable.keeping import PieceCache
from labelstore.store import LabelStore


def open_store(place: Path, kept: StoreCacheOptions, *, follow: bool = False) -> LabelStore:
    """Open a store for reading; of one at an address, what is read is kept where --cache-dir names a folder.

    Args:
        place: its folder, or its address.
        kept: the flags.
        follow: as of :class:`LabelStore`.

    Raises:
        GiftwrapError: there is no store, it is damaged, it cannot be reached, or the folder cannot be written.
    """
    cache = PieceCache(kept.cache_dir, kept.bytes) if kept.cache_dir else None
    return LabelStore.open(place, follow=follow, cache=cache)
