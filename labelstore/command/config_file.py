"""The flags of a command as a TOML file: one key a flag, in a table a group."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from labelstore.command.flags import OPTIONS, Flag, flags_of, meant, require_flag, values_of
from labelstore.errors import InputError

_KINDS = {
    str: "a string",
    Path: "a path, as a string",
    bool: "true or false",
    int: "an integer",
    float: "a number",
}


def to_toml(config: Any) -> str:
    """The flags of a command as TOML, in a table a group; a flag that is None is a comment.

    Bytes of a path that are no UTF-8, which TOML cannot hold, are replaced by question marks.
    """
    return _toml(flags_of(type(config)), values_of(config))


def template(config: type[Any]) -> str:
    """The flags of a command as TOML, each with its default; one that has to be given is a comment."""
    flags = flags_of(config)
    return _toml(flags, {key: None if flag.default is MISSING else flag.default for key, flag in flags.items()})


def _toml(flags: Mapping[str, Flag], values: Mapping[str, Any]) -> str:
    """Flags as TOML; what a flag without a value takes is in a comment."""
    groups: dict[str, list[str]] = {OPTIONS: []}
    for key, flag in flags.items():
        line = f"{flag.name} = {_written(values[key])}"
        if values[key] is None:
            needed = "required: " if flag.default is MISSING else ""
            line = f"# {flag.name} =  # {needed}{' or '.join(map(_described, kinds_of(flag)))}"
        groups.setdefault(flag.group, []).append(line)
    parts = ["\n".join([*([] if title == OPTIONS else [f"[{title}]"]), *lines]) for title, lines in groups.items()]
    return ("\n\n".join(filter(None, parts)) + "\n").encode(errors="replace").decode()


def _written(value: Any) -> str:
    """A value as TOML."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    if isinstance(value, tuple):
        return f"[{', '.join(map(_written, value))}]"
    # TOML strings have the escapes of JSON, and code 127 must be escaped too.
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")


def read_config(path: Path, config: type[Any]) -> dict[str, Any]:
    """The values of flags in a TOML file, by key: as flat keys, or in tables named as the groups of the help.

    Raises:
        InputError: no such file, no TOML, no such flag, or a value of another type; names the line or the flag.
    """
    place = f"--config {path}"
    return {
        flag.key: read_value(value, flag, place) for flag, value in keys_of(read_document(path, place), config, place)
    }


def read_document(path: Path, place: str) -> dict[str, Any]:
    """A TOML file, parsed but not interpreted.

    Args:
        path: of the file.
        place: what messages call it.

    Raises:
        InputError: no such file, or no TOML; names the line.
    """
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise InputError(f"{place}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise InputError(f"{place}: expected TOML ({error})") from error


def keys_of(document: Mapping[str, Any], config: type[Any], place: str) -> list[tuple[Flag, Any]]:
    """The flags of a command in a table, each with its uninterpreted value.

    Raises:
        InputError: no such flag, or one that is given twice; names the nearest.
    """
    flags = flags_of(config)
    found: dict[str, tuple[Flag, Any]] = {}
    for name, value in _keys(document, flags, place):
        flag = require_flag(name, flags, place)
        if flag.key in found:
            raise InputError(f"{place}: {flag.name} is given twice")
        found[flag.key] = (flag, value)
    return list(found.values())


def _keys(document: Mapping[str, Any], flags: Mapping[str, Flag], place: str) -> Iterator[tuple[str, Any]]:
    """The keys of a file outside of tables, and those in the tables of groups."""
    groups = dict.fromkeys(flag.group for flag in flags.values())
    for name, value in document.items():
        if not isinstance(value, dict):
            yield name, value
        elif name in groups:
            for inner, each in value.items():
                if inner.replace("-", "_") in flags and flags[inner.replace("-", "_")].group != name:
                    group = flags[inner.replace("-", "_")].group
                    raise InputError(f"{place}: {inner} belongs to [{group}], found in [{name}]")
                yield inner, each
        else:
            raise InputError(f"{place}: no group [{name}] of this command{meant(name, groups)}")


def read_value(value: Any, flag: Flag, place: str) -> Any:
    """The value of a flag from that of its key.

    Raises:
        InputError: when it is of another type.
    """
    fitting = [made for kind in kinds_of(flag) if (made := _as(kind, value)) is not None]
    if not fitting:
        expected = " or ".join(map(_described, kinds_of(flag)))
        raise InputError(f"{place}: {flag.name}: expected {expected}, found {value!r}{nearest_choice(flag, value)}")
    return fitting[0]


def nearest_choice(flag: Flag, value: Any) -> str:
    """The nearest choice of a flag that has some, for the end of a message; empty if none is near."""
    choices = [choice for kind in kinds_of(flag) if get_origin(kind) is Literal for choice in get_args(kind)]
    return meant(str(value), dict.fromkeys(map(str, choices)))


def takes_list(flag: Flag) -> bool:
    """Whether one value of the flag is a list."""
    return any(get_origin(kind) is tuple for kind in kinds_of(flag))


def kinds_of(flag: Flag) -> list[Any]:
    """The types that a flag's value can have, without None."""
    kind = flag.kind
    if hasattr(kind, "__metadata__"):
        kind = kind.__origin__
    each = get_args(kind) if get_origin(kind) in (Union, UnionType) else (kind,)
    return [one for one in each if one is not NoneType]


def _as(kind: Any, value: Any) -> Any:
    """The value as a type has it; None when it is of another one."""
    if get_origin(kind) is Literal:
        return value if value in get_args(kind) and isinstance(value, str) else None
    if get_origin(kind) is tuple:
        return _as_tuple(get_args(kind), value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is Path:
        return Path(value) if isinstance(value, str) else None
    return value if type(value) is kind else None


def _as_tuple(kinds: Sequence[Any], value: Any) -> tuple[Any, ...] | None:
    """A list as a tuple of these types; None when it is another one."""
    if not isinstance(value, list):
        return None
    if tuple(kinds[1:]) == (...,):
        kinds = [kinds[0] for _ in value]
    made = tuple(_as(kind, each) for kind, each in zip(kinds, value, strict=False))
    return made if len(kinds) == len(value) and None not in made else None


def _described(kind: Any) -> str:
    """A type, for messages."""
    if get_origin(kind) is Literal:
        return f"one of {', '.join(map(repr, get_args(kind)))}"
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[1:] == (...,):
            return f"a list, each {_described(kinds[0])}"
        return f"a list of {len(kinds)}, each {_described(kinds[0])}"
    return _KINDS.get(kind, str(kind))


def words_of(values: Mapping[str, Any], flags: Mapping[str, Flag]) -> list[str]:
    """Flags as typed."""
    words: list[str] = []
    for key, value in values.items():
        name = flags[key].name
        if isinstance(value, bool):
            words.append(f"--{name}" if value else f"--no-{name}")
        elif isinstance(value, tuple):
            words += [f"--{name}", *map(str, value)]
        else:
            words.append(f"--{name}={value}")
    return words
