"""Recipes on a command line: which flags are given, which come from a recipe, and a text that lists both."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.recipes.setting import Flags, Value


def without_replaced(flags: Flags, known: Mapping[str, str | None], owned: Mapping[str, Sequence[str]]) -> Flags:
    """The flags of a recipe without those of a choice that was replaced: ``--loss kl`` drops GIFT's ``gamma``."""
    gone = {
        name
        for choice, names in owned.items()
        if known[f"--{choice}"] not in (None, flags.get(choice))
        for name in names
    }
    return {name: value for name, value in flags.items() if name not in gone}


def given(arguments: Sequence[str], command: str, *flags: str, also: Sequence[str] = ()) -> dict[str, str] | None:
    """The values of some flags of a command line, before its own parser reads it.

    Args:
        arguments: the command and its flags.
        command: the command whose flags are meant.
        flags: all of them must be given.
        also: flags that may be given; None if they are not.

    Returns:
        The values by flag; None when it is another command, when one of ``flags`` is missing, or when a flag has no
        value: the command's own parser reports that.
    """
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in (*flags, *also):
        parser.add_argument(flag, dest=flag)
    try:
        known = vars(parser.parse_known_args([with_dashes(word) for word in arguments[1:]])[0])
    except argparse.ArgumentError:
        return None
    return known if arguments[:1] == [command] and all(known[flag] for flag in flags) else None


def with_dashes(word: str) -> str:
    """A flag as it is named; the command takes ``--batch_size`` too."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word


def words(flags: Mapping[str, Value]) -> list[str]:
    """Flags as they are typed."""
    every: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            every.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            every += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return every


def describe(name: str, flags: Flags, used: Mapping[str, Any], left_out: Sequence[str], differs: str) -> str:
    """Lines with every value of a recipe and what replaces it, all else in effect, and what is not reproduced.

    Args:
        name: of the recipe.
        flags: its values.
        used: every flag that has an effect, and its value.
        left_out: flags that are no part of a protocol.
        differs: what is not reproduced.
    """
    parts = []
    for flag, value in flags.items():
        now = used.get(flag, "not used")
        parts.append(f"{spelled(flag)} {shown(now)}{'' if same(now, value) else f' (the recipe has {shown(value)})'}")
    beside = [f"{spelled(key)} {shown(value)}" for key, value in used.items() if key not in (*flags, *left_out)]
    return f"recipe {name}: {', '.join(parts)}\nbeside the recipe: {', '.join(beside)}\nnot reproduced: {differs}"


def spelled(flag: str) -> str:
    """A flag's name as it is typed."""
    return flag.replace("_", "-")


def shown(value: Any) -> str:
    """A value as it is typed; "none" for one that is left to the command."""
    if value in (None, ()):
        return "none"
    return " ".join(map(str, value)) if isinstance(value, tuple | list) else str(value)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values of a flag mean the same; JSON objects by their content."""
    if isinstance(ours, str) and isinstance(theirs, str) and theirs.startswith("{"):
        return bool(json.loads(ours) == json.loads(theirs))
    return bool(ours == theirs)
