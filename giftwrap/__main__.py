"""`giftwrap build | show | train | evaluate | compare | plot | sweep | info | ...`: the commands of all packages."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

if __name__ == "__main__" and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends quietly until a command runs

# `python -m` puts the working folder first; move it to the end, so that a user's trainer.py does not shadow ours,
# and module:attribute still finds the user's modules.
HERE = str(Path.cwd())
sys.path[:] = [*(folder for folder in sys.path if folder not in ("", HERE)), HERE]

from importlib import import_module
from importlib.util import find_spec

from labelstore.command.commands import Command
from labelstore.command.program import require_ours, run_program
from labelstore.errors import InputError

PACKAGES = ("pipeline", "trainer", "labelstore")
BENCH = "bench"
ABOUT = f"""Soft labels for dataset distillation: made once, kept small, replayed exactly.

In the usual order: build labels images, train trains students from the labels, evaluate and compare measure them.
`giftwrap COMMAND --help` lists flags, and docs/GUIDE.md explains them. In a checkout, `giftwrap {BENCH}` measures."""


def commands() -> dict[str, Command]:
    """The commands of all packages, by name."""
    require_ours(*PACKAGES)
    tables: list[dict[str, Command]] = [import_module(f"{package}.__main__").COMMANDS for package in PACKAGES]
    return {name: command for table in tables for name, command in table.items()}


def bench() -> int:
    """Run `python -m benchmarks` with what follows; it is part of a checkout, and not of what is installed."""
    from labelstore.command.console import run_command

    def refuse() -> int:
        raise InputError(
            "bench: the benchmarks are in the source tree; run it in a checkout of giftwrap, found none in this folder"
        )

    if find_spec("benchmarks") is None or find_spec("benchmarks.harness") is None:
        return run_command(refuse)
    del sys.argv[1]
    return int(import_module("benchmarks.__main__").main("giftwrap bench"))


def main() -> int:
    """Run the command that the arguments name."""
    if sys.argv[1:2] == [BENCH]:
        return bench()
    every = commands()
    from pipeline.launch.place import start_of  # ours, as `commands` has made sure

    return run_program("giftwrap", ABOUT, every, start=start_of("giftwrap"))


if __name__ == "__main__":
    sys.exit(main())
