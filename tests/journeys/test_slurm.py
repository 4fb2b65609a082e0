"""Ranks of Slurm's srun, by the environment that it gives its tasks."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.journeys.test_torchrun import files
from tests.journeys.world import SERVER, World, giftwrap, run_as_command

SCRIPT = Path(__file__).parents[2] / "examples" / "slurm.sh"
# Two tasks on one node, started together, as srun does it; an error of one is its own.
SRUN = """#!/bin/bash
shift
for task in 0 1; do
    SLURM_PROCID=$task SLURM_LOCALID=$task SLURM_NTASKS=2 SLURM_JOB_ID=7 SLURM_STEP_ID=0 SLURM_NODEID=0 \\
    SLURM_STEP_NODELIST=localhost SLURM_STEP_TASKS_PER_NODE=2 "$@" &
    tasks+=($!)
done
for task in "${tasks[@]}"; do wait "$task" || exit $?; done
"""


def be_task(task: int, job: int, words: list[str], folder: Path) -> None:
    place = {"PROCID": task, "LOCALID": task, "NTASKS": 2, "JOB_ID": job, "STEP_ID": 0, "NODEID": 0}
    os.environ.update({f"SLURM_{name}": str(value) for name, value in place.items()}, OMP_NUM_THREADS="1")
    os.environ.update(SLURM_STEP_NODELIST="localhost,node[1-2]", SLURM_STEP_TASKS_PER_NODE="2")
    run_as_command(words, folder / f"out{task}", folder / f"err{task}", None)


def test_tasks_of_srun_make_what_one_process_makes(world: World, tmp_path: Path) -> None:
    words = [str(word) for word in world.build_words(tmp_path / "two", "--json")]
    tasks = [SERVER.Process(target=be_task, args=(task, os.getpid(), words, tmp_path)) for task in range(2)]
    for task in tasks:
        task.start()
    for task in tasks:
        task.join(120)
    assert [task.exitcode for task in tasks] == [0, 0], (tmp_path / "err0").read_text()
    assert (tmp_path / "out1").read_text() == ""
    assert giftwrap(*world.build_words(tmp_path / "one")).code == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")


def test_the_script_without_its_arguments_prints_how_it_is_called() -> None:
    ended = subprocess.run(["bash", SCRIPT], capture_output=True, text=True, check=False)
    assert ended.returncode == 2
    assert ended.stderr.startswith("usage: sbatch examples/slurm.sh IMAGES WEIGHTS STORE")


@pytest.mark.long
def test_the_script_builds_a_store(world: World, tmp_path: Path) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, text in (("srun", SRUN), ("python", f'#!/bin/bash\nexec {sys.executable} "$@"\n')):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    words = [str(word) for word in world.build_words(tmp_path / "two")[2:]]
    places = {"--images", "--weights", "--store"}
    others = [word for flag, word in zip(["", *words], words, strict=False) if not {flag, word} & places]
    given = [str(path) for path in (SCRIPT, world.images, world.weights, tmp_path / "two")]
    command = ["bash", *given, *others, "--device", "cpu"]
    path = {"PATH": f"{programs}:{os.environ['PATH']}", "PYTHONPATH": os.pathsep.join(sys.path)}
    more = {"OMP_NUM_THREADS": "1"}
    flags = ["--dtype", "float32", "--json"]
    ended = subprocess.run(
        [*command, *flags], env={**os.environ, **path, **more}, capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
    assert giftwrap(*world.build_words(tmp_path / "one")).code == 0
    assert files(tmp_path / "two") == files(tmp_path / "one")
