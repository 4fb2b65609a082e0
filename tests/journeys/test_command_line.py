"""Help, versions and mistakes in flags: printed at once, without a traceback, and before anything large is imported."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import tomllib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from torch.distributed.run import get_args_parser

from benchmarks.__main__ import COMMANDS as BENCHMARKS
from giftwrap.__main__ import commands
from labelstore import __version__
from labelstore.__main__ import COMMANDS as LABELSTORE
from labelstore.command.command_line import read_command
from labelstore.command.commands import Command
from labelstore.command.flags import flags_of as fields_of
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.networks.families import FAMILIES, network_names
from tests.journeys.world import Ended, giftwrap
from trainer.__main__ import COMMANDS as TRAINER

PROGRAMS: dict[str, dict[str, Command]] = {
    "labelstore": LABELSTORE,
    "pipeline": PIPELINE,
    "trainer": TRAINER,
    "benchmarks": BENCHMARKS,
}
GIFTWRAP = commands()
# What takes longest to import; none of it is needed to read a command line.
HEAVY = ("numpy", "torch", "torchvision", "zarr", "numcodecs", "PIL", "nvidia.dali", "timm", "matplotlib", "hypothesis")
SCRIPT = "import giftwrap.__main__ as m; m.main()"  # what the installed script does
PRINTS_OUTCOMES = """
import contextlib, io, json, runpy, sys
program, lines, heavy = json.loads(sys.argv[1])
found = []
for words in lines:
    sys.argv = [program, *words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            runpy.run_module(program, run_name="__main__", alter_sys=True)
        except SystemExit as end:
            code = end.code
    found.append([out.getvalue(), err.getvalue(), [name for name in heavy if name in sys.modules], code])
print(json.dumps(found))
"""


def outcomes_of(program: str, *lines: list[str]) -> list[tuple[str, str, list[str], int]]:
    """Of command lines, one after the other: what is printed, the errors, the heavy modules imported, the exit code."""
    asked = json.dumps([program, lines, HEAVY])
    ended = subprocess.run([sys.executable, "-c", PRINTS_OUTCOMES, asked], capture_output=True, text=True, check=True)
    return [(out, err, imported, code) for out, err, imported, code in json.loads(ended.stdout)]


@pytest.mark.parametrize("program", PROGRAMS)
def test_help_imports_nothing_that_takes_long(program: str) -> None:
    names = [*PROGRAMS[program]]
    found = outcomes_of(program, ["--help"], *([name, "--help"] for name in names))
    for out, err, imported, code in found:
        assert (imported, code, err) == ([], 0, "")
        assert f"usage: python -m {program}" in out
    assert all(name in found[0][0] for name in names)


CONFIGS = {name: command.flags.partition(":")[0] for name, command in GIFTWRAP.items()}
PRINTS_IMPORTED = """
import contextlib, io, json, sys
from giftwrap.__main__ import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()), \
    contextlib.suppress(SystemExit):
    main()
