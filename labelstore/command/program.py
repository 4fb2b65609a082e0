"""A program of several commands: a table, from which only what the command needs is imported."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from difflib import get_close_matches
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from labelstore.command.commands import Command
from labelstore.command.console import Console, not_installed, run_command
from labelstore.errors import InputError, reason
from labelstore.version import __version__

MODULES = "GIFTWRAP_MODULES"  # of the environment: modules that are imported before a command line is read


def run_program(
    invocation: str, description: str, commands: Mapping[str, Command], start: Sequence[str] = (sys.executable, "-m")
) -> int:
    """Run the command that ``sys.argv`` names; returns the exit code.

    Args:
        invocation: what people type before the name of a command, for help and messages.
        description: what all commands are about, for the help.
        commands: by name.
        start: the words that start this program, for the message about resuming; none when another process
            prints it.
    """
    # Idle OpenMP threads sleep: those that spin take the cores that other processes, and this one's own threads, need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    atexit.register(gc.freeze)  # otherwise garbage collection at exit takes up to a second with torch loaded
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        print(f"giftwrap {__version__}")
        return 0
    if words[:1] in ([], ["-h"], ["--help"]):
        print(overview(invocation, description, commands), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    if words[0] not in commands:
        return run_command(lambda: refuse(words[0], invocation, commands))
    # Imported here: Ctrl-C ends the program quietly until the command runs.
    from labelstore.command.command_line import PRINT_CONFIG, read_command
    from labelstore.command.config_file import template, to_toml

    command = commands[words[0]]
    flags = command.config

    def act() -> int:
        import_own()
        if words[1:] == [f"--{PRINT_CONFIG.replace('_', '-')}"]:
            print(template(flags), end="")
            return 0
        parsed = read_command(command, f"{invocation} {words[0]}", words)
        config = parsed.config
        if parsed.print_config:
            print(to_toml(config), end="")
            return 0
        console = Console(as_json=config.output.json)
        # What code of the user's prints is no part of the summary.
        with redirect_stdout(sys.stderr) if config.output.json else nullcontext():
            return command.run(config, console)

    return run_command(act, restart=start if command.resumes else ())


def refuse(word: str, invocation: str, commands: Mapping[str, Command]) -> NoReturn:
    """Refuse a word that names no command.

    Raises:
        InputError: names the nearest command.
    """
    close = get_close_matches(word, commands, 1)
    meant = f"did you mean {close[0]}?" if close else f"see {invocation} --help"
    raise InputError(f"command: expected one of {', '.join(commands)}, found {word!r}; {meant}")


def import_own() -> None:
    """Import the modules of the user's that the environment names: they add entries to tables.

    Raises:
        InputError: one cannot be imported.
    """
    for name in filter(None, map(str.strip, os.environ.get(MODULES, "").split(","))):
        try:
            import_module(name)
        except (Exception, SystemExit) as error:  # a module may raise anything, and may be a script
            raise InputError(
                f"{MODULES}={name}: expected a module in this folder or in PYTHONPATH, with commas between several; it "
                f"cannot be imported ({type(error).__name__}: {reason(error)})"
            ) from error


def require_ours(*packages: str) -> None:
    """End the program, with a line, where a package of ours is hidden by another one of that name, or tyro is missing.

    Raises:
        SystemExit: names both places, or what to install.
    """
    if find_spec("tyro") is None:
        print(f"error: {not_installed('tyro')}", file=sys.stderr)
        raise SystemExit(2)
    home = Path(__file__).resolve().parents[2]
    for name in packages:
        spec = find_spec(name)
        found = Path(spec.origin).resolve() if spec and spec.origin else None
        if found is None or found.parent.parent != home:
            print(
                f"error: {name}: expected the package of giftwrap in {home}, found {found or 'none'}; rename that, or "
                f"run the command `giftwrap`, which looks in the working folder last",
                file=sys.stderr,
            )
            raise SystemExit(2)


def overview(invocation: str, description: str, commands: Mapping[str, Command]) -> str:
    """The help of a program: its commands, and what each does."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {each.about}" for name, each in commands.items()]
    usage = f"usage: {invocation} [--help] [--version] COMMAND [--help] ..."
    return "\n".join([usage, "", description, "", *lines])
