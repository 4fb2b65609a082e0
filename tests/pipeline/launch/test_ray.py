"""What a driver does with Ray, without Ray: a fake in its place; tests/journeys/test_ray.py has the real one."""

from __future__ import annotations

import io
import os
import platform
import signal
import socket
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from labelstore.command.console import Console, Stopped
from labelstore.command.flags import from_flags
from labelstore.command.stopping import StopSignals
from labelstore.errors import InputError
from pipeline.config import BuildConfig
from pipeline.launch import ray_cluster
from pipeline.launch.launching import launched
from pipeline.launch.options import LaunchOptions
from pipeline.launch.place import ATTEMPT, JOB, START, Place, place_of
from pipeline.launch.ray_cluster import connect, connected, refusal, require_reachable, require_room
from pipeline.launch.ray_ranks import Ended, Verdict, environments, grouped, verdict_of
from pipeline.launch.ray_worker import Host, RankWorker
from pipeline.launch.relay import Held

MISMATCH = """Version mismatch: The cluster was started with:
    Ray: 2.9.0
    Python: 3.10.1
This process on node 10.0.0.1 was started with:
    Ray: 2.60.0
    Python: 3.11.9
"""


def config(**changes: Any) -> BuildConfig:
    plain = {"images": Path("i"), "teacher": ("t",), "weights": ("w",), "size": 8, "views": 1, "store": Path("s")}
    return from_flags(BuildConfig, **{**plain, **changes})


@pytest.mark.parametrize(
    ("flags", "named"),
    [
        ({"ray": ()}, "--ray: needs --workers"),
        ({"ray": (), "workers": 0}, "--workers: expected at least 1, found 0"),
        ({"ray": (), "workers": -2}, "--workers: expected at least 1, found -2"),
        ({"workers": 2}, "--workers 2: belongs to --ray"),
        ({"gpus_per_worker": 1}, "--gpus-per-worker 1: belongs to --ray"),
        ({"ray": (), "workers": 2, "gpus_per_worker": 2}, "--gpus-per-worker: expected 0 or 1, found 2"),
        ({"ray": (), "workers": 2, "gpus_per_worker": -1}, "--gpus-per-worker: expected 0 or 1, found -1"),
        ({"ray": ("a:1", "b:2"), "workers": 2}, "--ray: expected one address or none, found a:1 b:2"),
        ({"ray": ("ray://head:10001",), "workers": 2}, "--ray ray://head:10001: expected HOST:PORT"),
        ({"ray": ("head",), "workers": 2}, "--ray: expected HOST:PORT, auto, or no address, found 'head'"),
        ({"ray": ("head:99999",), "workers": 2}, "--ray: expected HOST:PORT"),
    ],
)
def test_flags_that_no_ranks_can_have_are_refused(flags: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match="^" + named.replace("(", r"\(")):
        LaunchOptions(**flags)


@pytest.mark.parametrize(
    ("device", "gpus", "found"),
    [("cpu", None, 0), ("cuda", None, 1), ("cpu", 0, 0), ("cuda", 1, 1), ("cpu", 1, "--device is cpu"),
     ("cuda", 0, "--device is cuda"), ("cuda:1", None, "Ray chooses the GPU")],
)  # fmt: skip
def test_gpus_are_those_that_the_device_uses(device: str, gpus: int | None, found: int | str) -> None:
    options = LaunchOptions(ray=(), workers=2, gpus_per_worker=gpus)
    if isinstance(found, int):
        assert options.gpus(device) == found
    else:
        with pytest.raises(InputError, match=found):
            options.gpus(device)


def test_a_rank_of_ray_runs_the_command_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []

    def command(config: Any, console: Console) -> int:
        given.append(config)
        return 3

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", JOB: "job"}.items():
        monkeypatch.setenv(name, value)
    assert launched(command)(config(ray=(), workers=2), Console(silent=True)) == 3
    assert given == [config()]
    monkeypatch.delenv(JOB)
    with pytest.raises(InputError, match="found those of torchrun"):
        launched(command)(config(ray=(), workers=2), Console(silent=True))


def test_ray_is_imported_only_where_it_is_asked_for() -> None:
    code = "import sys; sys.modules['ray'] = None; from giftwrap.__main__ import main; sys.exit(main())"
    for words in (["build", "--help"], ["build", "--print-config"]):
        ended = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        assert "workers" in ended.stdout


def test_without_ray_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with (
        pytest.raises(InputError, match=r"pip install 'giftwrap\[ray\]'"),
        connected(LaunchOptions(ray=(), workers=2), 0),
    ):
        pass


