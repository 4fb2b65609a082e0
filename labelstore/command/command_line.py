"""The words of a command line, and the values of its flags; tyro, which parses them, is imported when it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, make_dataclass
from pathlib import Path
from typing import Annotated, Any

from labelstore.command.commands import Command
from labelstore.command.config_file import read_config, words_of
from labelstore.command.flags import OPTIONS, Flag, choices_of, flags_of, from_flags, is_positional
from labelstore.command.help_words import default_hint, placeholder
from labelstore.command.mistakes import key_of, require_flags, require_single_values
from labelstore.errors import InputError
from labelstore.storage_table import STORAGES, as_typed, meant_address, no_path, scheme_of, without_credentials

CONFIG, PRINT_CONFIG = "config", "print_config"
# Flags of every command.
EVERYWHERE = (
    Flag(
        key=CONFIG,
        path=(),
        kind=Path | None,
        default=None,
        help="TOML file of flags, as --print-config writes it; flags that are typed override it, and None unsets one "
        "that has no default.",
        group="running",
    ),
    Flag(
        key=PRINT_CONFIG,
        path=(),
        kind=bool,
        default=False,
        help="Print all flags with their values, as a file for --config, and exit; as the only flag, print a template.",
        group="running",
    ),
)


def spelled_out(word: str, short: Mapping[str, str]) -> str:
    """A word of a command line with the name of its flag in full."""
    flag, equals, value = word.partition("=")
    return short.get(flag, flag) + equals + value


def require_paths(words: Sequence[str], flags: Mapping[str, Flag]) -> None:
    """Refuse an address where a path is expected; a flag that takes addresses has those that a storage reads.

    Args:
        words: of the command line.
        flags: that the command has, by key.

    Raises:
        InputError: names it.
    """
    positional = any(flag.addressable for flag in flags.values() if is_positional(flag))
    before = ""
    for word in words:
        name, equals, value = word.partition("=") if word.startswith("--") else (before, "", word)
        scheme = scheme_of(value) if "://" in value else None
        flag = flags.get(key_of(name, flags)) if name else None
        readable = flag.addressable if flag else positional
        if readable and (meant := meant_address(value)) and not Path(value).exists():
            raise InputError(f"{without_credentials(word)}: no such path; an address is written {meant}")
        own = flag is not None and flag.own_address
        if scheme and not own and not (readable and scheme in STORAGES):
            raise InputError(no_path(word, STORAGES if readable else ()))
        before = word if word.startswith("--") and not equals else ""


def with_addresses(values: Mapping[str, Any], flags: Mapping[str, Flag], typed: Sequence[str]) -> dict[str, Any]:
    """The values of flags, with addresses as typed where a plain path has shortened them, and ``~`` replaced.

    Args:
        values: of the flags, by key.
        flags: of the command, by key.
        typed: the words, with credentials, which the values lack.

    Raises:
        InputError: when a flag that takes no address has one.
    """
    found = dict(values)
    complete = {
        Path(without_credentials(word)): Path(word) for each in typed for word in (each, each.partition("=")[2])
    }
    for key, value in values.items():
        if isinstance(value, Path) and value.parts[:1] == ("~",):  # in quotes, as patterns are, no shell replaces it
            found[key] = value.expanduser()
        elif isinstance(value, Path) and scheme_of(value) and key in flags:
            found[key] = as_typed(complete.get(value, value))
            if not flags[key].addressable:
                raise InputError(no_path(str(found[key])))
    return found


@dataclass(frozen=True, slots=True)
class Parsed:
    """A command line.

    Attributes:
        config: the command's dataclass.
        print_config: whether to print it as a file for --config instead of running the command.
    """

    config: Any
    print_config: bool


def read_command(command: Command, program: str, words: Sequence[str]) -> Parsed:
    """The flags of a command from its name and its words, and from the file of --config, which they override.

    Raises:
        InputError: values that do not go together, or a file that does not hold flags of this command.
        SystemExit: after the help, or a line about flags that are not there.
    """
    spelled, file = without_config([spelled_out(word, command.short) for word in words])
    flags = flags_of(command.config)
    stored = read_config(file, command.config) if file else {}
    positional = {key: value for key, value in stored.items() if is_positional(flags[key])}
    others = words_of({key: value for key, value in stored.items() if key not in positional}, flags)
    require_paths([*others, *spelled[1:]], flags)
    require_flags(spelled[1:], {**flags, **{flag.key: flag for flag in EVERYWHERE}}, program)
    typed = command.typed([spelled[0], *others, *spelled[1:]])
    require_single_values(typed[1:], flags)
    shown = [without_credentials(word) for word in typed[1:]]  # the parser prints what it cannot parse
    values = with_addresses(parse(command, program, shown, positional), flags, typed[1:])
    del values[CONFIG]
    print_config = values.pop(PRINT_CONFIG)
    return Parsed(from_flags(command.config, **values), print_config)


def without_config(words: Sequence[str]) -> tuple[list[str], Path | None]:
    """The words of a command line without --config, and its file."""
    rest: list[str] = []
    file = None
    left = iter(words)
    for word in left:
        name, equals, value = word.partition("=")
        if name != f"--{CONFIG}":
            rest.append(word)
        elif value := value if equals else next(left, ""):
            file = Path(value)
        else:
            raise InputError(f"--{CONFIG}: expected a file, found none")
    return rest, file


def parse(command: Command, program: str, words: Sequence[str], given: Mapping[str, Any]) -> dict[str, Any]:
    """The values of all flags, by key; ``given`` are those of positional ones that need not be among the words.

    The parser gets flat dataclasses, one for each group of the help, without the checks of the command's own: it would
    put the names of classes before their messages.

    Raises:
        SystemExit: after the help, or a line about flags that are not there.
    """
    import tyro

    groups: dict[str, list[tuple[str, Any, Any]]] = {OPTIONS: []}
    for flag in [*flags_of(command.config).values(), *EVERYWHERE]:
        choices = choices_of(flag.kind) if is_positional(flag) else ()
        text = f"{flag.help} {', '.join(choices)}." if choices else flag.help
        shown: Any = tyro.conf.arg(
            name=flag.name, help=text, metavar=placeholder(flag), help_behavior_hint=default_hint(flag)
        )
        marks = (shown, tyro.conf.Positional) if is_positional(flag) else (shown,)
        kind: Any = Annotated[(flag.kind, *marks)]
        default = field(default=given.get(flag.key, flag.default))
        groups.setdefault(flag.group, []).append((flag.key, kind, default))
    rows = groups.pop(OPTIONS)
    for title, members in groups.items():
        group = make_dataclass(title, members, kw_only=True, namespace={"__doc__": ""})
        rows.append((f"{title}_group", Annotated[group, tyro.conf.arg(name=title)], field()))
    flat = make_dataclass(command.config.__name__, rows, kw_only=True)
    about = "\n\n".join(filter(None, (command.about, command.more)))
    if command.examples:
        about += "\n\nExamples:\n" + "\n".join(f"  {program} {example}" for example in command.examples)
    how = (tyro.conf.OmitArgPrefixes, tyro.conf.HelptextFromCommentsOff)  # the latter reads no source of classes
    found: Any = tyro.cli(flat, prog=program, description=about, args=list(words), config=how)
    tops = {name: value for name, value in vars(found).items() if not name.endswith("_group")}
    inner = [vars(getattr(found, f"{title}_group")) for title in groups]
    return {key: value for values in (tops, *inner) for key, value in values.items()}
