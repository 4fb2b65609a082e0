"""`sweep`: the builds and runs of a grid, each in its own process; it can be stopped and continued."""

from __future__ import annotations

import fcntl
import json
import os
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from labelstore.command.console import Console, duration, quantity
from labelstore.command.stopping import StopSignals
from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError, LeaseError
from labelstore.spec import Json
from pipeline.images.places import is_there
from pipeline.launch.place import place_of
from trainer.compare import Row, as_json, as_text, table
from trainer.file_names import CONFIG
from trainer.grid import Task, read_grid, require_known
from trainer.processes import Failed, Running, start
from trainer.runs import find_runs, read_run
from trainer.runs_config import SweepConfig

POLL_SECONDS = 0.05
LOCK = ".lock"
WORDS = {"build": "build", "train": "run"}
# Flags whose paths must exist before the first command starts.
PLACES = ("images", "more_images", "test_images", "store", "more_stores")  # all values of these flags are inputs
INPUTS = (*PLACES, "weights", "student_weights")


def sweep(config: SweepConfig, console: Console) -> int:
    """Run the remaining tasks of a sweep, and print the table of its runs; returns the exit code.

    Raises:
        InputError: when a command refuses a flag, or networks, optimisers, images, weights or stores do not exist.
        LeaseError: when another process runs this sweep.
    """
    if (place := place_of(os.environ)).world != 1:
        raise InputError(f"sweep: starts its own processes, found {place.launcher}; start it without one, with --jobs")
    tasks = read_grid(config.file, config.run_folder)
    require_known(tasks, config.file)
    absent = inputs_absent(tasks)
    if config.dry_run:
        print_plan(tasks, absent, config.jobs, console)
        return 0
    if absent:
        raise InputError(
            f"{config.file}: expected all inputs before the first command starts, missing: {'; '.join(absent)}"
        )
    with held(config.run_folder), StopSignals() as stops:
        failed = run_tasks(tasks, config.jobs, console, stops)
    rows = rows_of(tasks)
    done = sum(task.folder not in {each.task.folder for each in failed} for task in tasks)
    values: dict[str, Json] = {
        "sweep": str(config.run_folder),
        "tasks": len(tasks),
        "done": done,
        "failed": [each.to_json() for each in failed],
        "groups": [as_json(row) for row in rows],
    }
    lines = [as_text(rows)] if rows else []
    lines += [f"failed: {WORDS[each.task.command]} {each.task.name}: {each.error} ({each.task.log})" for each in failed]
    lines.append(f"sweep {config.run_folder}: {done} of {len(tasks)} done")
    console.summary(values, "\n".join(lines))
    return 1 if failed else 0


