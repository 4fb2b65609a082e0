"""Commands under a local Ray, as users type them: a rank is killed, all are stopped, and nothing runs on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from labelstore import LabelStore, check
from labelstore.errors import LeaseError
from pipeline.launch.place import JOB
from tests.journeys.test_torchrun import files
from tests.journeys.world import World, giftwrap

pytestmark = pytest.mark.long
UNDER_RAY = ("--ray", "--workers", 2)
PATIENCE_SECONDS = 300


def environment_of(process: Path) -> dict[str, str]:
    """The environment of a process; empty where it is gone."""
    try:
        pairs = (process / "environ").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return {}
    return dict(pair.split("=", 1) for pair in pairs if "=" in pair)


def ranks_in(folder: Path) -> dict[int, int]:
    """The process of each rank that works in a folder, by rank."""
    found = {}
    for process in Path("/proc").glob("[0-9]*"):
        values = environment_of(process)
        if JOB in values and values.get("PWD") == str(folder):
            found[int(values["RANK"])] = int(process.name)
    return found


def running_in(folder: Path) -> list[str]:
    """The command lines of all processes that have the environment of a driver in this folder."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        if environment_of(process).get("PWD") == str(folder):
            try:
                found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode()[:200])
            except OSError:
                continue
    return [line for line in found if line]


def wait_until(ready: Any, process: subprocess.Popen[bytes]) -> Any:
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := ready()):
        assert time.monotonic() < end
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.05)
    return found


@contextmanager
def driver(words: list[object], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A command in a session of its own, with its output in ``out`` and ``err``."""
    folder.mkdir(exist_ok=True)
    environment = {**os.environ, "PWD": str(folder), "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    with (folder / "out").open("wb") as out, (folder / "err").open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, words)],
            cwd=folder, env=environment, stdout=out, stderr=err, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def printed(folder: Path) -> tuple[str, str]:
    return (folder / "out").read_text(), (folder / "err").read_text()


def test_ranks_that_are_lost_begin_again_and_make_what_one_process_makes(world: World, tmp_path: Path) -> None:
    """First the process of a rank is killed, then the actor of another."""
    store, folder = tmp_path / "store", tmp_path / "driver"
    words = world.build_words(store, "--views", 600, "--json", *UNDER_RAY)
    with driver(words, folder) as process:
        wait_until(lambda: list(store.glob("markers/*.json")), process)
        first = ranks_in(folder)
        os.kill(first[1], signal.SIGKILL)
        before = len(list(store.glob("markers/*.json")))

        def begun_again() -> dict[int, int] | None:
            now = ranks_in(folder)
            whole = len(now) == 2 and not {*now.values()} & {*first.values()}
            return now if whole and len(list(store.glob("markers/*.json"))) > before else None

        second = wait_until(begun_again, process)
        status = Path(f"/proc/{second[1]}/status").read_text()
        parent = int(status.split("PPid:")[1].split()[0])
        os.kill(parent, signal.SIGKILL)
        code = process.wait(PATIENCE_SECONDS)
    out, err = printed(folder)
    assert code == 0, err
    summary = json.loads(out)
    assert summary["complete"], err
    assert err.count("was lost (ended by SIGKILL); starting all ranks again (1 of 3)") == 1, err
    assert err.count("starting all ranks again (2 of 3)") == 1, err
    assert err.count("was lost (its process") == 1, err
    for word in ("error: ", "stop", "resume with", "raylet", "Traceback"):
        assert word not in err
    assert running_in(folder) == []
    assert giftwrap(*world.build_words(tmp_path / "one", "--views", 600)).code == 0
    assert files(store) == files(tmp_path / "one")
    assert sum(summary["bytes_per_label"].values()) > 0
    logs = err.split("logs of ranks: ")[1].split("-*")[0]
    assert Path(f"{logs}-0-rank-1.err").exists()
    assert Path(f"{logs}-2-rank-0.out").read_text() == out


def test_ctrl_c_stops_all_ranks_and_the_same_command_continues(world: World, tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "driver"
    words = ["giftwrap", *world.build_words(store, "--views", 40_000, *UNDER_RAY)[1:]]
    with driver(words, folder) as process:
        wait_until(lambda: list(store.glob("markers/*.json")), process)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal sends it, to the whole group
        code = process.wait(PATIENCE_SECONDS)
    out, err = printed(folder)
    assert code == 130, err
    assert err.count("stopped; what was finished is kept") == 1
    assert err.count("resume with: ") == 1
    resume = err.split("resume with: ")[1].splitlines()[0]
    assert resume.startswith(f"{sys.executable} -m giftwrap build")
    assert resume.endswith("--ray --workers 2")
    assert "Traceback" not in out + err
    assert running_in(folder) == []
    assert check(store).ok
    with LabelStore.open(store).lease():
        pass


def test_a_driver_that_is_killed_takes_its_ranks_with_it(world: World, tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "driver"
    with driver(world.build_words(store, "--views", 40_000, *UNDER_RAY), folder) as process:
        wait_until(lambda: list(store.glob("markers/*.json")), process)
        process.kill()
        process.wait()
        end = time.monotonic() + PATIENCE_SECONDS
        while is_held(store) and time.monotonic() < end:
            time.sleep(0.1)
        assert ranks_in(folder) == {}
    with LabelStore.open(store).lease():
        pass


def is_held(store: Path) -> bool:
    """Whether a process of a build still writes."""
    try:
        with LabelStore.open(store).lease():
            return False
    except LeaseError:
        return True


def test_bad_input_of_a_rank_is_one_line_and_leaves_nothing(world: World, tmp_path: Path) -> None:
    folder, store = tmp_path / "driver", tmp_path / "store"
    with driver(world.build_words(store, "--images", tmp_path / "none", *UNDER_RAY), folder) as process:
        code = process.wait(PATIENCE_SECONDS)
    out, err = printed(folder)
    assert code == 2, err
    errors = [line for line in err.splitlines() if line]
    assert len(errors) == 1, err
    assert errors[0].startswith("error: "), err
    assert "none" in errors[0]
    assert not store.exists()
    assert running_in(folder) == []
    assert "Traceback" not in out + err
