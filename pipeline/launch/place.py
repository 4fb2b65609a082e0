"""The place of this process among the ranks of its command, as the environment of its launcher names it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labelstore.errors import InputError

# Of a job that may start all its ranks again: its id, which start this is, and the words that started the launcher.
JOB, ATTEMPT, START = "GIFTWRAP_JOB", "GIFTWRAP_ATTEMPT", "GIFTWRAP_START"
NO_STEPS = 0xFFFF_FFF0  # Slurm's batch script, interactive shell and others have step ids from here on
LOWEST_PORT, PORTS = 12_000, 16_000  # below those that systems give away
RANKS = re.compile(r"(\d+)(?:\(x(\d+)\))?")
SPAN = re.compile(r"(\d+)(?:-(\d+))?")


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a process.

    Attributes:
        rank: of all.
        world: how many there are.
        local_rank: place among those on this host.
        local_world: how many there are on this host.
        launcher: torchrun, srun or ray; empty for a single process.
        job: id of the job, where its launcher may start all of it again after all of it has ended; empty otherwise.
        attempt: which start of the job this is, from 0.
        master: host of rank 0, where the launcher does not set it in the environment.
        port: on which rank 0 is met, likewise.
    """

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1
    launcher: str = ""
    job: str = ""
    attempt: int = 0
    master: str = ""
    port: int = 0


def place_of(environment: Mapping[str, str]) -> Place:
    """The place that an environment defines; a single process if it defines none.

    Raises:
        InputError: what is there is no place.
    """
    if environment.get("RANK") and environment.get("WORLD_SIZE"):
        return of_torchrun(environment)
    return of_slurm(environment) or Place()


def of_torchrun(environment: Mapping[str, str]) -> Place:
    """The place that torchrun names, or Ray's ranks in the same words.

    Raises:
        InputError: what is there are no numbers.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
    found = {name: environment.get(name) for name in names}
    try:
        rank, world = int(found["RANK"] or 0), int(found["WORLD_SIZE"] or 1)
        local_rank, local_world = int(found["LOCAL_RANK"] or rank), int(found["LOCAL_WORLD_SIZE"] or world)
        attempt = int(environment.get(ATTEMPT) or 0)
    except ValueError as error:
        raise InputError(f"environment: expected numbers, as torchrun sets them, found {found}") from error
    job = environment.get(JOB, "")
    if world == 1 and not job:
        return Place()
    return Place(rank, world, local_rank, local_world, "ray" if job else "torchrun", job, attempt)


def of_slurm(environment: Mapping[str, str]) -> Place | None:
    """The place that srun names; None outside of a step of several tasks.

    The script of sbatch has the same variables as its first task, but no step.

    Raises:
        InputError: what is there are no numbers, or no list of nodes.
    """
    names = ("SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID", "SLURM_JOB_ID", "SLURM_STEP_ID")
    found = {name: environment.get(name, "") for name in names}
    if not all(found.values()):
        return None
    if not all(value.isdecimal() for value in found.values()):
        raise InputError(f"environment: expected numbers, as srun sets them, found {found}")
    rank, world, local_rank, job, step = map(int, found.values())
    if step >= NO_STEPS or world == 1:
        return None
    nodes = first_of(environment, "SLURM_STEP_NODELIST", "SLURM_JOB_NODELIST", "SLURM_NODELIST")
    tasks = tasks_of(first_of(environment, "SLURM_STEP_TASKS_PER_NODE", "SLURM_TASKS_PER_NODE"))
    node = environment.get("SLURM_NODEID", "0")
    if not (node.isdecimal() and int(node) < len(tasks)):
        raise InputError(f"SLURM_NODEID: expected 0 to {len(tasks) - 1}, one for each entry of tasks, found {node!r}")
    if not (rank < world == sum(tasks) and local_rank < tasks[int(node)]):
        raise InputError(f"environment: expected a place among {world} tasks on nodes with {tasks}, found {found}")
    return Place(
        rank,
        world,
        local_rank,
        tasks[int(node)],
        "srun",
        job=f"slurm-{job}.{step}",
        attempt=int(environment.get("SLURM_RESTART_COUNT") or 0),
        master=first_node(nodes),
        port=LOWEST_PORT + (job * 31 + step) % PORTS,
    )


def first_of(environment: Mapping[str, str], *names: str) -> str:
    """The first of some variables that is set.

    Raises:
        InputError: none is.
    """
    found = next((environment[name] for name in names if environment.get(name)), None)
    if found is None:
        raise InputError(f"environment: srun sets {' or '.join(names)}, found none of them")
    return found


def tasks_of(text: str) -> list[int]:
    """The tasks of each node, from ``4(x2),3``: [4, 4, 3].

    Raises:
        InputError: it is no such list.
    """
    counts: list[int] = []
    for part in text.split(","):
        match = RANKS.fullmatch(part)
        if match is None:
            raise InputError(f"SLURM_TASKS_PER_NODE: expected numbers as in 4(x2),3, found {text!r}")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts


def first_node(text: str) -> str:
    """The first of a list of nodes: of ``gpu[003-010,12],cpu1`` it is ``gpu003``.

    Raises:
        InputError: it is no such list.
    """
    name, rest = "", text.strip()
    while rest and rest[0] != ",":
        before, bracket, after = rest.partition("[")
        if not bracket or "," in before:
            return name + rest.partition(",")[0]
        inside, closed, rest = after.partition("]")
        span = SPAN.match(inside)
        if span is None or not closed:
            raise InputError(f"SLURM_JOB_NODELIST: expected names as in gpu[003-010,12],cpu1, found {text!r}")
        name += before + span[1]
    if not name:
        raise InputError(f"SLURM_JOB_NODELIST: expected names of nodes, found {text!r}")
    return name


def started(package: str, place: Place, environment: Mapping[str, str]) -> list[str]:
    """The words that start a package's program as this one was; none on ranks that do not print how to resume."""
    if place.rank:
        return []
    typed = Path(sys.argv[0]).name == package  # the installed script
    here = [package] if typed else [sys.executable, "-m", package]
    if place.launcher == "ray":
        return [str(word) for word in json.loads(environment.get(START, "[]"))]
    if place.launcher == "srun":
        return ["srun", f"--ntasks={place.world}", *here]
    if place.world == 1:
        return here
    # The rest is the cluster's.
    nodes = [] if place.local_world == place.world else [f"--nnodes={place.world // place.local_world}", "..."]
    return ["torchrun", *nodes, f"--nproc-per-node={place.local_world}", "-m", package]


def start_of(package: str) -> list[str]:
    """The same of this process; none in an environment that the command will refuse."""
    try:
        return started(package, place_of(os.environ), os.environ)
    except InputError:
        return []


def own_gpu(place: Place, environment: Mapping[str, str]) -> int:
    """Index of this rank's GPU among those that it sees: Ray, and Slurm where it binds GPUs, show each rank its own."""
    visible = environment.get("CUDA_VISIBLE_DEVICES")
    if place.launcher in ("ray", "srun") and visible and len(visible.split(",")) == 1:
        return 0
    return place.local_rank


def environment_of(rank: int, nodes: Sequence[str]) -> dict[str, str]:
    """The place of a rank, as torchrun names it.

    Args:
        rank: whose.
        nodes: the node of each rank; those of one node follow one another.
    """
    node = nodes[rank]
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(nodes)),
        "LOCAL_RANK": str(rank - nodes.index(node)),
        "LOCAL_WORLD_SIZE": str(nodes.count(node)),
    }
