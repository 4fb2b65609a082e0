"""Flags of every command: their names and defaults are as users know them, in a file and on the command line."""

from __future__ import annotations

import json
from dataclasses import MISSING
from pathlib import Path
from typing import Any

import pytest

from benchmarks.__main__ import COMMANDS as BENCHMARKS
from giftwrap.__main__ import commands
from labelstore.command.commands import Command
from labelstore.command.flags import Flag, Words, flags_of

COMMANDS: dict[str, Command] = commands() | {f"bench {name}": command for name, command in BENCHMARKS.items()}
PLACE = Path(__file__).parent / "golden" / "flags.json"


def own_help(flag: Flag) -> str:
    """The help of a flag without the words that come from a table, which has tests of its own."""
    known = [mark.known() for mark in getattr(flag.kind, "__metadata__", ()) if isinstance(mark, Words)]
    assert all(flag.help.endswith(f" {', '.join(words)}.") for words in known)
    return flag.help.removesuffix("".join(f" {', '.join(words)}." for words in known))


def flags_that_are(command: Command) -> dict[str, Any]:
    """Default and help of each flag of a command, as JSON has them."""
    return {
        flag.name: {
            "default": "required" if flag.default is MISSING else json.loads(json.dumps(flag.default, default=str)),
            "help": own_help(flag),
        }
        for flag in flags_of(command.config).values()
    }


@pytest.mark.parametrize("name", COMMANDS)
def test_names_defaults_and_helps_of_flags_are_those_that_users_know(name: str) -> None:
    golden: dict[str, Any] = json.loads(PLACE.read_text())
    assert flags_that_are(COMMANDS[name]) == golden[name], "changed on purpose? `make golden` writes the file again"


if __name__ == "__main__":  # make golden
    every = {name: flags_that_are(command) for name, command in COMMANDS.items()}
    PLACE.write_text(json.dumps(every, indent=1) + "\n")
