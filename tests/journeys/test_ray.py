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
from pipeline.networks import read_weights
from tests.journeys.test_torchrun import files, torchrun
from tests.journeys.world import SIDE, TEACHER, World, giftwrap

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


def require_nothing_runs_in(folder: Path) -> None:
    """All processes have ended; Ray's agents do so a moment after the others."""
    end = time.monotonic() + 20
    while (found := running_in(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    assert found == []


def wait_until(ready: Any, process: subprocess.Popen[bytes], folder: Path) -> Any:
    """Wait for what is to happen while the process runs."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not (found := ready()):
        assert process.poll() is None, printed(folder)
        assert time.monotonic() < end, printed(folder)
        time.sleep(0.05)
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
        wait_until(lambda: list(store.glob("markers/*.json")), process, folder)
        first = ranks_in(folder)
        os.kill(first[1], signal.SIGKILL)
        before = len(list(store.glob("markers/*.json")))

        def begun_again() -> dict[int, int] | None:
            now = ranks_in(folder)
            whole = len(now) == 2 and not {*now.values()} & {*first.values()}
            return now if whole and len(list(store.glob("markers/*.json"))) > before else None

        second = wait_until(begun_again, process, folder)
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
    for word in ("error: ", "stop", "resume with", "(raylet", "Traceback"):
        assert word not in err
    require_nothing_runs_in(folder)
    assert giftwrap(*world.build_words(tmp_path / "one", "--views", 600)).code == 0
    assert files(store) == files(tmp_path / "one")
    assert sum(summary["bytes_per_label"].values()) > 0
    logs = err.split("logs of ranks: ")[1].split("-*")[0]
    assert Path(f"{logs}-0-rank-1.err").exists()
    assert Path(f"{logs}-2-rank-0.out").read_text() == out


def of_each_kind(world: World, out: Path) -> dict[str, list[object]]:
    """The words of each command but `build`, at toy size; of batches that two ranks do not share evenly."""
    teacher = (*TEACHER, "--weights", world.weights)
    crops = ("--images", world.images, "--batch-size", 7, "--epochs", 100, "--threads", 1, "--run-folder", out)
    encoder = ("--encoder", *TEACHER[1:2], "--encoder-args", *TEACHER[3:], "--encoder-weights", world.weights)
    backbone = ("--backbone", "uvit-xs", "--backbone-args", '{"dim": 16, "depth": 2, "heads": 2}', "--patch", 4)
    return {
        "train": ["train", "--store", world.store, "--student", "convnet-d2", *crops],
        "train-projector": ["train-projector", "--size", SIDE, *encoder, *teacher, *crops],
        "train-generator": ["train-generator", "--size", SIDE, *backbone, *crops],
        "synthesize": [
            "synthesize", "sre2l", "--images", world.images, "--size", SIDE, "--ipc", 8, "--iterations", 400,
            "--batch", 3, *teacher, "--threads", 1, "--out", out,
        ],
    }  # fmt: skip


COMMANDS = ("train", "train-projector", "train-generator", "synthesize")


def has_begun(out: Path, jobs: str) -> bool:
    """Whether a command has finished an epoch, or there are such jobs of a set."""
    return bool([*out.glob("log.jsonl"), *out.parent.glob(f".{out.name}.partial/{jobs}")])


def require_same(name: str, ours: Path, theirs: Path) -> None:
    """The same images, or the same weights after the same steps."""
    if name == "synthesize":
        assert files(ours) == files(theirs)
        return
    found, wanted = (
        {path.name: read_weights(path).tensors for path in run.glob("*.safetensors")} for run in (ours, theirs)
    )
    assert found.keys() == wanted.keys() != set()
    for file, tensors in wanted.items():
        for key, value in tensors.items():
            assert value.equal(found[file][key]), (file, key)
    steps = [
        [json.loads(line)["step"] for line in (run / "log.jsonl").read_text().splitlines()] for run in (ours, theirs)
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_that_loses_a_rank_makes_what_ranks_without_ray_make(name: str, world: World, tmp_path: Path) -> None:
    out, plain, folder = tmp_path / "out", tmp_path / "plain", tmp_path / "driver"
    with driver(["giftwrap", *of_each_kind(world, out)[name], "--json", *UNDER_RAY], folder) as process:
        wait_until(lambda: has_begun(out, "jobs/*.npz"), process, folder)
        os.kill(ranks_in(folder)[1], signal.SIGKILL)
        code = process.wait(PATIENCE_SECONDS)
    printed_out, err = printed(folder)
    assert code == 0, err
    json.loads(printed_out)  # one summary
    assert err.count("rank 1 on ") == err.count("was lost (ended by SIGKILL); starting all ranks again (1 of 3)") == 1
    for word in ("error: ", "stopped", "resume with", "(raylet", "Traceback"):
        assert word not in err
    require_nothing_runs_in(folder)
    logs = err.split("logs of ranks: ")[1].split("-*")[0]
    assert all(Path(f"{logs}-{attempt}-rank-{rank}.err").exists() for attempt in (0, 1) for rank in (0, 1))
    ended = torchrun(2, ["giftwrap", *of_each_kind(world, plain)[name]], tmp_path / "ranks")
    assert [rank.code for rank in ended] == [0, 0], ended[0].err
    require_same(name, out, plain)


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_to_the_whole_group_ends_a_command_with_its_own_line(
    number: int, name: str, world: World, tmp_path: Path
) -> None:
    """As a terminal, `timeout` and batch systems send it: to the processes of the local Ray as well."""
    out, folder = tmp_path / "out", tmp_path / "driver"
    longer = ("--iterations", 100_000) if name == "synthesize" else ("--epochs", 100_000)
    words = ["giftwrap", *of_each_kind(world, out)[name], *longer, *UNDER_RAY]
    with driver(words, folder) as process:
        wait_until(lambda: has_begun(out, "jobs"), process, folder)
        os.killpg(process.pid, number)
        code = process.wait(PATIENCE_SECONDS)
    printed_out, err = printed(folder)
    assert code == 128 + number, err
    assert err.count("stopped; what was finished is kept") == err.count("resume with: ") == 1, err
    for word in ("GCS", "(raylet", "Traceback", "error: ", "was lost"):
        assert word not in printed_out + err
    require_nothing_runs_in(folder)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_all_ranks_of_a_build(number: int, world: World, tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "driver"
    words = ["giftwrap", *world.build_words(store, "--views", 40_000, *UNDER_RAY)[1:]]
    with driver(words, folder) as process:
        wait_until(lambda: list(store.glob("markers/*.json")), process, folder)
        os.killpg(process.pid, number)  # as a terminal, `timeout` and batch systems send it, to the whole group
        code = process.wait(PATIENCE_SECONDS)
    out, err = printed(folder)
    assert code == 128 + number, err
    assert "GCS" not in err
    assert err.count("stopped; what was finished is kept") == 1
    assert err.count("resume with: ") == 1
    resume = err.split("resume with: ")[1].splitlines()[0]
    assert resume.startswith(f"{sys.executable} -m giftwrap build")
    assert resume.endswith("--ray --workers 2")
    assert "Traceback" not in out + err
    require_nothing_runs_in(folder)
    assert check(store).ok
    with LabelStore.open(store).lease():
        pass


def test_a_driver_that_is_killed_takes_its_ranks_with_it(world: World, tmp_path: Path) -> None:
    store, folder = tmp_path / "store", tmp_path / "driver"
    with driver(world.build_words(store, "--views", 40_000, *UNDER_RAY), folder) as process:
        wait_until(lambda: list(store.glob("markers/*.json")), process, folder)
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
    require_nothing_runs_in(folder)
    assert "Traceback" not in out + err
