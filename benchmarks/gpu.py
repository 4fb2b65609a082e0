"""Every check and figure that needs a GPU, part by part; where there is none, the same parts run on the CPU, small."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.gpu_parts import PARTS, SkippedError
from benchmarks.harness import Report, machine
from labelstore.durable.newfile import write_new
from labelstore.spec import Json

SECONDS = 470  # for all parts together
MARK = "gpu-part "  # begins a line that a part's process reports to this one


class Lines:
    """Lines of JSON, to a file as they come and to the console.

    Args:
        folder: where ``gpu.jsonl`` goes; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file: Path | None = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = folder / "gpu.jsonl"
            write_new(self._file, b"")

    def add(self, line: Mapping[str, Json]) -> None:
        """Write one line."""
        print(json.dumps(line), file=sys.stderr, flush=True)
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")


class PartReport(Report):
    """A part's report, whose lines go to whoever listens."""

    def __init__(self, name: str, listen: Any, folder: Path | None = None) -> None:
        super().__init__(name)
        self.folder = folder
        self._name, self._listen = name, listen

    def _write(self, line: Mapping[str, Json]) -> None:
        self._listen({"part": self._name, **line})


def measure(out: Path | None = None, seconds: float = SECONDS) -> dict[str, Json]:
    """Run every part; one that fails is reported, and the others continue.

    Args:
        out: folder for ``gpu.jsonl``: lines as they are found, one for the end of each part, and the summary last.
        seconds: for all together; a part that would begin later is not run, and one that runs then is ended.

    Returns:
        The summary; ``kept`` is whether every part ended well.
    """
    lines, start = Lines(out), time.monotonic()
    on_gpu = torch.cuda.is_available()
    parts: dict[str, Json] = {}
    for name in PARTS:
        began = time.monotonic()
        left = min(PARTS[name].seconds, seconds - (began - start))
        if left < 1:
            found: dict[str, Json] = {"ok": False, "error": f"no time left of {seconds:g} s"}
        else:
            found = in_a_process(name, left, lines) if on_gpu else in_this_process(name, lines)
        found["seconds"] = round(time.monotonic() - began, 1)
        parts[name] = found
        lines.add({"part": name, **found})
    values: dict[str, Json] = {
        "gpu": torch.cuda.get_device_name() if on_gpu else "none: every part ran on the CPU at toy size",
        "parts": parts,
        "failed": [name for name, found in parts.items() if isinstance(found, dict) and not found["ok"]],
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine(),
    }
    values["kept"] = not values["failed"]
    lines.add({"summary": values})
    return values


def in_this_process(name: str, lines: Lines) -> dict[str, Json]:
    """A part at toy size on the CPU."""
    return run_part(PartReport(name, lines.add), name, torch.device("cpu"))


def run_part(report: Report, name: str, device: torch.device) -> dict[str, Json]:
    """What a part found, or why it failed."""
    try:
        with tempfile.TemporaryDirectory(prefix=f"gpu-{name.replace(' ', '-')}-") as folder:
            report.folder = Path(folder)
            found = PARTS[name].run(report, device)
    except SkippedError as error:
        return {"ok": True, "skipped": str(error)}
    except Exception as error:  # the other parts continue
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": bool(found.get("kept", True)), "device": device.type, **found}


def in_a_process(name: str, seconds: float, lines: Lines) -> dict[str, Json]:
    """A part on the GPU, in a process of its own: a fault of the device, a crash or a hang ends with it."""
    found: dict[str, Json] | None = None
    with tempfile.TemporaryFile("w+") as errors:
        words = words_for(name)
        with (
            subprocess.Popen(  # noqa: S603  our own words
                words, stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
            ) as child,
            ending(child, seconds) as late,
        ):
            assert child.stdout is not None  # noqa: S101  it is a pipe
            for text in child.stdout:
                if text.startswith(MARK):
                    line: dict[str, Json] = json.loads(text[len(MARK) :])
                    if "metric" in line:
                        lines.add(line)
                    else:
                        found = line
            code = child.wait()
        if found is None:
            why = f"ended after {seconds:.0f} s" if late.is_set() else f"ended with exit code {code}"
            found = {"ok": False, "error": f"{why}; {last_lines(errors)}"}
    return found


def words_for(name: str) -> list[str]:
    """The command of a part's process."""
    return [sys.executable, "-m", "benchmarks.gpu", name]


@contextmanager
def ending(child: subprocess.Popen[str], seconds: float) -> Iterator[threading.Event]:
    """Kill a process and all it started when it takes longer; the event is then set."""
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(child.pid, signal.SIGKILL)

    timer = threading.Timer(seconds, end)
    timer.start()
    try:
        yield late
    finally:
        timer.cancel()


def last_lines(errors: IO[str]) -> str:
    """The last lines that a process printed."""
    errors.seek(0)
    return " | ".join(errors.read().strip().splitlines()[-6:])[-800:]


def main() -> None:
    """Run the part that the argument names on the GPU, for `in_a_process`."""
    name = sys.argv[1]

    def send(line: Mapping[str, Json]) -> None:
        print(MARK + json.dumps(line), flush=True)

    send(run_part(PartReport(name, send), name, torch.device("cuda", 0)))


if __name__ == "__main__":
    main()
