"""The flags of a command: the fields of its dataclass and of the dataclasses nested in it, as one flat list.

A flag is spelled as its field, with dashes; `Named` spells it otherwise, or begins all flags of a nested dataclass with
a word, `Group` puts them under a title of the help, and `First` before the others.
"""

from __future__ import annotations

import ast
import inspect
import sys
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass, replace
from difflib import get_close_matches
from functools import cache
from itertools import pairwise
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from labelstore.errors import InputError

Config = TypeVar("Config")
OPTIONS = "options"


@dataclass(frozen=True, slots=True)
class Named:
    """Marks a field whose flag is spelled otherwise: ``Annotated[str, Named("loss")]``.

    On a nested dataclass it begins each of its flags: ``Annotated[EngineOptions, Named("teacher")]`` has
    ``--teacher-dtype``.
    """

    name: str


@dataclass(frozen=True, slots=True)
class Group:
    """Marks a field whose flag, or whose fields' flags, the help lists under a title: ``Group("crops")``."""

    title: str


@dataclass(frozen=True, eq=False, slots=True)
class Choices:
    """Marks a field whose value is a name in a table: ``Annotated[str, Choices(MIXES, "none")]``.

    The table is read when flags are, so that what was added to it from outside is among the choices.

    Attributes:
        table: by name.
        others: names that are choices too, before those of the table.
        places: whether ``module:attribute`` is a choice too: the field's dataclass then checks its values.
    """

    table: Mapping[str, object]
    others: tuple[str, ...] = ()
    places: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Words:
    """Marks a field of words that a table explains: the help ends with them.

    Attributes:
        known: returns the words as typed, such as ``topk=K``; called when flags are read.
    """

    known: Callable[[], Sequence[str]]


@dataclass(frozen=True, slots=True)
class First:
    """Marks a field whose flag, or whose fields' flags, come before those of its dataclass, and of what that inherits.

    Otherwise inherited fields would come first in the help.
    """


@dataclass(frozen=True, slots=True)
class Positional:
    """Marks a field whose value is typed without the name of the flag."""


@dataclass(frozen=True, slots=True)
class Shown:
    """Marks a field whose value the usage shows as these words: ``Shown("PATH [PATH ...]")``."""

    words: str


@dataclass(frozen=True, slots=True)
class Addressable:
    """Marks a field whose flag also takes the address of a store, of a scheme of `labelstore.storage_table`."""


@dataclass(frozen=True, slots=True)
class OwnAddress:
    """Marks a field whose values are addresses of another kind, which its dataclass checks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Flag:
    """One flag of a command.

    Attributes:
        key: its name with underscores, unique in the command.
        path: the fields that lead from the command's dataclass to its value.
        kind: type of its value, with the annotations that are not of this module.
        default: its value when left out; ``MISSING`` when it has to be given.
        help: the docstring of its field, in one line.
        group: title under which the help lists it.
        addressable: whether the value may be the address of a store.
        own_address: whether its values are addresses of another kind, which no storage reads.
    """

    key: str
    path: tuple[str, ...]
    kind: Any
    default: Any
    help: str
    group: str
    addressable: bool = False
    own_address: bool = False

    @property
    def name(self) -> str:
        """As it is typed, without the two dashes."""
        return self.key.replace("_", "-")


def choices_of(kind: Any) -> tuple[str, ...]:
    """The words that a type allows; none if it allows others."""
    every = [choice for each in get_args(kind) for choice in choices_of(each)]
    return tuple(map(str, get_args(kind))) if get_origin(kind) is Literal else tuple(every)


def is_positional(flag: Flag) -> bool:
    """Whether the value is typed without the name of the flag."""
    return any(isinstance(mark, Positional) for mark in getattr(flag.kind, "__metadata__", ()))


def flags_of(config: type[Any]) -> dict[str, Flag]:
    """The flags of a command's dataclass, by key, in the order of the fields; marked ones come first."""
    flags = _flags_of(cast("Hashable", config))
    return {key: _of_today(flag) for key, flag in flags.items()}


@cache
def _flags_of(config: Any) -> dict[str, Flag]:
    """The same, read once for each dataclass."""
    found = list(_walk(config, (), OPTIONS))
    flags = {flag.key: flag for flag in found}
    if len(flags) < len(found):
        keys = [flag.key for flag in found]
        raise TypeError(f"{config.__name__}: flags twice: {', '.join(key for key in flags if keys.count(key) > 1)}")
    return flags


def _of_today(flag: Flag) -> Flag:
    """A flag with the choices, and the words of its help, that tables have now."""
    words = [mark for mark in getattr(flag.kind, "__metadata__", ()) if isinstance(mark, Words)]
    kind = _with_choices(flag.kind)
    if kind is flag.kind and not words:
        return flag
    return replace(flag, kind=kind, help=" ".join([flag.help, *(f"{', '.join(each.known())}." for each in words)]))


def _with_choices(kind: Any) -> Any:
    """A type, with the names of a table if it is marked with one."""
    if get_origin(kind) in (Union, UnionType):
        each = tuple(map(_with_choices, get_args(kind)))
        return kind if each == get_args(kind) else Union[each]  # noqa: UP007  the types are in a tuple
    every = getattr(kind, "__metadata__", ())
    marks = [mark for mark in every if isinstance(mark, Choices)]
    if not marks:
        return kind
    names = (*marks[0].others, *marks[0].table)
    if marks[0].places:
        return Annotated[str, Shown(f"{{{','.join(names)}}}|MODULE:ATTRIBUTE")]
    chosen: Any = Literal[names]
    if NoneType in get_args(kind.__origin__):
        chosen = chosen | None
    for mark in every:
        if not isinstance(mark, Choices):
            chosen = Annotated[chosen, mark]
    return chosen


