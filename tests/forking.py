"""Work in a forked child of the process that runs the tests."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable


def in_a_fork(work: Callable[[], object]) -> str:
    """What a forked child returns or raises, as text; it ends as a child does whose stack unwinds."""
    ends = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of the threads that are not in the child
        child = os.fork()
    if child == 0:
        try:
            said = repr(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(ends[1], said.encode())
        os._exit(0)
    os.close(ends[1])
    with os.fdopen(ends[0]) as told:
        said = told.read()
    assert os.waitpid(child, 0)[1] == 0
    return said
