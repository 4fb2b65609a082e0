"""The commands of a sweep: in which order they run, what is skipped, and what happens when some fail.

They are stood in for by a small program; tests/journeys/test_several.py runs the real ones.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.errors import InputError, LeaseError
from trainer import processes
from trainer.grid import Task, read_grid
from trainer.runs_config import SweepConfig
from trainer.sweep import eta, held, sweep, write_done

PROGRAM = """
import sys
from pathlib import Path
flags = dict(word.split("=", 1) for word in sys.argv if word.startswith("--") and "=" in word)
folder = Path(flags.get("--run-folder", flags["--store"]))
if sys.argv[1] == "train":
    assert any(Path("out/stores").glob("*/whole")), "no store yet"
with open("started", "a") as file:
    file.write(f"{sys.argv[1]} {folder.name}\\n")
folder.mkdir(exist_ok=True)
print("working on", folder.name)
if Path("break").exists() and Path("break").read_text() in folder.name:
    print("error: it broke\\nresume with: nothing", file=sys.stderr)
    sys.exit(1)
(folder / "whole").touch()
"""
GRID = """
[build]
images = "train"
teacher = ["convnet-d3"]
weights = ["w"]
size = 32
views = 4
flip = [0.0, 0.5]
[train]
store = "{store}"
images = "train"
student = "convnet-d3"
epochs = 6
seed = [0, 1]
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepConfig:
    """A grid of two builds with two runs each, and what they read."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "program.py").write_text(PROGRAM)
    monkeypatch.setattr(processes, "PROGRAM", (sys.executable, str(tmp_path / "program.py")))
    (tmp_path / "grid.toml").write_text(GRID)
    (tmp_path / "train").mkdir()
    (tmp_path / "w").touch()
    return from_flags(SweepConfig, file=Path("grid.toml"), run_folder=Path("out"), jobs=2)


def run(config: SweepConfig, capsys: pytest.CaptureFixture[str]) -> tuple[int, dict[str, Any], list[str]]:
    """The exit code of a sweep, its summary, and the commands that were started."""
    started = Path("started")
    before = started.read_text() if started.exists() else ""
    code = sweep(config, Console(as_json=True))
    return code, json.loads(capsys.readouterr().out), started.read_text()[len(before) :].splitlines()


def test_stores_come_first_and_what_is_done_is_skipped(config: SweepConfig, capsys: pytest.CaptureFixture[str]) -> None:
    code, summary, started = run(config, capsys)
    assert (code, summary["tasks"], summary["done"], summary["failed"]) == (0, 6, 6, [])
    assert sorted(started[:2]) == ["build flip=0.0", "build flip=0.5"]
    assert len(set(started)) == len(started) == 6
    assert run(config, capsys)[2] == []
    Path("grid.toml").write_text(GRID.replace("seed = [0, 1]", "seed = [1, 2]"))
    assert sorted(run(config, capsys)[2]) == ["train flip=0.0,seed=2", "train flip=0.5,seed=2"]
    Path("grid.toml").write_text(GRID.replace("epochs = 6", "epochs = 7").replace("seed = [0, 1]", "seed = [0]"))
    assert sorted(run(config, capsys)[2]) == ["train flip=0.0,seed=0", "train flip=0.5,seed=0"]


def test_others_run_when_some_fail_and_the_next_call_runs_those_again(
    config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("break").write_text("flip=0.0,seed=1")
    code, summary, started = run(config, capsys)
    log = "out/runs/flip=0.0,seed=1.log"
    failure = {"command": "train", "name": "flip=0.0,seed=1", "error": "error: it broke", "log": log}
    assert (code, summary["done"], summary["failed"], len(started)) == (1, 5, [failure], 6)
    assert "working on flip=0.0,seed=1\n" in Path(log).read_text()
    Path("break").unlink()
    assert run(config, capsys)[::2] == (0, ["train flip=0.0,seed=1"])


def test_runs_of_a_store_that_was_not_built_are_not_started(
    config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("break").write_text("flip=0.5")
    code, summary, started = run(config, capsys)
    errors = {each["name"]: each["error"] for each in summary["failed"]}
    lost = "not started: its store was not built"
    assert errors == {"flip=0.5": "error: it broke", "flip=0.5,seed=0": lost, "flip=0.5,seed=1": lost}
    assert (code, summary["done"]) == (1, 3)
    assert not any("flip=0.5," in line for line in started)


def test_missing_inputs_are_refused_before_anything_starts(
    config: SweepConfig, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("w").unlink()
    with pytest.raises(InputError, match=r"before the first command starts, missing: --weights w$"):
        sweep(config, Console())
    assert not Path("out").exists()
    dry = from_flags(SweepConfig, file=Path("grid.toml"), run_folder=Path("out"), dry_run=True)
    assert sweep(dry, Console(as_json=True)) == 0
    values = json.loads(capsys.readouterr().out)
    assert (len(values["tasks"]), values["missing"], values["seconds_left"]) == (6, ["--weights w"], None)
    assert not Path("out").exists()


def test_one_sweep_at_a_time(config: SweepConfig) -> None:
    with held(config.run_folder), pytest.raises(LeaseError, match="another process runs this sweep"):
        sweep(config, Console())
    Path("run").mkdir()
    (Path("run") / "config.json").touch()
    with pytest.raises(InputError, match="found a run"), held(Path("run")):
        pass


def test_torchrun_is_refused(config: SweepConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match="found torchrun"):
        sweep(config, Console())


def test_the_time_that_is_left_follows_from_the_rates_of_what_is_done(config: SweepConfig) -> None:
    Path("grid.toml").write_text(GRID.replace("epochs = 6", "epochs = [6, 60]").replace("views = 4", "views = [4, 40]"))
    tasks = read_grid(config.file, config.run_folder)
    builds = [task for task in tasks if task.command == "build"]
    trains = [task for task in tasks if task.command == "train"]
    assert eta(tasks, tasks, 1) is None

    def finish(task: Task, seconds: float) -> None:
        task.folder.mkdir(parents=True)
        process: Any = None
        ended = processes.Running(task, process, 0.0, 0, fresh=True)
        write_done(ended, seconds)

    finish(builds[0], 8.0)  # 4 views: 2 s each
    finish(trains[0], 6.0)  # 6 epochs: 1 s each
    assert eta(tasks, builds[1:], 1) == pytest.approx(2 * sum(task.work for task in builds[1:]))
    assert eta(tasks, trains[1:], 2) == pytest.approx(sum(task.work for task in trains[1:]) / 2)


def test_further_stores_of_a_run_are_inputs_and_words_of_its_command(config: SweepConfig) -> None:
    """`--more-stores` and `--more-images` of runs, beside the store that the sweep builds."""
    more = 'more-stores = [["b", "c"]]\nmore-images = [["y", "train"]]'
    Path("grid.toml").write_text(GRID + more)
    with pytest.raises(InputError) as error:
        sweep(config, Console(silent=True))
    assert all(f"{flag}" in str(error.value) for flag in ("--more-stores b", "--more-stores c", "--more-images y"))
    tasks = [task for task in read_grid(Path("grid.toml"), Path("out")) if task.command == "train"]
    assert {task.values["more_stores"] for task in tasks} == {(Path("b"), Path("c"))}
    assert all("b,c" not in task.name for task in tasks)  # one value, and no difference
