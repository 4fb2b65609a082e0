"""A connection to a Ray cluster, and the room for some ranks on it; each refusal is one line that leaves nothing."""

from __future__ import annotations

import logging
import os
import platform
import signal
import socket
import sys
import threading
from collections.abc import Collection, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from types import ModuleType
from typing import Any

from labelstore.command.console import Stopped
from labelstore.command.stopping import SIGNALS
from labelstore.errors import InputError, reason
from pipeline.launch.options import AUTO, LOCAL, LaunchOptions

# Ray reads these when it is imported: no usage report, and no change to visible GPUs if none are requested.
SETTINGS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
REACH_SECONDS = 5.0
STDERR = 2
STARTING = threading.Event()  # set while Ray starts processes of a local cluster
OBJECT_BYTES = 100 << 20  # of the store of a local Ray, in which nothing is kept


@dataclass(frozen=True, slots=True)
class Cluster:
    """A cluster that this process is connected to.

    Attributes:
        ray: the module.
        address: the address as given.
        workers: processes that are wanted.
        gpus: GPUs of each.
        logs: folder of logs on each of its hosts.
    """

    ray: Any
    address: str
    workers: int
    gpus: int
    logs: Path


@contextmanager
def connected(options: LaunchOptions, gpus: int) -> Iterator[Cluster]:
    """A cluster with enough CPUs and GPUs; a local one ends with the context, with all that runs on it.

    Raises:
        InputError: there is no Ray, no such cluster, one of another version, or one that is too small.
    """
    ray, workers = imported(), options.workers or 1
    if options.address not in (LOCAL, AUTO):
        require_reachable(options.address)
    with redirect_stdout(StringIO()):  # where Ray prints its events, with terminal codes; they are in its logs too
        try:
            with signals_deferred(SIGNALS if options.address == LOCAL else ()), standard_error_silent():
                context = connect(ray, options.address, workers)
            require_room(ray.cluster_resources(), options.address, workers, gpus)
            logs = Path(context.address_info["session_dir"]) / "logs"
            yield Cluster(ray, options.address, workers, gpus, logs)
        finally:
            ray.shutdown()


@contextmanager
def signals_deferred(numbers: Collection[signal.Signals]) -> Iterator[None]:
    """Handle signals that arrive in this context at its end; processes that Ray starts in it leave the process group.

    A terminal, `timeout` and batch systems signal the whole group. If that ended the processes of a local Ray, this one
    would wait a minute for them, and fail: it stops its ranks first, and then ends these.
    """
    before = signal.getsignal(signal.SIGTERM)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)
    if numbers:
        STARTING.set()
    try:
        yield
    finally:
        STARTING.clear()
        signal.signal(signal.SIGTERM, before)  # Ray installs its own handler
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)


def leave_group() -> None:
    """In a process that Ray starts: use a separate process group, and handle SIGTERM, with which Ray ends it."""
    if STARTING.is_set():
        os.setpgid(0, 0)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)


os.register_at_fork(after_in_child=leave_group)


@contextmanager
def standard_error_silent() -> Iterator[None]:
    """Drop what Ray's C++ prints, a line a second while it tries to connect: the reason is in what it raises."""
    sys.stderr.flush()
    kept, nowhere = os.dup(STDERR), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, STDERR)
    os.close(nowhere)
    try:
        yield
    finally:
        os.dup2(kept, STDERR)
        os.close(kept)


def imported() -> ModuleType:
    """Ray, imported at its first use.

    Raises:
        InputError: it is not installed.
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)
    try:
        import ray
        import ray.util
    except ImportError as error:
        raise InputError(f"--ray: needs Ray ({reason(error)}); install it with: pip install 'giftwrap[ray]'") from error
    module: ModuleType = ray
    return module


def require_reachable(address: str) -> None:
    """Refuse an address where nothing answers; Ray itself would try for minutes.

    Raises:
        InputError: names it.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=REACH_SECONDS):
            pass
    except OSError as error:
        raise InputError(
            f"--ray {address}: nothing answers there ({error.strerror or reason(error)}); give HOST:PORT of the "
            f"cluster's head node, as `ray start --head` prints it, or no address for a Ray of this command's own"
        ) from error


def connect(ray: Any, address: str, workers: int) -> Any:
    """Connect to a cluster, or start a local one; returns Ray's context.

    Raises:
        InputError: that is not possible; with Ray's reason.
        Stopped: SIGTERM arrived.
    """
    own: dict[str, Any] = {}
    if address == LOCAL:
        cpus = max(workers, len(os.sched_getaffinity(0)))
        own = {"num_cpus": cpus, "include_dashboard": False, "object_store_memory": OBJECT_BYTES}
    try:
        return ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except SystemExit as error:  # of its handler of SIGTERM
        raise Stopped from error
    except Exception as error:  # whatever Ray raises here, the cluster cannot be used
        raise InputError(refusal(error, address, ray.__version__)) from error


def refusal(error: BaseException, address: str, version: str) -> str:
    """Why a cluster cannot be used, in one line.

    Args:
        error: as Ray has raised it.
        address: of the cluster.
        version: of Ray in this process.
    """
    place = "--ray" if address == LOCAL else f"--ray {address}"
    text = " ".join(str(error).split())
    if "Version mismatch" in text:
        _, _, found = text.partition("Version mismatch: ")
        theirs, _, _ = found.partition("This process")
        return (
            f"{place}: expected a cluster of Ray {version} and Python {platform.python_version()}, as this process has "
            f"them, found another ({theirs.strip()}); install the cluster's versions here"
        )
    if address == AUTO and isinstance(error, ConnectionError):
        return (
            f"{place}: found no Ray cluster on this host; start one with `ray start --head`, or give no address for a "
            f"Ray of this command's own"
        )
    if "Failed to connect" in text:
        return (
            f"{place}: {reason(error)}; a cluster with token authentication needs RAY_AUTH_MODE=token and its token in "
            f"the environment"
        )
    return f"{place}: Ray cannot be used ({reason(error)})"


def require_room(resources: dict[str, float], address: str, workers: int, gpus: int) -> None:
    """Refuse a cluster that never has room for all processes.

    Args:
        resources: all that it has.
        address: of the cluster.
        workers: processes that are wanted, with a CPU each.
        gpus: GPUs of each.

    Raises:
        InputError: names what it has too little of.
    """
    where = "this machine" if address == LOCAL else f"the cluster at {address}"
    for name, each, advice in (
        ("GPU", gpus, "fewer --workers, or --device cpu"),
        ("CPU", 1, "fewer --workers"),
    ):
        wanted, found = workers * each, resources.get(name, 0)
        if wanted > found:
            raise InputError(
                f"--workers {workers}: expected {wanted} {name}{'s' * (wanted > 1)}, {each} for each, found {found:g} "
                f"on {where}; give {advice}"
            )
