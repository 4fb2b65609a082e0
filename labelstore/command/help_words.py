"""The parts of a flag's help besides its text: a placeholder for its value, and its default."""

from __future__ import annotations

from dataclasses import MISSING
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from labelstore.command.config_file import kinds_of
from labelstore.command.flags import Flag, Shown, choices_of, is_positional

_PLACEHOLDERS = {str: "TEXT", Path: "PATH", int: "INT", float: "NUMBER"}


def placeholder(flag: Flag) -> str | None:
    """The value of a flag, as the usage shows it: ``PATH``, ``[PATH ...]``, ``{gift,rded}``, or the field's own.

    Values without the name of a flag have the name of their field: ``SOURCE DESTINATION``. That a flag may also be
    ``None``, to undo a value of ``--config``, is stated once, in the help of ``--config``.

    Returns:
        None for the parser's own, of switches.
    """
    own = [mark.words for mark in getattr(flag.kind, "__metadata__", ()) if isinstance(mark, Shown)]
    if flag.kind is bool or own:
        return own[0] if own else None
    kinds = kinds_of(flag)
    if is_positional(flag):
        name = flag.key.upper()
        several = any(get_origin(kind) is tuple for kind in kinds)
        if several:
            name = name.removesuffix("S")
            return f"{name} [{name} ...]"
        return f"[{name}]" if flag.default is None and not choices_of(flag.kind) else name
    return "|".join(map(_placeholder, kinds))


def _placeholder(kind: Any) -> str:
    """The value of one type."""
    if get_origin(kind) is Literal:
        return "{" + ",".join(map(str, get_args(kind))) + "}"
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        return f"[{_placeholder(kinds[0])} ...]" if kinds[1:] == (...,) else " ".join(map(_placeholder, kinds))
    return _PLACEHOLDERS[kind]


def default_hint(flag: Flag) -> str | None:
    """The default of a flag in parentheses; empty if it has none, which its text explains.

    Returns:
        None for the parser's own hint.
    """
    if flag.default is MISSING:
        return "(required)"
    if flag.default is None or flag.default == ():
        return ""
    if isinstance(flag.default, tuple) and all(isinstance(each, float) for each in flag.default):
        return f"(default: {' '.join(f'{each:.4g}' for each in flag.default)})"
    return None
