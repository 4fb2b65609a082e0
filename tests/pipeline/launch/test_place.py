"""The place of a rank, read from the environment of each launcher."""

from __future__ import annotations

import re
import sys
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from labelstore.errors import InputError
from pipeline.launch.place import ATTEMPT, JOB, START, Place, first_node, own_gpu, place_of, started, tasks_of

# As srun gives it to the fifth of five tasks on two nodes.
SRUN = {
    "SLURM_PROCID": "4", "SLURM_NTASKS": "5", "SLURM_LOCALID": "1", "SLURM_JOB_ID": "1234", "SLURM_STEP_ID": "0",
    "SLURM_STEP_NODELIST": "gpu[007,009]", "SLURM_STEP_TASKS_PER_NODE": "3,2", "SLURM_NODEID": "1",
}  # fmt: skip
TORCHRUN = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}


def test_tasks_of_srun_are_ranks() -> None:
    place = place_of(SRUN)
    assert (place.rank, place.world, place.local_rank, place.local_world) == (4, 5, 1, 2)
    assert (place.launcher, place.master, place.job, place.attempt) == ("srun", "gpu007", "slurm-1234.0", 0)
    assert 1024 < place.port < 32768
    assert place_of(SRUN | {"SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_NODEID": "0"}).port == place.port
    assert place_of(SRUN | {"SLURM_STEP_ID": "1"}).port != place.port
    assert place_of(SRUN | {"SLURM_RESTART_COUNT": "2"}).attempt == 2
    whole_job = {name.replace("_STEP_TASKS", "_TASKS").replace("_STEP_NODE", "_JOB_NODE"): SRUN[name] for name in SRUN}
    assert place_of(whole_job) == place


@pytest.mark.parametrize(
    "changes",
    [
        {"SLURM_STEP_ID": ""},  # the script of sbatch
        {"SLURM_STEP_ID": str(2**32 - 5)},
        {"SLURM_STEP_ID": str(2**32 - 6)},
        {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},
    ],
)
def test_outside_of_a_step_of_several_tasks_a_command_is_alone(changes: dict[str, str]) -> None:
    assert place_of(SRUN | changes) == Place()


def test_what_torchrun_sets_comes_before_what_srun_sets() -> None:
    assert place_of(SRUN | TORCHRUN) == Place(5, 8, 1, 4, "torchrun")
    assert place_of({"RANK": "0", "WORLD_SIZE": "1"}) == Place()
    assert place_of(TORCHRUN | {JOB: "a", ATTEMPT: "2"}) == Place(5, 8, 1, 4, "ray", "a", 2)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"SLURM_PROCID": "five"}, "expected numbers, as srun sets them"),
        ({"SLURM_PROCID": "5"}, "expected a place among 5 tasks"),
        ({"SLURM_LOCALID": "2"}, "expected a place among 5 tasks"),
        ({"SLURM_NODEID": "2"}, "SLURM_NODEID: expected 0 to 1"),
        ({"SLURM_STEP_TASKS_PER_NODE": "3,1"}, "expected a place among 5 tasks"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "SLURM_TASKS_PER_NODE: expected numbers"),
        ({"SLURM_STEP_NODELIST": ""}, "srun sets SLURM_STEP_NODELIST or SLURM_JOB_NODELIST"),
        ({"SLURM_STEP_NODELIST": "gpu[x]"}, "SLURM_JOB_NODELIST: expected names"),
    ],
)
def test_what_is_no_place_is_refused_by_name(changes: dict[str, str], named: str) -> None:
    with pytest.raises(InputError, match=re.escape(named)):
        place_of(SRUN | changes)


@pytest.mark.parametrize(
    ("nodes", "first"),
    [
        ("alone", "alone"),
        ("a1,a2", "a1"),
        ("gpu[003-010,12],cpu1", "gpu003"),
        ("gpu[7]", "gpu7"),
        ("rack[1-2]-node[04,06],x", "rack1-node04"),
        ("login.site,gpu[1-2]", "login.site"),
        ("r[2]n3,r4", "r2n3"),
    ],
)
def test_the_first_of_a_list_of_nodes(nodes: str, first: str) -> None:
    assert first_node(nodes) == first


@pytest.mark.parametrize("nodes", ["", ",a", "gpu[", "gpu[]", "gpu[a]"])
def test_what_is_no_list_of_nodes_is_refused(nodes: str) -> None:
    with pytest.raises(InputError, match="SLURM_JOB_NODELIST"):
        first_node(nodes)


@given(st.lists(st.tuples(st.integers(1, 64), st.integers(1, 9)), min_size=1, max_size=6))
def test_tasks_of_nodes_are_written_out(runs: list[tuple[int, int]]) -> None:
    text = ",".join(f"{tasks}(x{times})" if times > 1 else str(tasks) for tasks, times in runs)
    assert tasks_of(text) == [tasks for tasks, times in runs for _ in range(times)]


@pytest.mark.parametrize(
    ("launcher", "visible", "index"),
    [
        ("torchrun", "3", 1),
        ("torchrun", None, 1),
        ("srun", "0,1", 1),
        ("srun", "0", 0),
        ("ray", "3", 0),
        ("ray", "", 1),
    ],
)
def test_a_rank_takes_its_own_gpu(launcher: str, visible: str | None, index: int) -> None:
    shown = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    assert own_gpu(Place(1, 2, 1, 2, launcher), shown) == index


def test_how_to_resume_is_what_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    here: list[Any] = [sys.executable, "-m", "pipeline"]
    assert started("pipeline", Place(), {}) == here
    assert started("pipeline", Place(0, 4, 0, 2, "torchrun"), {}) == [
        "torchrun", "--nnodes=2", "...", "--nproc-per-node=2", "-m", "pipeline"
    ]  # fmt: skip
    assert started("pipeline", Place(0, 4, 0, 2, "srun"), {}) == ["srun", "--ntasks=4", *here]
    assert started("pipeline", Place(0, 4, 0, 2, "ray", "job"), {START: '["giftwrap"]'}) == ["giftwrap"]
    assert started("pipeline", Place(1, 4, 1, 2, "ray", "job"), {START: '["giftwrap"]'}) == []
