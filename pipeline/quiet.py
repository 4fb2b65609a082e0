"""Warnings of Pillow and torch silenced, from many threads at once.

`warnings.catch_warnings` changes filters of the whole process: two threads that leave it in another order than they
entered it lose the filters of the first, or warn after all. Here the first to enter sets them and the last to leave
restores them. The callers check what the warnings are about (odd metadata, sizes, palettes, old files).
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_lock = threading.Lock()
_inside = 0
_filters = ExitStack()


@contextmanager
def quiet() -> Iterator[None]:
    """No warning is shown, or raised as an error, while any thread is inside."""
    global _inside
    with _lock:
        if not _inside:
            _filters.enter_context(warnings.catch_warnings())
            warnings.simplefilter("ignore")
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:
                _filters.close()