def _walk(owner: type[Any], path: tuple[str, ...], group: str, before: str = "") -> Iterator[Flag]:
    """The flags of a dataclass and of those nested in it."""
    kinds, helps = get_type_hints(owner, include_extras=True), _docstrings(owner)
    for each in sorted(fields(owner), key=lambda field: not _is_first(kinds[field.name])):
        kind = kinds[each.name]
        marks = getattr(kind, "__metadata__", ())
        bare = kind.__origin__ if marks else kind
        title = next((mark.title for mark in marks if isinstance(mark, Group)), group)
        name = next((mark.name for mark in marks if isinstance(mark, Named)), None)
        if is_dataclass(bare):
            inner = f"{before}{name}_" if name else before
            yield from _walk(bare, (*path, each.name), title, inner)  # type: ignore[arg-type]
            continue
        if each.default is None and isinstance(bare, type):
            bare = bare | None
        for mark in marks:
            if not isinstance(mark, Named | Group | First | Addressable | OwnAddress):
                bare = Annotated[bare, mark]
        yield Flag(
            key=f"{before}{name or each.name}".replace("-", "_"),
            path=(*path, each.name),
            kind=bare,
            default=_default(each),
            help=helps.get(each.name, ""),
            group=title,
            addressable=any(isinstance(mark, Addressable) for mark in marks),
            own_address=any(isinstance(mark, OwnAddress) for mark in marks),
        )


def _is_first(kind: Any) -> bool:
    return any(isinstance(mark, First) for mark in getattr(kind, "__metadata__", ()))


def _default(field: Field[Any]) -> Any:
    """The default of a field."""
    return field.default if field.default_factory is MISSING else field.default_factory()


def _docstrings(owner: type[Any]) -> dict[str, str]:
    """The string after each field of a dataclass and of those it inherits from, in one line."""
    found: dict[str, str] = {}
    for each in reversed(owner.__mro__):
        if is_dataclass(each):
            found |= _documented(each.__module__)[each.__qualname__]
    return found


@cache
def _documented(module: str) -> dict[str, dict[str, str]]:
    """The strings after the fields of the classes of a module, by class: its source is parsed once for all of them."""
    tree = ast.parse(inspect.getsource(sys.modules[module]))
    return {name: dict(_after_fields(each)) for name, each in _classes(tree.body)}


def _classes(body: Sequence[ast.stmt], before: str = "") -> Iterator[tuple[str, ast.ClassDef]]:
    """The classes among statements and in the classes and functions there, by their qualified names."""
    for each in body:
        if isinstance(each, ast.ClassDef):
            yield before + each.name, each
            yield from _classes(each.body, f"{before}{each.name}.")
        elif isinstance(each, ast.FunctionDef):
            yield from _classes(each.body, f"{before}{each.name}.<locals>.")


def _after_fields(owner: ast.ClassDef) -> Iterator[tuple[str, str]]:
    """Fields of a class, each with the string after it."""
    for pair in pairwise(owner.body):
        match pair:
            case (ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(words)))):
                yield name, " ".join(words.split())


def from_flags(config: type[Config], /, **values: Any) -> Config:
    """A command's dataclass from the values of its flags, by key; those left out have their defaults.

    Raises:
        InputError: values that do not go together.
        TypeError: a name that is no flag, or a flag that has to be given and is not.
    """
    flags = flags_of(config)
    if unknown := [key for key in values if key not in flags]:
        raise TypeError(f"{config.__name__}: no flag {unknown[0]}{meant(unknown[0], flags)}")
    if absent := [key for key, flag in flags.items() if flag.default is MISSING and key not in values]:
        raise TypeError(f"{config.__name__}: needs {', '.join(absent)}")
    made: Config = _made(config, (), {flags[key].path: value for key, value in values.items()})
    return made


def _made(owner: Any, path: tuple[str, ...], values: Mapping[tuple[str, ...], Any]) -> Any:
    """The dataclass at ``path``, with those nested in it."""
    arguments = {}
    for each in fields(owner):
        inner = (*path, each.name)
        if inner in values:
            arguments[each.name] = values[inner]
        elif any(other[: len(inner)] == inner for other in values):
            arguments[each.name] = _made(_bare(owner, each.name), inner, values)
    return owner(**arguments)


def _bare(owner: type[Any], name: str) -> Any:
    """The type of a field without its annotations."""
    return get_type_hints(owner)[name]


def values_of(config: Any) -> dict[str, Any]:
    """The value of each flag of a command, by key."""
    return {key: _at(config, flag.path) for key, flag in flags_of(type(config)).items()}


def _at(config: Any, path: tuple[str, ...]) -> Any:
    """The value at the end of ``path``."""
    for name in path:
        config = getattr(config, name)
    return config


def changed(config: Config, /, **values: Any) -> Config:
    """The same command with other values of some flags, by key.

    Raises:
        InputError: values that do not go together.
        TypeError: a name that is no flag.
    """
    return from_flags(type(config), **{**values_of(config), **values})


def meant(word: str, known: Mapping[str, object]) -> str:
    """The nearest of the known names, for the end of a message; empty if none is near."""
    close = get_close_matches(word, known, 1)
    return f"; did you mean {close[0]}?" if close else ""


def require_flag(word: str, flags: Mapping[str, Flag], place: str) -> Flag:
    """The flag of that name.

    Raises:
        InputError: names the nearest one.
    """
    key = word.replace("-", "_")
    if key not in flags:
        names = {flag.name: flag for flag in flags.values()}
        raise InputError(f"{place}: no flag {word!r} of this command{meant(word, names)}")
    return flags[key]
