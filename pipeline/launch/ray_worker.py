"""The Ray actor of one rank: it runs the command in a separate process, and keeps its output."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from labelstore.version import __version__
from pipeline.launch.rank import PARENT

STREAMS = ("out", "err")
READ_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Host:
    """The place of an actor.

    Attributes:
        node: Ray's id of it.
        name: of the host.
        address: by which others reach it.
        version: of giftwrap there.
        has_folder: whether the working folder of the command is there.
    """

    node: str
    name: str
    address: str
    version: str
    has_folder: bool


class RankWorker:
    """One rank. Its methods are called by the driver; `run` takes as long as the command, others meanwhile.

    Args:
        folder: the working folder of the command.
        logs: folder of logs, which is made where it is absent.
    """

    def __init__(self, folder: str, logs: str) -> None:
        self._folder, self._logs = Path(folder), Path(logs)
        self._process: subprocess.Popen[bytes] | None = None
        self._files: tuple[Path, ...] = ()
        self._lock = threading.Lock()

    def host(self) -> Host:
        """The place of this actor."""
        import ray

        return Host(
            node=str(ray.get_runtime_context().get_node_id()),
            name=socket.gethostname(),
            address=str(ray.util.get_node_ip_address()),  # type: ignore[no-untyped-call]
            version=__version__,
            has_folder=self._folder.is_dir(),
        )

    def free_port(self) -> int:
        """A port of this host that nothing uses now."""
        with socket.socket() as free:
            free.bind(("", 0))
            return int(free.getsockname()[1])

    def run(self, words: Sequence[str], environment: Mapping[str, str], name: str) -> int:
        """Run the command; returns its exit code, negative when a signal has ended it.

        Args:
            words: of the command line.
            environment: variables that name the place of the rank.
            name: of its logs, without an ending.
        """
        self._logs.mkdir(parents=True, exist_ok=True)
        self._files = tuple(self._logs / f"{name}.{stream}" for stream in STREAMS)
        with self._files[0].open("xb") as out, self._files[1].open("xb") as err, self._lock:
            self._process = subprocess.Popen(  # noqa: S603  this program, and the words of its driver
                [sys.executable, "-m", "pipeline.launch.rank", *words],
                cwd=self._folder,
                env={**os.environ, **environment, PARENT: str(os.getpid())},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,  # Ctrl-C reaches only the driver, which passes it on
            )
        return self._process.wait()

    def stop(self, number: int) -> None:
        """Send the command a signal, if it runs."""
        with self._lock:
            if self._process is not None and self._process.poll() is None:
                self._process.send_signal(signal.Signals(number))

    def printed(self, offsets: Sequence[int]) -> tuple[bytes, ...]:
        """The bytes that the command has printed to each stream after these offsets, up to 1 MiB each."""
        found = []
        for path, offset in zip(self._files, offsets, strict=False):
            with path.open("rb") as file:
                file.seek(offset)
                found.append(file.read(READ_BYTES))
        return tuple(found) or (b"",) * len(STREAMS)
