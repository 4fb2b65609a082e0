"""Waiting for the views of a store that is still being built."""

from __future__ import annotations

import time

from labelstore.errors import NotStoredError
from labelstore.store import LabelStore
from labelstore.writing import lease

POLL_SECONDS = 0.5
POLLS_ALONE = 6  # a build releases the lease for a moment between creating a store and filling it


def wait_for_view(store: LabelStore, view: int) -> None:
    """Wait until every block of a view is published.

    Args:
        store: opened with ``follow``; its state is read again.
        view: below the number of views that the build makes.

    Raises:
        NotStoredError: when the view is missing and no build is running.
    """
    alone = 0
    while True:
        building = is_being_built(store)  # read before the blocks: a build writes its last block before it ends
        if view_is_there(store, view):
            return
        alone = 0 if building else alone + 1
        if alone > POLLS_ALONE:
            raise NotStoredError(
                f"{store.path}: view {view} is not stored, and no build holds the store; continue the build, then type "
                f"the same command again"
            )
        time.sleep(POLL_SECONDS)


def view_is_there(store: LabelStore, view: int) -> bool:
    """Whether every block of a view is published."""
    store.refresh()
    blocks = map(store.block_views, store.missing())
    return view < store.state.views_target and not any(first <= view < stop for first, stop in blocks)


def is_being_built(store: LabelStore) -> bool:
    """Whether a build holds the store's lease; a build on another host is assumed to be running."""
    held = lease.read(store.path)
    return held is not None and (held.elsewhere or not held.dead)