def test_another_version_is_refused_in_one_line() -> None:
    text = refusal(RuntimeError(MISMATCH), "auto", "2.60.0")
    assert text.startswith(f"--ray auto: expected a cluster of Ray 2.60.0 and Python {platform.python_version()}")
    assert "Ray: 2.9.0 Python: 3.10.1)" in text
    assert "\n" not in text


def test_no_cluster_here_is_refused() -> None:
    assert "found no Ray cluster on this host" in refusal(ConnectionError("Could not find any running"), "auto", "2")
    assert refusal(ValueError("a\nb"), "h:1", "2") == "--ray h:1: Ray cannot be used (a)"
    assert "RAY_AUTH_MODE=token" in refusal(ConnectionError("Failed to connect to Ray cluster at h:1"), "h:1", "2")


def test_an_address_where_nothing_answers_is_refused() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(InputError, match=rf"--ray {address}: nothing answers there \(Connection refused\)"):
            require_reachable(address)


def test_too_few_gpus_or_cpus_are_refused() -> None:
    require_room({"CPU": 2.0, "GPU": 2.0}, "auto", 2, 1)
    with pytest.raises(InputError, match="--workers 2: expected 2 GPUs, 1 for each, found 0 on this machine"):
        require_room({"CPU": 4.0}, "local", 2, 1)
    with pytest.raises(InputError, match="--workers 5: expected 5 CPUs, 1 for each, found 4 on the cluster at a:1"):
        require_room({"CPU": 4.0}, "a:1", 5, 0)


CHILD = "import os, signal; print(os.getpgrp() == os.getpid(), [*signal.pthread_sigmask(signal.SIG_BLOCK, ())])"


class FakeRay(SimpleNamespace):
    """Records how it is started and that it is shut down; starts a process as Ray does."""

    __version__ = "2.60.0"

    def __init__(self, resources: dict[str, float], error: BaseException | None = None) -> None:
        super().__init__(started=[], ended=0, resources=resources, error=error, signalled=False)

    def init(self, **flags: Any) -> Any:
        self.started.append(flags)
        signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as Ray puts a handler of its own there
        words = [sys.executable, "-c", CHILD]
        ended = subprocess.run(words, preexec_fn=lambda: None, capture_output=True, text=True, check=True)
        self.child = ended.stdout
        if self.signalled:
            signal.raise_signal(signal.SIGTERM)  # for this thread, which blocks it
        os.write(2, b"as Ray's C++ prints")
        if self.error:
            raise self.error
        return SimpleNamespace(address_info={"session_dir": "/session"})

    def cluster_resources(self) -> dict[str, float]:
        return self.resources

    def shutdown(self) -> None:
        self.ended += 1


def test_a_connection_leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    ray = FakeRay({"CPU": 2.0})
    monkeypatch.setattr(ray_cluster, "imported", lambda: ray)
    with connected(LaunchOptions(ray=(), workers=2), 0) as cluster:
        assert cluster.logs == Path("/session/logs")
        assert signal.getsignal(signal.SIGTERM) == before
    assert ray.started[0]["address"] == "local"
    with pytest.raises(InputError, match="2 GPUs"), connected(LaunchOptions(ray=(), workers=2), 1):
        pass
    ray.error = RuntimeError(MISMATCH)
    with pytest.raises(InputError, match="found another"), connected(LaunchOptions(ray=("auto",), workers=2), 0):
        pass
    assert ray.ended == 3
    assert signal.getsignal(signal.SIGTERM) == before


