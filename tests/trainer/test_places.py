"""What is refused before any work: places that cannot be written, addresses, and modules that are scripts."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from labelstore.command.commands import Command
from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.command.output import Output
from labelstore.command.program import run_program
from labelstore.durable.newfile import write_new
from labelstore.durable.places import require_apart, require_writable
from labelstore.errors import InputError
from labelstore.format.root import require_own
from pipeline.config import ShowConfig, json_object
from pipeline.networks.imported import imported
from trainer.plot import plot
from trainer.runs_config import PlotConfig


@pytest.mark.parametrize("address", ["s3://bucket/x", "gs:/bucket", "file:///tmp/x", "hf+x://a"])
def test_an_address_makes_no_folder(address: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for refuse in (require_own, lambda path: require_apart({"--run": path}, {})):
        with pytest.raises(InputError, match="expected a path on this machine, found an address"):
            refuse(Path(address))
    assert not [*tmp_path.iterdir()]


def test_places_that_cannot_be_written_are_named_as_they_were_typed() -> None:
    for refuse in (require_writable, lambda path: write_new(path, b"")):
        with pytest.raises(InputError, match=r"^/proc/x.csv: cannot be written \([A-Z]"):
            refuse(Path("/proc/x.csv"))


def test_a_store_in_the_way_of_which_a_file_is(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"found the file .*file in its way"):
        require_own(tmp_path / "file" / "a" / "b")


@pytest.mark.parametrize("name", ["sheet.txt", "sheet", "sheet.jpg"])
def test_a_sheet_is_a_png(name: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--out: expected a name that ends in \.png, found .*" + name):
        ShowConfig(store=tmp_path / "store", images=tmp_path / "images", out=tmp_path / name)


def test_json_of_any_depth_is_refused_in_a_line() -> None:
    with pytest.raises(InputError, match="--student-args: expected a JSON object") as error:
        json_object("--student-args", "[" * 100_000)
    assert len(str(error.value)) < 300


def test_a_run_that_is_not_there_is_said_without_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder; give the folder of a run") as caught:
        plot(from_flags(PlotConfig, runs=(tmp_path / "no",), out=tmp_path / "p.png"), Console(silent=True))
    assert "Errno" not in str(caught.value)


@pytest.mark.parametrize("raised", ["raise SystemExit('usage')", "raise ValueError('usage')", "import no_such"])
def test_a_module_may_be_a_script(raised: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a_script.py").write_text(raised)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InputError, match=r"--loss a_script:f: cannot be imported"):
        imported("--loss", "a_script:f")
    with pytest.raises(InputError, match=r"give a_script:f, with the file in this folder"):
        imported("--loss", "a_script.py:f")


def test_methods_are_attributes() -> None:
    assert imported("network", "pathlib:Path.cwd") == Path.cwd


@dataclass(frozen=True, kw_only=True)
class Config:
    """A command."""

    output: Output = field(default_factory=Output)


def test_what_a_module_prints_is_no_summary(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def act(_config: Config, console: Console) -> int:
        print("of the user's code")
        console.summary({"a": 1}, "a is 1")
        return 0

    monkeypatch.setattr(sys, "argv", ["x", "act", "--json"])
    assert run_program("x", "", {"act": Command("", f"{__name__}:Config", act)}) == 0
    said = capsys.readouterr()
    assert (said.out, said.err) == ('{"a": 1}\n', "of the user's code\n")
