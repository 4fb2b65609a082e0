"""Whether Triton kernels can be used: they must run on this machine, and agree with plain torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable


def kernels_agree(compare: Callable[[], object], otherwise: str) -> bool:
    """Whether ``compare`` succeeds; warns if it does not.

    Args:
        compare: runs kernels and compares their results with plain torch; raises if they differ.
        otherwise: the consequence, for the warning.
    """
    try:
        compare()
    except Exception as error:  # no compiler, no Triton, an unsupported GPU: whatever it raises
        warn_slower(f"{otherwise}: Triton's kernels do not run here", error)
        return False
    return True


def warn_slower(what: str, error: Exception) -> None:
    """Warn about a slower fallback, with the first line of the error that caused it."""
    first = (str(error).splitlines() or [""])[0]
    warnings.warn(f"{what} ({type(error).__name__}: {first})", stacklevel=4)