print(json.dumps([*sys.modules]))
"""


def imported_by(*words: str) -> set[str]:
    """The modules that a command line imports."""
    start = [sys.executable, "-c", PRINTS_IMPORTED, *words]
    return {*json.loads(subprocess.run(start, capture_output=True, text=True, check=True).stdout)}


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["bogus"]])
def test_a_list_of_commands_imports_no_flags_of_any(words: list[str]) -> None:
    found = imported_by(*words)
    assert found & {*HEAVY, *CONFIGS.values(), "tyro", "labelstore.command.flags", "pipeline.plan.spec"} == set()


@pytest.mark.parametrize("name", ["info", "train", "build", "sweep"])
def test_a_mistake_in_flags_imports_those_of_its_command(name: str) -> None:
    found = imported_by(name, "--no-such-flag")
    assert CONFIGS[name] in found
    assert found & {*HEAVY, "tyro"} == set()
    packages = ("pipeline.", "trainer.") if name == "info" else ("trainer.",) if name == "build" else ()
    beside = [each for each in found if each.startswith(packages) and not each.endswith("__main__")]
    assert {*beside} <= {"pipeline.launch", "pipeline.launch.launching", "pipeline.launch.place"}


@pytest.mark.parametrize("name", GIFTWRAP)
def test_what_a_command_does_is_written_in_its_table_alone(name: str) -> None:
    assert GIFTWRAP[name].config.__doc__ == f"Flags of `{name}`."
    assert GIFTWRAP[name].about.endswith(".")


def test_one_command_has_those_of_all_packages() -> None:
    assert list(GIFTWRAP) == [*PIPELINE, *TRAINER, *LABELSTORE]  # and none of them twice
    found = outcomes_of("giftwrap", ["--help"], ["train", "--help"], ["bench", "run", "--help"])
    assert [others for _out, *others in found] == [["", [], 0]] * 3
    every, train, bench = (out for out, *_ in found)
    assert all(f"\n  {name} " in every for name in GIFTWRAP)
    assert "usage: giftwrap train" in train
    assert "usage: giftwrap bench run" in bench


def test_modules_of_the_working_folder_are_not_taken_for_ours_and_are_found(tmp_path: Path) -> None:
    for name in ("trainer", "pipeline", "labelstore"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('the wrong one')")
    (tmp_path / "mine.py").write_text("raise RuntimeError('found')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    words = ["pipeline", "build", "--images", "x", "--teacher", "mine:Net", "--weights", "w", "--size", "8"]
    words += ["--views", "1", "--store", "s"]
    start = [sys.executable, "-m", "giftwrap", *words[1:]]
    ended = subprocess.run(start, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert "the wrong one" not in ended.stderr + ended.stdout
    assert "error: network mine:Net: cannot be imported (RuntimeError: found)" in ended.stderr
    assert ended.returncode == 2


def test_another_package_of_the_name_of_ours_is_named(tmp_path: Path) -> None:
    (tmp_path / "pipeline.py").write_text("raise SystemExit('the wrong one')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    start = [sys.executable, "-m", "trainer", "--help"]
    ended = subprocess.run(start, capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: pipeline: expected the package of giftwrap in ")
    assert f"found {tmp_path.resolve() / 'pipeline.py'}" in ended.stderr
    assert len(ended.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", GIFTWRAP)
def test_helps_begin_with_a_short_usage_and_two_examples(name: str) -> None:
    command = GIFTWRAP[name]
    assert len(command.examples) >= 2
    out = giftwrap("giftwrap", name, "--help").out
    assert len(out.splitlines()[0]) <= 80
    head = out[: out.index("╭")]
    assert all(f"\n  giftwrap {name} {example}\n" in head for example in command.examples)


@pytest.mark.parametrize("name", ["build", "train"])
def test_helps_list_every_network(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(FAMILIES, "no.such.module", ("own-net",))  # nothing is imported for its name
    flag = {"build": "teacher", "train": "student"}[name]
    words = {*re.findall(r"[a-z0-9-]+", fields_of(GIFTWRAP[name].config)[flag].help)}
    assert {*network_names()} - words == ({"projector"} if name == "train" else set())


@pytest.mark.parametrize("name", GIFTWRAP)
def test_networks_of_the_examples_exist(name: str) -> None:
    words = [word for example in GIFTWRAP[name].examples for word in shlex.split(example)]
    given = [after for word, after in pairwise(words) if word in ("--teacher", "--student", "--encoder")]
    assert all(":" in network or network in network_names() for network in given)


def test_helps_show_no_default_as_none() -> None:
    out = giftwrap("giftwrap", "train", "--help").out
    assert not re.search(r"\{None|default: (None)?\)|\[-h\] \[OPTIONS\] PATH", out)
    usage = giftwrap("giftwrap", "convert", "--help").out.splitlines()[0]
    assert usage == "usage: giftwrap convert [-h] [OPTIONS] SOURCE DESTINATION"


def test_the_home_folder_is_written_as_a_shell_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    words = ["show", "~/set-{0..1}.tar", "--out", "~/sheet.png"]
    config: Any = read_command(PIPELINE["show"], "show", words).config
    assert (config.images, config.out) == (tmp_path / "set-{0..1}.tar", tmp_path / "sheet.png")


def test_none_undoes_a_value_of_a_file(tmp_path: Path) -> None:
    (tmp_path / "export.toml").write_text("views = 3\n")
    words = ["export", "--config", str(tmp_path / "export.toml"), "a", "b"]
    assert read_command(LABELSTORE["export"], "export", words).config.views == 3
    assert read_command(LABELSTORE["export"], "export", [*words, "--views", "None"]).config.views is None


def test_benchmarks_are_named_where_they_are_not(tmp_path: Path) -> None:
    code = "import sys; sys.argv = ['giftwrap', 'bench', 'list']; import giftwrap.__main__ as m; "
    code += "m.find_spec = lambda _: None; sys.exit(m.main())"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith("error: bench: the benchmarks are in the source tree")


@pytest.mark.parametrize("program", PROGRAMS)
def test_mistakes_are_named_before_anything_is_imported(program: str) -> None:
    name, command = next(iter(PROGRAMS[program].items()))
    mistakes: tuple[tuple[list[str], str], ...] = (
        ([], f"usage: python -m {program}"),
        ([f"{name}x"], f"found '{name}x'; did you mean {name}?"),
        (["--verbose"], f"found '--verbose'; see python -m {program} --help"),
        ([name, "--no-such-flag"], f"python -m {program} {name} --help"),
    )
    *found, version = outcomes_of(program, *(words for words, _ in mistakes), ["--version"])
    for (out, err, imported, code), (_, expected) in zip(found, mistakes, strict=True):
        assert (out, imported, code) == ("", [], 2)
        assert expected in err
        assert "Traceback" not in err
        assert command.config.__name__ not in err
    assert version == (f"giftwrap {__version__}\n", "", [], 0)


def test_flags_that_exclude_each_other_are_named_without_our_names() -> None:
    ((_, err, imported, code),) = outcomes_of("labelstore", ["export", "x", "y", "--view", "1", "--views", "2"])
    assert (err, imported, code) == ("error: --view and --views: expected one of them, found both\n", [], 2)


@pytest.mark.parametrize("word", ["s3://bucket/x", "--store=gs://bucket/x", "hf://datasets/x", "https://host/x.pt"])
@pytest.mark.parametrize("program", ["labelstore", "pipeline", "trainer"])
def test_addresses_are_no_paths(word: str, program: str) -> None:
    name = {"labelstore": "export", "pipeline": "build", "trainer": "train"}[program]
    word = word.removeprefix("--store=") if program == "labelstore" else word  # what it writes has no flag
    word = word.replace("--store", "--run-folder") if program == "trainer" else word  # it reads stores at addresses
    words = ("STORE", word) if program == "labelstore" else (word,)
    ended = giftwrap(program, name, *words, *(("--order", "stored") if name == "export" else ()))
    assert ended.code == 2
    assert ended.err.startswith(f"error: {word}: expected a path on this machine")
    assert ended.err.endswith("address; copy it here and give its path\n")


@pytest.mark.parametrize(
    "command",
    [PIPELINE["build"], TRAINER["train"], TRAINER["train-projector"]],
    ids=["build", "train", "train-projector"],
)
def test_torchrun_passes_every_flag_on(command: Command) -> None:
    parser = get_args_parser()
    theirs = {option for action in parser._actions for option in action.option_strings}
    flags = flags_of(command)
    assert len(flags) > 20
    for flag in flags:
        words = ["train", flag, "1", f"{flag}=1"]
        found = parser.parse_args(["--nproc-per-node=2", "-m", "trainer", *words])
        assert (found.training_script, found.training_script_args) == ("trainer", words)
        # Which abbreviations argparse takes differs from one Python to the next; these are in no Python.
        assert [option for option in theirs if option.startswith(flag)] in ([], [flag])


def flags_of(command: Command) -> list[str]:
    """Every flag that a command's help names."""
    words = next((p, n) for p in PROGRAMS for n, c in PROGRAMS[p].items() if c is command)
    return sorted(set(re.findall(r"(?<=[│,] )--[a-z][a-z0-9-]*", giftwrap(*words, "--help").out)))


