"""Suites of evidence: reading them, their cells and commands, verdicts, and the page."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.evidence import assembling
from benchmarks.evidence.assembling import Places, make_page
from benchmarks.evidence.cells import Cell, cells_of, commands_of, picks
from benchmarks.evidence.lab import Lab, all_cells, require_runnable, result_of, typed
from benchmarks.evidence.lines import Line, read_lines
from benchmarks.evidence.suite import Claim, Comparison, Part, read_suite
from benchmarks.evidence.verdicts import judge
from benchmarks.studies.ledger import RESULTS, Ledger
from labelstore.command.console import Console
from labelstore.errors import GiftwrapError, InputError

SMALL = """
title = "small"
about = "a part"
needs = ["data:images"]
seeds = [0, 1]
[numbers]
epochs = 3
student = "--student convnet-d1 --loss ce"
[axes.loss]
gift = "--loss gift"
kl = "--loss kl --temperature {epochs}"
[axes.rate]
low = "--lr 0.1"
high = "--lr 0.2"
[steps.set]
run = "synthesize random --images $DIR/data/train --ipc 1 --size 16 --take center --seed {seed} --out {out}"
[cell]
run = "train --images {set} --size 16 --labels none {student} {rate} --epochs {epochs} --run-folder {out}"
[[grid]]
loss = ["*"]
rate = ["low"]
[[grid]]
rate = ["high"]
pick = ["best", "worst"]
of = ["loss"]
[[claims]]
id = "one"
sentence = "GIFT is above KL."
where = { part = "part", rate = "low" }
rows = "loss"
runs = 2
[[claims.rule]]
of = { loss = "gift" }
minus = { loss = "kl" }
at_least = 1.0
"""
SUITE = 'title = "page"\nminutes = 60\nparts = ["part"]\n'


def written(folder: Path, part: str = SMALL, suite: str = SUITE) -> str:
    """The path of a suite."""
    (folder / "part.toml").write_text(part)
    (folder / "suite.toml").write_text(suite)
    return str(folder / "suite.toml")


def line(number: int = 0, **fields: Any) -> Line:
    """A line of results."""
    return Line(
        fields=fields,
        cell=tuple(name for name in fields if name not in ("top1", "tests")),
        commit="abc",
        place=f"file:{number}",
    )


def claim(*rule: Comparison, **fields: Any) -> Claim:
    """A claim with a rule."""
    return Claim(id="x", sentence="X.", rule=rule, **{"runs": 2, **fields})


@pytest.mark.parametrize("name", ["quick", "full", "toy"])
def test_every_selection_of_a_rule_fits_a_cell_or_a_line(name: str) -> None:
    suite = read_suite(name)
    cells = [cell for part in suite.parts for cell in all_cells(part, None)]
    assert len(cells) == len(set(cells)) == len({cell.name for cell in cells})
    own = [Line(fields=cell.to_json(), cell=(), commit="", place="") for cell in cells]
    for part in suite.parts:
        for each in part.claims:
            if each.file == "evidence":
                lines = [found for found in own if found.fits(each.where)]
            else:
                files = [read_lines(RESULTS / f"{file}.jsonl") for file in each.file.split(" + ")]
                lines = [found for file in files for found in file if found.fits(each.where)]
            for condition in each.rule:
                sides = [condition.of, *([condition.minus] if isinstance(condition.minus, Mapping) else [])]
                for side in sides:
                    assert any(found.fits(side) for found in lines), (part.name, each.id, side)


def test_a_folder_is_named_after_its_commands_and_shared_by_equal_ones(tmp_path: Path) -> None:
    (part,) = read_suite(written(tmp_path)).parts
    gift, kl = ({"loss": name, "rate": "low"} for name in ("gift", "kl"))
    (made, own), (again, _), (other, _) = (
        commands_of(part, each, seed) for each, seed in ((gift, 0), (kl, 0), (gift, 1))
    )
    assert made == again
    assert made.out != other.out
    assert made.out in own.command
    longer = replace(part, numbers={**part.numbers, "epochs": 4})
    assert commands_of(longer, gift, 0)[0] == made
    assert commands_of(longer, gift, 0)[1].out != own.out


def test_a_shown_command_is_what_a_shell_runs(tmp_path: Path) -> None:
    (tmp_path / "set/cat").mkdir(parents=True)
    copied = subprocess.run(  # noqa: S602  shown to be typed
        typed("copy $DIR/set $DIR/copy"),
        shell=True,
        env={**os.environ, "DIR": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )
    assert copied.returncode == 0
    assert (tmp_path / "copy/cat").is_dir()
    assert typed("train --lr 1") == "giftwrap train --lr 1"
    assert typed("refused check $DIR/a") == "giftwrap check $DIR/a  # is refused"


def test_best_and_worst_are_picked_once_all_seeds_are_finished(tmp_path: Path) -> None:
    (part,) = read_suite(written(tmp_path)).parts
    known = cells_of(part, {})
    assert [dict(cell.choices)["rate"] for cell in known] == ["low"] * 4
    top1 = {cell: 10.0 * (dict(cell.choices)["loss"] == "kl") + cell.seed for cell in known}
    assert picks(part, part.grids[1], top1) == [{"loss": "kl"}, {"loss": "gift"}]
    assert not picks(part, part.grids[1], {cell: top1[cell] for cell in known[1:]})
    assert len(cells_of(part, top1)) == 8
    assert len(cells_of(part, top1, seeds=1)) == 4


@pytest.mark.parametrize(
    ("values", "verdict"),
    [
        ({"a": [5, 6], "b": [1, 2]}, "holds"),
        ({"a": [5, 6], "b": [5, 5]}, "does not hold"),
        ({"a": [5], "b": [1, 2]}, "not measured here"),
        ({"a": [], "b": [1, 2]}, "not measured here"),
    ],
)
def test_a_rule_holds_is_broken_or_lacks_runs(values: dict[str, list[float]], verdict: str) -> None:
    lines = [line(loss=name, seed=seed, top1=top1) for name, each in values.items() for seed, top1 in enumerate(each)]
    rule = Comparison(of={"loss": "a"}, minus={"loss": "b"}, at_least=1.0)
    assert judge(claim(rule), lines).verdict == verdict


def test_one_broken_condition_decides_though_another_is_not_measured() -> None:
    lines = [line(loss="a", top1=1.0), line(loss="a", top1=2.0)]
    broken, missing = (Comparison(of={"loss": name}, at_least=9.0) for name in ("a", "b"))
    assert judge(claim(broken, missing), lines).verdict == "does not hold"


def test_a_margin_below_the_deviation_is_a_doubt() -> None:
    lines = [line(loss="a", top1=value) for value in (1.0, 9.0)]
    (found,) = judge(claim(Comparison(of={"loss": "a"}, at_least=4.0)), lines).found
    assert (found.kept, "standard deviation" in found.doubt) == (True, True)


def test_a_rule_must_hold_for_each_value_of_a_field_null_included() -> None:
    lines = [line(loss=loss, expert=expert, top1=top1) for loss, expert, top1 in
             [("a", None, 2.0), ("b", None, 1.0), ("a", 4, 1.0), ("b", 4, 2.0)]]  # fmt: skip
    rule = Comparison(of={"loss": "a"}, minus={"loss": "b"}, each="expert", at_least=0.0)
    judged = judge(claim(rule, runs=1), lines)
    assert [found.kept for found in judged.found] == [True, False]
    only = judge(claim(rule, runs=1, where={"expert": "none"}), lines)
    assert (only.verdict, len(only.lines)) == ("holds", 2)


def test_pairs_have_the_same_other_choices() -> None:
    lines = [line(images=images, rate=rate, top1=top1) for images, rate, top1 in
             [("new", "low", 5.0), ("old", "low", 4.0), ("old", "high", 50.0)]]  # fmt: skip
    rule = Comparison(of={"images": "new"}, minus={"images": "old"}, at_least=0.0, paired=True)
    assert judge(claim(rule, runs=1), lines).verdict == "holds"
    assert judge(claim(replace(rule, paired=False), runs=1), lines).verdict == "does not hold"


def test_runs_of_different_test_sets_are_refused_unless_the_claim_names_their_difference() -> None:
    lines = [line(0, after="one", tests="aa", top1=1.0), line(1, after="two", tests="bb", top1=1.0)]
    rule = Comparison(of={}, at_least=0.0)
    with pytest.raises(InputError, match=r"file:0 and .*file:1"):
        judge(claim(rule, rows="after"), lines)
    assert judge(claim(rule, rows="after", tests_by="after"), lines).verdict == "holds"
    with pytest.raises(InputError):
        judge(claim(rule, tests_by="after"), [*lines, line(2, after="two", tests="cc", top1=1.0)])


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("at_least = 1.0", ""), "at_least or at_most"),
        (("runs = 2", "run = 2"), "found 'run'"),
        (('rate = ["low"]', 'rate = ["lower"]'), "found 'lower'"),
        (('sentence = "GIFT is above KL."', ""), "sentence: expected a value"),
        (("[cell]", "[cell"), "expected TOML"),
        (("at_least = 1.0", 'at_least = "1"'), "at_least: expected float | None, found '1'"),
        (("seeds = [0, 1]", "seeds = 1"), "seeds: expected tuple[int, ...], found 1"),
        (("seeds = [0, 1]", "seeds = [true]"), "seeds: expected tuple[int, ...], found [True]"),
        (('run = "train', 'run = 5 # "train'), "cell: run: expected str, found 5"),
        (("[numbers]", "numbers = 5\n[axes.more]"), "numbers: expected"),
        (('pick = ["best", "worst"]', 'pick = ["first"]'), "pick, of: expected best or worst"),
        (('of = ["loss"]', 'of = ["lass"]'), "pick, of: expected best or worst"),
    ],
)
def test_a_wrong_suite_is_refused_by_file_and_key(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    with pytest.raises(InputError, match=r"part\.toml.*") as refused:
        read_suite(written(tmp_path, SMALL.replace(*change)))
    assert text in str(refused.value)


def test_folders_with_spaces_are_found(tmp_path: Path) -> None:
    lab = Lab([], tmp_path / "my runs", None)
    assert lab.place("$DIR/part/set-0") == tmp_path / "my runs/part/set-0"
    assert "'" in lab.real("train --run-folder $DIR/part/set-0"), "quoted for a shell"


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (("epochs = 3", 'epochs = "{epochs}"'), "a name is defined by itself"),
        (("--out {out}", "--more {set} --out {out}"), "a name is defined by itself"),
        (("{set}", "{set:rate=lower}"), r"{set:rate=lower}: expected low, high, found rate=lower"),
        (("{set}", "{set:rite=low}"), "expected an axis of the part, found rite=low"),
        (("--size 16 --labels", "'--size 16 --labels"), "as a shell reads it"),
    ],
)
def test_wrong_commands_of_a_part_are_refused(tmp_path: Path, change: tuple[str, str], text: str) -> None:
    (part,) = read_suite(written(tmp_path, SMALL.replace(*change))).parts
    with pytest.raises(InputError, match=re.escape(text)):
        require_runnable(part, Lab([part], tmp_path, tmp_path))


def places(folder: Path) -> Places:
    """Places in a folder, with no lines of studies."""
    return Places(results=folder / "lines.jsonl", studies=folder, folder=folder / "runs", out=folder / "out")


def test_a_cell_that_cannot_run_is_found_before_the_first_starts(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GIFTWRAP_DATA", str(tmp_path))
    (tmp_path / "images").mkdir()
    for wrong in (("--lr 0.2", "--rate 0.2"), ("convnet-d1", "convnet-d77")):
        suite = read_suite(written(tmp_path, SMALL.replace(*wrong)))
        with pytest.raises(InputError, match="cannot run"):
            make_page(suite, places(tmp_path), Console(silent=True))
    assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "out").exists()


class Known(Lab):
    """A lab whose cells take no time."""

    def run(self, cell: Cell) -> dict[str, Any]:
        top1 = {"gift": 50.0, "kl": 20.0}[dict(cell.choices)["loss"]] + cell.seed
        return {"top1": top1, "reported": "last epoch", "tests": "aa", "commit": "c0ffee1", "seconds": 0.1}


def test_a_page_shows_the_results_and_a_second_call_runs_no_cell(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GIFTWRAP_DATA", str(tmp_path))
    monkeypatch.setattr(assembling, "Lab", Known)
    monkeypatch.setattr(assembling, "require_runnable", lambda _part, _lab: None)  # takes seconds; tested above
    (tmp_path / "images").mkdir()
    suite = read_suite(written(tmp_path))
    planned = make_page(suite, places(tmp_path), Console(silent=True), dry=True)
    assert planned == {"cells": 4, "left": 4}
    found = make_page(suite, places(tmp_path), Console(silent=True))
    assert (found["holds"], found["cells left"]) == (1, 0)
    lines = (tmp_path / "lines.jsonl").read_text()
    assert len(lines.splitlines()) == 8
    html = (tmp_path / "out" / "evidence.html").read_text()
    for text in ("GIFT is above KL.", "holds", "50.50 ± 0.71 (2)", "c0ffee1", "last epoch", "--loss ce"):
        assert text in html
    make_page(suite, places(tmp_path), Console(silent=True))
    assert (tmp_path / "lines.jsonl").read_text() == lines
    longer = read_suite(written(tmp_path, SMALL.replace("epochs = 3", "epochs = 4")))
    again = make_page(longer, places(tmp_path), Console(silent=True), minutes=0)
    assert again["not measured here"] == 1, "lines of other commands do not count"


def test_a_part_without_its_data_is_not_measured_and_the_page_names_them(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("GIFTWRAP_DATA", str(tmp_path / "elsewhere"))
    found = make_page(read_suite(written(tmp_path)), places(tmp_path), Console(silent=True))
    assert found["not measured here"] == 1
    assert "elsewhere/images is missing" in (tmp_path / "out" / "evidence.html").read_text()


def test_a_file_of_the_users_is_not_overwritten(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    page = tmp_path / "out" / "evidence.html"
    page.parent.mkdir()
    page.write_text("mine")
    with pytest.raises(GiftwrapError):
        make_page(read_suite(written(tmp_path)), places(tmp_path), Console(silent=True))
    assert page.read_text() == "mine"
    page.unlink()
    (tmp_path / "lines.jsonl").write_text("my notes\n")
    with pytest.raises(GiftwrapError, match=r"--results .*lines.jsonl: expected a file with a line of JSON"):
        make_page(read_suite(written(tmp_path)), places(tmp_path), Console(silent=True))
    assert (tmp_path / "lines.jsonl").read_text() == "my notes\n"
    assert [*page.parent.iterdir()] == []


def test_damaged_lines_are_passed_over_and_a_cell_that_two_have_done_counts_once(
    tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setenv("GIFTWRAP_DATA", str(tmp_path))
    monkeypatch.setattr(assembling, "Lab", Known)
    monkeypatch.setattr(assembling, "require_runnable", lambda _part, _lab: None)
    (tmp_path / "images").mkdir()
    suite, file = read_suite(written(tmp_path)), tmp_path / "lines.jsonl"
    make_page(suite, places(tmp_path), Console(silent=True))
    lines = file.read_bytes().splitlines(keepends=True)
    damaged = [b"\xff\xfe\n", b'{"cell": 5}\n', b'{"cell": {}}\n', b"[]\n", b"[" * 100_000 + b"\n", lines[1][:40]]
    file.write_bytes(b"".join([lines[0], *damaged, b"\n", *lines, lines[0]]))
    assert len([found for found in read_lines(file) if "loss" in found.fields]) == 8
    assert make_page(suite, places(tmp_path), Console(silent=True))["holds"] == 1
    assert "50.50 ± 0.71 (2)" in (tmp_path / "out" / "evidence.html").read_text()


def test_a_line_of_a_process_beside_this_one_is_not_added_again(tmp_path: Path) -> None:
    cell = Cell("part", (("loss", "kl"),), 0, "train")
    ours, theirs = (Ledger[Cell](tmp_path / "lines.jsonl") for _ in range(2))
    theirs.add(cell, {"top1": 1.0})
    assert cell not in ours
    ours.refresh()
    assert cell in ours


def test_a_cell_that_fails_is_named(tmp_path: Path, monkeypatch: Any) -> None:
    (part,) = read_suite(written(tmp_path)).parts
    lab = Lab([part], tmp_path, tmp_path)

    def fail(*_args: object, **_flags: object) -> Any:
        raise InputError("no such thing")

    monkeypatch.setattr(lab, "_do", fail)
    with pytest.raises(InputError, match="part gift low seed 0: no such thing"):
        lab.run(cells_of(part, {})[0])


def test_parts_are_chosen_by_name(tmp_path: Path) -> None:
    suite = read_suite(written(tmp_path))
    with pytest.raises(InputError, match="found 'other'"):
        make_page(suite, places(tmp_path), Console(silent=True), only=("other",))


@pytest.mark.long
def test_a_cell_runs_with_its_steps(tmp_path: Path) -> None:
    part: Part = next(part for part in read_suite("toy").parts if part.name == "losses")
    assembling.draw(tmp_path / "data", read_suite("toy").draw)
    lab, cell = Lab([part], tmp_path, None), cells_of(part, {})[0]
    values = lab.run(cell)
    assert (values["steps"], values["evaluations"], len(values["steps_before"])) == (2, 1, 2)
    ledger = Ledger[Cell](tmp_path / "lines.jsonl")
    ledger.add(cell, values)
    (read,) = read_lines(tmp_path / "lines.jsonl")
    assert read.numbers("top1") == [values["top1"]]
    assert json.dumps(result_of({"refused": 1.0}, tmp_path)) == '{"refused": 1.0}'
