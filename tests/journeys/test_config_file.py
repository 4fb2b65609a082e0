"""Flags in a TOML file: what is written is read again, what is typed overrides it, and mistakes are named."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from giftwrap.__main__ import commands
from labelstore.command.command_line import read_command
from labelstore.command.config_file import kinds_of, read_config, to_toml
from labelstore.command.flags import Flag, flags_of, from_flags, values_of
from labelstore.errors import InputError

COMMANDS = commands()
TEXT = st.text(st.characters(blacklist_categories=["Cs"]), min_size=1)


def values(kind: Any) -> st.SearchStrategy[Any]:
    """Any value of a flag's type."""
    if get_origin(kind) is Literal:
        return st.sampled_from(get_args(kind))
    if get_origin(kind) is tuple:
        kinds = get_args(kind)
        if kinds[1:] == (...,):
            return st.lists(values(kinds[0]), max_size=4).map(tuple)
        return st.tuples(*map(values, kinds))
    plain = {
        str: TEXT,
        Path: TEXT.map(Path),
        bool: st.booleans(),
        int: st.integers(-(2**63), 2**63 - 1),
        float: st.floats(allow_nan=False),
    }
    return plain[kind]


def flag_values(flag: Flag) -> st.SearchStrategy[Any]:
    some = st.one_of(*map(values, kinds_of(flag)))
    return st.one_of(st.none(), some) if flag.default is None else some


def round_trip(config: type[Any], path: Path, data: st.DataObject, monkeypatch: pytest.MonkeyPatch) -> None:
    """What `to_toml` writes of any values, `read_config` reads: all but those that are None."""
    drawn = {key: data.draw(flag_values(flag), label=key) for key, flag in flags_of(config).items()}
    with monkeypatch.context() as patch:
        patch.setattr("labelstore.command.config_file.values_of", lambda _: drawn)
        patch.setattr("labelstore.command.config_file.type", lambda _: config, raising=False)
        text = to_toml(object())
    path.write_bytes(text.encode())
    assert read_config(path, config) == {key: value for key, value in drawn.items() if value is not None}


@pytest.mark.parametrize("name", COMMANDS)
@settings(max_examples=10, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_what_is_written_is_read(
    name: str, data: st.DataObject, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    round_trip(COMMANDS[name].config, tmp_path / "f.toml", data, monkeypatch)


def test_typed_flags_override_the_file_and_positional_ones_may_be_in_it(tmp_path: Path) -> None:
    command, path = COMMANDS["convert"], tmp_path / "f.toml"
    path.write_text('source = "a"\ndestination = "b"\nencoding = "transform"\nfidelity = 0.9\nviews = 3\n')
    config = read_command(command, "convert", ["convert", "--config", str(path), "--views", "4"]).config
    assert (config.source, config.destination, config.views, config.codes.fidelity) == (Path("a"), Path("b"), 4, 0.9)
    other = read_command(command, "convert", ["convert", "x", "y", f"--config={path}"]).config
    assert (other.source, other.destination, other.views) == (Path("x"), Path("y"), 3)
    wanted = {**values_of(config), "views": None, "fidelity": None}
    assert from_flags(command.config, **wanted).codes.fidelity is None


def test_print_config_writes_what_config_reads(tmp_path: Path) -> None:
    command = COMMANDS["export"]
    parsed = read_command(command, "export", ["export", "s", "o", "--view", "2", "--print-config"])
    assert parsed.print_config
    path = tmp_path / "f.toml"
    path.write_text(to_toml(parsed.config))
    again = read_command(command, "export", ["export", "--config", str(path)])
    assert (again.config, again.print_config) == (parsed.config, False)


@pytest.mark.parametrize("name", COMMANDS)
def test_the_examples_of_the_help_are_repeated_by_a_file(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = COMMANDS[name]
    monkeypatch.chdir(tmp_path)
    examples = [shlex.split(example) for example in command.examples]
    for words in (words for words in examples if "--config" not in words):
        config = read_command(command, name, [name, *words]).config
        Path("f.toml").write_text(to_toml(config))
        assert read_command(command, name, [name, "--config", "f.toml"]).config == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("vews = 3", "no flag 'vews' of this command; did you mean views?"),
        ('views = "3"', "views: expected an integer, found '3'"),
        ("views = true", "views: expected an integer, found True"),
        ('encoding = "int9"', "encoding: expected one of 'int8', 'float16', 'transform', found 'int9'"),
        ("[runing]\njson = true", r"no group \[runing\] of this command; did you mean running?"),
        ("[running]\nviews = 3", r"views belongs to \[options\], found in \[running\]"),
        ("views = 3\nviews = 4", "expected TOML"),
        ("views = ", "expected TOML"),
        (None, "cannot be read"),
    ],
)
def test_mistakes_in_a_file_are_named_in_one_line(text: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / "f.toml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        read_config(path, COMMANDS["convert"].config)
    assert len(str(caught.value).splitlines()) == 1
    assert str(path) in str(caught.value)
