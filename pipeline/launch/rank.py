"""`python -m pipeline.launch.rank WORDS`: one rank, `giftwrap WORDS` in a process that ends when its parent does."""

from __future__ import annotations

import ctypes
import os
import runpy
import signal
import sys

PARENT = "GIFTWRAP_PARENT"
PR_SET_PDEATHSIG = 1


def end_with(parent: int) -> None:
    """Have the kernel kill this process when its parent has ended, by which its work is known to have stopped."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        sys.exit(1)


def take_signals() -> None:
    """Have Ctrl-C and SIGTERM arrive here: Ray's processes block them, and those that they start inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the command runs
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGINT, signal.SIGTERM))


if __name__ == "__main__":
    take_signals()
    end_with(int(os.environ.pop(PARENT)))
    sys.argv[0] = "giftwrap"
    runpy.run_module("giftwrap", run_name="__main__", alter_sys=True)