def inputs_absent(tasks: Sequence[Task]) -> list[str]:
    """Missing images, stores and weights that no task makes, each with the flag that names it."""
    made = {str(task.folder) for task in tasks}
    absent: dict[str, str] = {}
    for task in tasks:
        for key in INPUTS:
            given = task.values.get(key)
            for value in given if isinstance(given, tuple) else (given,):
                path = str(value)
                inside = any(path == folder or path.startswith(f"{folder}/") for folder in made)
                named = key not in PLACES and ":" in path
                if value is not None and not named and not inside and not is_there(Path(path)):
                    absent.setdefault(path, f"--{key.replace('_', '-')} {path}")
    return list(absent.values())


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Lock a folder against other sweeps; the system releases the lock however this process ends.

    Raises:
        InputError: when the folder cannot be created, or is a run.
        LeaseError: when another process runs a sweep there.
    """
    if (folder / CONFIG).exists():
        raise InputError(f"{folder}: expected a folder for a sweep, found a run; give another --run-folder")
    try:
        for each in ("stores", "runs"):
            (folder / each).mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise InputError(f"{folder}: cannot be written ({error.strerror}); give another --run-folder") from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError as error:
        raise LeaseError(
            f"{folder}: another process runs this sweep; wait for it, or give another --run-folder"
        ) from error
    finally:
        os.close(descriptor)


def run_tasks(tasks: Sequence[Task], jobs: int, console: Console, stops: StopSignals) -> list[Failed]:
    """Run the tasks that are not done, at most ``jobs`` at a time; returns the failed ones when all have ended.

    Raises:
        KeyboardInterrupt, Stopped: after a signal, once the processes have saved and ended.
    """
    left = [task for task in tasks if seconds_of(task) is None]
    if len(left) < len(tasks):
        console.line(f"{len(tasks) - len(left)} of {len(tasks)} done before")
    running: list[Running] = []
    failed: list[Failed] = []
    try:
        while left or running:
            waiting = {task.folder for task in left} | {each.task.folder for each in running}
            lost = {each.task.folder for each in failed}
            for task in list(left):
                if task.needs in lost:
                    left.remove(task)
                    failed.append(Failed(task, "not started: its store was not built"))
                elif len(running) < jobs and task.needs not in waiting:
                    left.remove(task)
                    running.append(start(task))
            for each in [each for each in running if each.process.poll() is not None]:
                running.remove(each)
                if error := each.error():
                    failed.append(Failed(each.task, error))
                else:
                    write_done(each, each.seconds)
                ended = error or f"done in {duration(each.seconds)}"
                others = [*left, *(other.task for other in running)]
                count = f"[{len(tasks) - len(others)}/{len(tasks)}]"
                time_left = f"; {in_words(eta(tasks, others, jobs))}" if others else ""
                console.line(f"{count} {WORDS[each.task.command]} {each.task.name}: {ended}{time_left}")
            if stops.number:
                raise stops.error()
            time.sleep(POLL_SECONDS if running else 0)
    finally:
        for each in running:
            each.stop()
        for each in running:
            each.process.wait()
    return failed


def _is_done(path: Path) -> bool:
    return read_done(path) is not None


DONE = Proof("what a sweep writes of a command that has ended well", _is_done)


def read_done(path: Path) -> Mapping[str, Any] | None:
    """The record of a task that is done; None if there is none."""
    try:
        found = json.loads(path.read_text())
        return {"words": list(found["words"]), "seconds": found["seconds"]}
    except (OSError, ValueError, LookupError, TypeError):
        return None


def seconds_of(task: Task) -> float | None:
    """The seconds of a task that is done with its current flags; 0 if it was continued; None if it is not done."""
    found = read_done(task.done)
    if found is None or found["words"] != task.words or not task.folder.is_dir():
        return None
    return float(found["seconds"] or 0)


def write_done(ended: Running, seconds: float) -> None:
    """Record that a task is done, and its seconds; the time of a continued task is unknown."""
    values = {"words": ended.task.words, "seconds": round(seconds, 3) if ended.fresh else None}
    write_over(ended.task.done, json.dumps(values).encode(), DONE)


def eta(tasks: Sequence[Task], left: Sequence[Task], jobs: int) -> float | None:
    """Estimated remaining seconds, from the rates of finished tasks; None if a rate is unknown."""
    total = 0.0
    for command in WORDS:
        work = sum(task.work for task in left if task.command == command)
        timed = [(task.work, seconds) for task in tasks if task.command == command and (seconds := seconds_of(task))]
        if work and not timed:
            return None
        if work:
            total += work * sum(seconds for _, seconds in timed) / sum(done for done, _ in timed)
    return total / max(min(jobs, len(left)), 1)


def in_words(seconds: float | None) -> str:
    """The remaining time as text."""
    return "remaining time not known yet" if seconds is None else f"about {duration(seconds)} left"


def print_plan(tasks: Sequence[Task], absent: Sequence[str], jobs: int, console: Console) -> None:
    """Print all commands, which of them are done, missing inputs, and the remaining time."""
    left = [task for task in tasks if seconds_of(task) is None]
    for task in tasks:
        state = "to do" if task in left else "done"
        console.line(f"{WORDS[task.command]} {task.name} ({state}): giftwrap {shlex.join(task.words)}")
    for each in absent:
        console.line(f"missing: {each}")
    seconds = eta(tasks, left, jobs)
    values: dict[str, Json] = {
        "tasks": [{"command": task.command, "name": task.name, "words": list(task.words)} for task in tasks],
        "done": len(tasks) - len(left),
        "missing": list(absent),
        "seconds_left": seconds,
    }
    builds = sum(task.command == "build" for task in tasks)
    text = f"{quantity(builds, 'build')} and {quantity(len(tasks) - builds, 'run')}, {len(tasks) - len(left)} done"
    console.summary(values, f"{text}; {in_words(seconds)}" if left else text)


def rows_of(tasks: Sequence[Task]) -> list[Row]:
    """The table of the sweep's runs that have started."""
    begun = [task.folder for task in tasks if task.command == "train" and any(task.folder.rglob(CONFIG))]
    return table([read_run(folder) for folder in find_runs(begun)]) if begun else []
