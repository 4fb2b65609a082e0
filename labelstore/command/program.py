"""A program of several commands: its command line is read at once, and only what the command needs is imported."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext, redirect_stdout
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from typing import Any

from labelstore.command.console import Console, run_command
from labelstore.errors import InputError
from labelstore.version import __version__

_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


@dataclass(frozen=True, slots=True)
class Command:
    """One command of a program.

    Attributes:
        config: frozen dataclass whose fields are the flags, with ``json`` among them; its docstring is the help.
        run: gets the config and the console; returns the exit code. Imports what takes long to import.
        resumes: whether typing the same command again continues stopped work.
        typed: turns the words of the command line into the words that are parsed: a recipe into its flags.
        short: shorter spellings of flags, for commands that torchrun does not start: it takes them for its own flags.
    """

    config: type[Any]
    run: Callable[[Any, Console], int]
    resumes: bool = False
    typed: Callable[[Sequence[str]], Sequence[str]] = lambda words: words
    short: Mapping[str, str] = field(default_factory=dict)


def run_program(
    invocation: str, description: str, commands: Mapping[str, Command], start: Sequence[str] = (sys.executable, "-m")
) -> int:
    """Run the command that ``sys.argv`` names; returns the exit code.

    Args:
        invocation: what people type before the name of a command, for help and messages.
        description: what all commands are about, for the help.
        commands: by name.
        start: the words that start this program, for the line that says how to resume; none when another process
            says it.
    """
    # Idle OpenMP threads sleep: those that spin take the cores that other processes, and this one's own threads, need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    words = sys.argv[1:]
    if words[:1] == ["--version"]:
        print(f"giftwrap {__version__}")
        return 0
    if words[:1] in ([], ["-h"], ["--help"]):
        print(overview(invocation, description, commands), file=sys.stdout if words else sys.stderr)
        return 0 if words else 2
    command = commands.get(words[0])

    def act() -> int:
        if command is None:
            close = get_close_matches(words[0], commands, 1)
            meant = f"did you mean {close[0]}?" if close else f"see {invocation} --help"
            raise InputError(f"command: expected one of {', '.join(commands)}, found {words[0]!r}; {meant}")
        require_paths(words)
        typed = command.typed([spelled_out(word, command.short) for word in words])
        config = read_flags(command.config, f"{invocation} {words[0]}", typed[1:])
        console = Console(as_json=config.json)
        # What code of the user's prints is no part of the summary.
        with redirect_stdout(sys.stderr) if config.json else nullcontext():
            return command.run(config, console)

    return run_command(act, restart=start if command and command.resumes else ())


def spelled_out(word: str, short: Mapping[str, str]) -> str:
    """A word of a command line with the name of its flag in full."""
    flag, equals, value = word.partition("=")
    return short.get(flag, flag) + equals + value


def overview(invocation: str, description: str, commands: Mapping[str, Command]) -> str:
    """The help of a program: its commands, and the first sentence of each."""
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {(each.config.__doc__ or '').splitlines()[0]}" for name, each in commands.items()]
    usage = f"usage: {invocation} [--help] [--version] COMMAND [--help] ..."
    return "\n".join([usage, "", description, "", *lines])


def require_paths(words: Sequence[str]) -> None:
    """Refuse an address where a path is expected.

    Raises:
        InputError: names it.
    """
    for word in words:
        if _ADDRESS.match(word.partition("=")[2] if word.startswith("--") else word):
            raise InputError(
                f"{word}: expected a path on this machine, found an address; copy it here and give its path"
            )


def read_flags(config: type[Any], program: str, words: Sequence[str]) -> Any:
    """An instance of ``config`` from the words of its flags.

    Raises:
        InputError: values that do not go together.
        SystemExit: after the help, or a line about flags that are not there.
    """
    import tyro

    # Its checks run outside of the parser, which would put the name of the class before their words.
    unchecked = type(config.__name__, (config,), {"__post_init__": lambda _: None, "__doc__": config.__doc__})
    parsed: Any = tyro.cli(unchecked, prog=program, args=list(words))
    return config(**{each.name: getattr(parsed, each.name) for each in fields(config)})