def test_defaults_and_types_of_flags_are_the_fields() -> None:
    words = ["a", "b", "--encoding", "transform", "--fidelity", "0.9", "--views", "3"]
    config = read_command(LABELSTORE["convert"], "convert", ["", *words]).config
    assert type(config) is LABELSTORE["convert"].config
    assert (str(config.source), config.codes.fidelity, config.views, config.codes.codec, config.output.json) == (
        "a",
        0.9,
        3,
        None,
        False,
    )


@pytest.mark.parametrize(
    ("module", "code", "words"),
    [
        ("tomllib", -signal.SIGINT, ["labelstore", "info", "x"]),
        ("tomllib", -signal.SIGINT, ["pipeline", "build"]),
        ("tyro", 130, ["labelstore", "info", "x"]),
        ("torch", 130, ["pipeline", "verify", "--store", "x", "--images", "y"]),
        ("torch", 130, ["benchmarks", "list"]),
        ("tomllib", -signal.SIGINT, ["trainer", "train"]),
        ("torch", 130, ["trainer", "evaluate", "--weights", "x", "--images", "y"]),
    ],
)
def test_ctrl_c_while_modules_are_imported_ends_quietly(
    module: str, code: int, words: list[str], tmp_path: Path
) -> None:
    (tmp_path / f"{module}.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    ended = subprocess.run([sys.executable, "-m", *words], capture_output=True, text=True, env=environment)
    assert (ended.returncode, "Traceback" in ended.stderr) == (code, False), ended.stderr


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["info", "--store", "S"], "--store: info takes the store without a flag: giftwrap info S"),
        (["check", "--store=S"], "--store: check takes the store without a flag: giftwrap check S"),
        (["export", "S", "--out", "o.npy"], "--out: export takes the out without a flag: giftwrap export STORE o.npy"),
        (
            ["convert", "--source", "a", "--destination", "b"],
            "--source: convert takes the source without a flag: giftwrap convert a b",
        ),
        (["compare", "--runs", "a", "b"], "--runs: compare takes the runs without a flag: giftwrap compare a b"),
        (["verify", "--store", "A", "B", "--images", "x"], "--store: takes one value, found A and B"),
        (["build", "--imges", "x"], "--imges: no flag of this command; did you mean --images?"),
        (["train", "--bach_size", "8"], "--bach_size: no flag of this command; did you mean --batch-size?"),
        (["train", "--nonsensical", "3"], "--nonsensical: no flag of this command; see giftwrap train --help"),
        (
            ["train", "--view-order", "shufle"],
            "--view-order: expected one of shuffle, cycle, found 'shufle'; did you mean shuffle?",
        ),
    ],
)
def test_mistakes_in_flags_are_named_also_where_others_are_missing(words: list[str], message: str) -> None:
    assert giftwrap("giftwrap", *words) == Ended(2, "", f"error: {message}\n")


def test_a_loss_that_is_misspelt_has_the_nearest_one() -> None:
    words = ["--store", "s", "--images", "x", "--epochs", "3", "--run", "r", "--student", "convnet-d3"]
    ended = giftwrap("giftwrap", "train", *words, "--loss", "gitf")
    assert (ended.err.startswith("error: --loss: expected one of gift, "), ended.code) == (True, 2)
    assert ended.err.endswith("found 'gitf'; did you mean gift?\n")


@pytest.mark.parametrize("name", GIFTWRAP)
def test_print_config_alone_is_a_template_of_all_flags(name: str) -> None:
    text = giftwrap("giftwrap", name, "--print-config").out
    tomllib.loads(text)
    every = tomllib.loads(re.sub(r"^# (\S+ =) .*", r"\1 0", text, flags=re.MULTILINE))
    found = {inner for key, value in every.items() for inner in (value if isinstance(value, dict) else [key])}
    assert found == {flag.name for flag in fields_of(GIFTWRAP[name].config).values()}
