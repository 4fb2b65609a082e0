"""The process of one command of a sweep: it writes a log, and is killed when the sweep is killed."""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import time
from dataclasses import dataclass

from labelstore.spec import Json
from trainer.grid import Task

PROGRAM = (sys.executable, "-m", "giftwrap")
PR_SET_PDEATHSIG = 1


@dataclass(frozen=True, slots=True)
class Failed:
    """A command that failed or was not started.

    Attributes:
        task: the task.
        error: its last error line, or why it was not started.
    """

    task: Task
    error: str

    def to_json(self) -> Json:
        """For the summary."""
        task = self.task
        return {"command": task.command, "name": task.name, "error": self.error, "log": str(task.log)}


@dataclass(frozen=True, slots=True)
class Running:
    """A running command.

    Attributes:
        task: which.
        process: its process.
        began: start time, by the monotonic clock.
        offset: length of its log at the start.
        fresh: whether its folder did not exist, so that its time covers all of its work.
    """

    task: Task
    process: subprocess.Popen[bytes]
    began: float
    offset: int
    fresh: bool

    @property
    def seconds(self) -> float:
        """Seconds since it started."""
        return time.monotonic() - self.began

    def stop(self) -> None:
        """Send it the signal on which it saves and exits."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def error(self) -> str:
        """The last error line of its log; empty if it succeeded."""
        code = self.process.returncode
        if code == 0:
            return ""
        if code < 0:
            return f"ended by {signal.Signals(-code).name}"
        with self.task.log.open("rb") as file:
            file.seek(self.offset)
            lines = [line for line in file.read().decode(errors="replace").splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error: ")]
        return (errors or lines or [f"error: exit code {code}"])[-1]


def start(task: Task) -> Running:
    """Start the process of a command; its output is appended to its log."""
    fresh = not task.folder.exists()
    with task.log.open("ab") as log:
        offset = log.tell()
        process = subprocess.Popen(  # noqa: S603  this program, and flags that were read
            [*PROGRAM, *task.words],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches only the sweep, which passes it on once
            preexec_fn=_end_with_parent,
        )
    return Running(task, process, time.monotonic(), offset, fresh)


def _end_with_parent() -> None:
    """Have the kernel kill this process when the sweep is killed, so that no run is locked when it is continued."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
