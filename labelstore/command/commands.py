"""A command of a program, as a line of its table."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any

from labelstore.command.console import Console


@dataclass(frozen=True, slots=True)
class Command:
    """A command; the line of the table imports nothing of it.

    Attributes:
        about: what the command does, for the list of commands and for its help.
        flags: where the flags are, as ``module:attribute``: a frozen dataclass, as `labelstore.command.flags` reads it,
            with an ``output``.
        run: gets the flags and the console; returns the exit code. Imports what takes long to import.
        more: what its help has after that.
        resumes: whether typing the same command again continues stopped work.
        typed: turns the words of the command line into the words that are parsed: a recipe into its flags.
        short: shorter spellings of flags, for commands that torchrun does not start: it takes them for its own flags.
        examples: what can be typed after the name of the command, for the help.
    """

    about: str
    flags: str
    run: Callable[[Any, Console], int]
    more: str = ""
    resumes: bool = False
    typed: Callable[[Sequence[str]], Sequence[str]] = lambda words: words
    short: Mapping[str, str] = field(default_factory=dict)
    examples: Sequence[str] = ()

    @property
    def config(self) -> type[Any]:
        """The dataclass of the flags."""
        module, _, name = self.flags.partition(":")
        found: type[Any] = getattr(import_module(module), name)
        return found
