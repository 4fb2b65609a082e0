"""Whether Triton's kernels can be used: they must run here, and agree with plain torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable


def kernels_agree(compare: Callable[[], object], otherwise: str) -> bool:
    """Whether ``compare`` runs kernels without an error; warns when it does not.

    Args:
        compare: runs them and compares what they give with plain torch; raises when it differs.
        otherwise: the consequence, for the warning.
    """
    try:
        compare()
    except Exception as error:  # no compiler, no Triton, an unsupported GPU: whatever it raises
        warn_slower(f"{otherwise}: Triton's kernels do not run here", error)
        return False
    return True


def warn_slower(what: str, error: Exception) -> None:
    """Warn of a slower way that is taken, with the first line of the error that is the reason."""
    first = (str(error).splitlines() or [""])[0]
    warnings.warn(f"{what} ({type(error).__name__}: {first})", stacklevel=4)