def test_signals_are_left_to_the_driver(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """The processes of a local Ray are in groups of their own; what arrives while they start is handled afterwards."""
    ray = FakeRay({"CPU": 2.0})
    ray.signalled = True
    monkeypatch.setattr(ray_cluster, "imported", lambda: ray)
    with StopSignals() as stops, connected(LaunchOptions(ray=(), workers=2), 0):
        assert ray.child == "True []\n"
        assert stops.number == signal.SIGTERM
        assert not {signal.SIGINT, signal.SIGTERM} & signal.pthread_sigmask(signal.SIG_BLOCK, ())
    ray.error = RuntimeError("no cluster")
    with pytest.raises(InputError, match="no cluster"), connected(LaunchOptions(ray=("auto",), workers=2), 0):
        pass
    assert ray.child == "False []\n"  # Ctrl-C works while a cluster does not answer
    os.write(2, b"printed")
    assert capfd.readouterr().err == "printed"


def test_ray_ended_by_sigterm_while_it_starts_ends_the_command_as_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = FakeRay({}, SystemExit(15))
    monkeypatch.setattr(ray_cluster, "imported", lambda: ray)
    with pytest.raises(Stopped), connected(LaunchOptions(ray=(), workers=2), 0):
        pass
    assert ray.ended == 1


def test_a_local_ray_has_a_cpu_for_each_rank() -> None:
    ray = FakeRay({})
    connect(ray, "local", 1000)
    connect(ray, "auto", 1000)
    assert (ray.started[0]["num_cpus"], "num_cpus" in ray.started[1]) == (1000, False)


def host(node: str, **changes: Any) -> Host:
    values: dict[str, Any] = {"node": node, "name": f"host-{node}", "address": f"10.0.0.{node}", "version": "1"}
    return Host(**{**values, "has_folder": True, **changes})


def test_each_rank_gets_the_environment_that_torchrun_would_give() -> None:
    found = [host("2"), host("7"), host("2"), host("7"), host("7")]
    order = grouped(found)
    assert order == [0, 2, 1, 3, 4]
    each = environments([found[index] for index in order], 1234, "job", 1, ["giftwrap"])
    places = [place_of(environment) for environment in each]
    assert places == [
        Place(0, 5, 0, 2, "ray", "job", 1),
        Place(1, 5, 1, 2, "ray", "job", 1),
        Place(2, 5, 0, 3, "ray", "job", 1),
        Place(3, 5, 1, 3, "ray", "job", 1),
        Place(4, 5, 2, 3, "ray", "job", 1),
    ]
    assert {(e["MASTER_ADDR"], e["MASTER_PORT"], e[START], e[ATTEMPT]) for e in each} == {
        ("10.0.0.2", "1234", '["giftwrap"]', "1")
    }
    assert environments([host("2")], 1, "job", 0, [])[0]["MASTER_ADDR"] == "127.0.0.1"


@pytest.mark.parametrize(
    ("ended", "order", "stopped", "verdict"),
    [
        ([Ended(), Ended()], [1, 0], 0, Verdict(0)),
        ([Ended(2), Ended(1)], [0, 1], 0, Verdict(2, 0)),
        ([Ended(1), Ended(2)], [0, 1], 0, Verdict(2, 1)),  # rank 0 found out that rank 1 was refused
        ([Ended(1), Ended(1)], [1, 0], 0, Verdict(1, 1)),
        ([Ended(1), Ended(lost="ended by SIGKILL")], [0, 1], 0, Verdict(None, 1, "ended by SIGKILL")),
        ([Ended(143), Ended(lost="node"), Ended(lost="later")], [1, 2, 0], 0, Verdict(None, 1, "node")),
        ([Ended(), Ended(lost="node")], [0, 1], 0, Verdict(0)),  # after all was finished
        ([Ended(), Ended(lost="node")], [1, 0], 0, Verdict(0)),
        ([Ended(130), Ended(130)], [0, 1], signal.SIGINT, Verdict(130)),
        ([Ended(), Ended(lost="x")], [0, 1], signal.SIGTERM, Verdict(143)),
        ([Ended(2), Ended()], [0, 1], signal.SIGTERM, Verdict(2)),
    ],
)
def test_ranks_begin_again_only_after_one_was_lost(
    ended: list[Ended], order: list[int], stopped: int, verdict: Verdict
) -> None:
    assert verdict_of(dict(enumerate(ended)), order, stopped) == verdict


def test_errors_are_held_back_until_it_is_known_whose_they_are() -> None:
    out = io.StringIO()
    held = Held(out, "rank 1: ", holds=True)
    for byte in "über\nwarning: a\nerror: b\nresume with: c\nrest".encode():
        held.add(bytes([byte]))
    assert out.getvalue() == "rank 1: über\nrank 1: warning: a\n"
    held.finish()
    assert out.getvalue().endswith("rank 1: error: b\nrank 1: resume with: c\nrank 1: rest\n")


def test_a_worker_runs_a_command_in_a_process_of_its_own(tmp_path: Path) -> None:
    worker = RankWorker(str(tmp_path), str(tmp_path / "logs"))
    assert worker.printed([0, 0]) == (b"", b"")
    worker.stop(signal.SIGTERM)  # of nothing
    assert worker.run(["--version"], {"PYTHONPATH": os.pathsep.join(sys.path)}, "rank-0") == 0
    assert worker.printed([0, 0])[0].startswith(b"giftwrap ")
    assert worker.printed([9, 0])[0] == (tmp_path / "logs/rank-0.out").read_bytes()[9:]
