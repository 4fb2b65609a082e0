"""Mistakes in the words of a command line, each named in one line with what was probably meant."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from itertools import takewhile
from typing import Literal, get_args, get_origin

from labelstore.command.config_file import kinds_of, takes_list
from labelstore.command.flags import Flag, is_positional, meant
from labelstore.errors import InputError

_PARSERS_OWN = ("help", "tyro-")


def require_flags(words: Sequence[str], flags: Mapping[str, Flag], program: str) -> None:
    """Refuse a flag that the command does not have, and a value that is none of the choices of its flag.

    Args:
        words: of the command line, after the name of the command.
        flags: that the command has, by key.
        program: what is typed up to the name of the command, for messages.

    Raises:
        InputError: names the flag, and the nearest one or the nearest choice.
    """
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if word == "--":
            return
        if not name.startswith("--") or name[2:].startswith(_PARSERS_OWN):
            continue
        flag = flags.get(key_of(name, flags))
        following = words[index + 1] if index + 1 < len(words) else ""
        if flag is None:
            _refuse(name, words, flags, program)
        elif is_positional(flag):
            raise InputError(_without_flag(name, words, flags, program))
        elif equals or (following and not following.startswith("--")):
            require_choice(flag, value if equals else following)


def require_single_values(words: Sequence[str], flags: Mapping[str, Flag]) -> None:
    """Refuse a second value of a flag that takes one, where no value without a flag is expected.

    Args:
        words: of the command line, after the name of the command.
        flags: that the command has, by key.

    Raises:
        InputError: names the flag and both values.
    """
    if any(map(is_positional, flags.values())):
        return
    name, values = "", list[str]()
    flag: Flag | None = None
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            flag, values = flags.get(key_of(name, flags)), [value] if equals else []
            continue
        values.append(word)
        if flag and len(values) > 1 and flag.kind is not bool and not takes_list(flag):
            raise InputError(f"{name}: takes one value, found {values[0]} and {values[1]}")


def key_of(name: str, flags: Mapping[str, Flag]) -> str:
    """The key of a typed flag, including ``--no-NAME``."""
    key = name.removeprefix("--").replace("-", "_")
    positive = key.removeprefix("no_")
    return positive if key not in flags and positive in flags and flags[positive].kind is bool else key


def require_choice(flag: Flag, value: str) -> None:
    """Refuse a value that is none of the choices of a flag that has some.

    Raises:
        InputError: names the nearest choice.
    """
    kinds = kinds_of(flag)
    choices = [str(choice) for kind in kinds if get_origin(kind) is Literal for choice in get_args(kind)]
    free = any(get_origin(kind) is not Literal for kind in kinds)
    if not free and value not in choices and not (value == "None" and flag.default is None):
        known = dict.fromkeys(choices)
        raise InputError(f"--{flag.name}: expected one of {', '.join(choices)}, found {value!r}{meant(value, known)}")


def _refuse(name: str, words: Sequence[str], flags: Mapping[str, Flag], program: str) -> None:
    """Refuse a flag that the command does not have."""
    if name == "--store" and any(map(is_positional, flags.values())):
        raise InputError(_without_flag(name, words, flags, program))
    names = [flag.name for flag in flags.values() if not is_positional(flag)]
    near = get_close_matches(name.removeprefix("--").replace("_", "-"), names, 1)
    advice = f"did you mean --{near[0]}?" if near else f"see {program} --help"
    raise InputError(f"{name}: no flag of this command; {advice}")


def _without_flag(name: str, words: Sequence[str], flags: Mapping[str, Flag], program: str) -> str:
    """How to type values whose flags have no names: ``info takes the store without a flag: giftwrap info S``."""
    command, what = program.rpartition(" ")[2], name.removeprefix("--").replace("-", " ")
    positional = [flag for flag in flags.values() if is_positional(flag)]
    typed: list[str] = []
    for flag in positional:
        first = flag is positional[0]
        typed += _values_of(flag, words, also="--store" if first else "") or [flag.name.upper()]
    return f"{name}: {command} takes the {what} without a flag: {shlex.join([*program.split(), *typed])}"


def _values_of(flag: Flag, words: Sequence[str], also: str) -> list[str]:
    """The text after the name of a flag, or after ``also``."""
    for index, word in enumerate(words):
        name, equals, value = word.partition("=")
        if name in (f"--{flag.name}", also):
            after = list(takewhile(lambda each: not each.startswith("--"), words[index + 1 :]))
            return [value] if equals else after if takes_list(flag) else after[:1]
    return []
