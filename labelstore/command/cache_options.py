"""Flags of what is kept on this machine of stores and images at addresses."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

from labelstore.errors import InputError
from labelstore.storage_table import scheme_of


@dataclass(frozen=True, kw_only=True)
class StoreCacheOptions:
    """The local cache for stores at an address, and its size."""

    cache_dir: Path | None = None
    """Folder that keeps what is read of a store at an address, and the digests of its images, for later commands.
    Nothing is kept when left out."""
    store_cache_gib: float = 50.0
    """GiB that --cache-dir may take; what was used least recently is removed first."""

    def __post_init__(self) -> None:
        """Refuse sizes that no folder can have."""
        if not (math.isfinite(self.store_cache_gib) and self.store_cache_gib > 0):
            raise InputError(f"--store-cache-gib: expected a number of GiB > 0, found {self.store_cache_gib}")
        if self.cache_dir is None and self.store_cache_gib != StoreCacheOptions.store_cache_gib:
            raise InputError("--store-cache-gib: has an effect only with --cache-dir; leave it out")

    def require_address(self, store: Path | None) -> None:
        """Refuse a folder for parts of a store that is not at an address.

        Raises:
            InputError: names the flag.
        """
        if self.cache_dir and (store is None or scheme_of(store) is None):
            found = "none" if store is None else str(store)
            raise InputError(f"--cache-dir: keeps parts of a store at an address, found {found}; leave it out")

    @property
    def bytes(self) -> int:
        """That the folder may take."""
        return int(self.store_cache_gib * 2**30)
