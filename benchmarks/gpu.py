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
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import torch

from benchmarks.gpu_inputs import SkippedError
from benchmarks.gpu_parts import PARTS
from benchmarks.harness import Report, machine
from labelstore.durable.newfile import write_new
from labelstore.errors import InputError
from labelstore.spec import Json

SECONDS = 420  # for all parts together
LEAST = 5  # in which a part can begin
MARK = "gpu-part "  # begins a line that a part's process reports to this one
CPU = "none: every part ran on the CPU at toy size"


class Lines:
    """Lines of JSON, to the end of a file as they come and to the console.

    Args:
        folder: where ``gpu.jsonl`` is, or begins; None keeps nothing.
    """

    def __init__(self, folder: Path | None) -> None:
        self._file: Path | None = None
        if folder:
            folder.mkdir(parents=True, exist_ok=True)
            self._file = folder / "gpu.jsonl"
            if not self._file.exists():
                write_new(self._file, b"")
            elif not self._file.read_bytes().endswith(b"\n"):  # a call was killed while it wrote
                self._append("\n")

    def add(self, line: Mapping[str, Json]) -> None:
        """Write one line."""
        print(json.dumps(line), file=sys.stderr, flush=True)
        self._append(json.dumps(line) + "\n")

    def ends(self, gpu: str) -> dict[str, dict[str, Json]]:
        """The last end of each part that earlier calls ran on such a GPU."""
        found: dict[str, dict[str, Json]] = {}
        for text in self._file.read_text().splitlines() if self._file else []:
            try:
                line: Any = json.loads(text)
            except ValueError:
                continue
            if isinstance(line, dict) and "ok" in line and line.get("gpu") == gpu:
                found[str(line.pop("part"))] = line
        return found

    def _append(self, text: str) -> None:
        if self._file:
            with self._file.open("a") as file:
                file.write(text)


class PartReport(Report):
    """A part's report, whose lines go to whoever listens."""

    def __init__(self, name: str, listen: Any, folder: Path | None = None) -> None:
        super().__init__(name)
        self.folder = folder
        self._name, self._listen = name, listen

    def _write(self, line: Mapping[str, Json]) -> None:
        self._listen({"part": self._name, **line})


def measure(out: Path | None = None, seconds: float = SECONDS, only: Collection[str] = ()) -> dict[str, Json]:
    """Run the parts that no earlier call has finished; one that fails is reported, and the others continue.

    Args:
        out: folder for ``gpu.jsonl``: lines as they are found, one for the end of each part, and the summary last. What
            earlier calls wrote is kept, and what they finished is not run again; what failed there comes last.
        seconds: for all together; a part that would begin later is not run, and one that runs then is ended.
        only: names of parts, which may then take all of the time; all parts, each in its own time, when empty.

    Returns:
        The summary; ``kept`` is whether every part ended well.

    Raises:
        InputError: when there is no part of such a name.
    """
    wanted = chosen(only)
    lines, start = Lines(out), time.monotonic()
    on_gpu = torch.cuda.is_available()
    gpu = torch.cuda.get_device_name() if on_gpu else CPU
    before = {name: end for name, end in lines.ends(gpu).items() if name in wanted}
    ended = {name: end for name, end in before.items() if end["ok"]}
    left = sorted((name for name in wanted if name not in ended), key=lambda name: name in before)

    def limit(name: str) -> float:
        rest = seconds - (time.monotonic() - start)
        return rest if only else min(PARTS[name].seconds, rest)

    not_run: list[Json] = []
    with closing(children(left, real=on_gpu)) as parts:
        for name, child in parts:
            if limit(name) < LEAST:
                not_run = [*left[left.index(name) :]]
                break
            began = time.monotonic()
            found = child.run(limit(name), lines) if child else in_this_process(name, lines)
            ended[name] = {**found, "seconds": round(time.monotonic() - began, 1), "gpu": gpu}
            lines.add({"part": name, **ended[name]})
    values: dict[str, Json] = {
        "gpu": gpu,
        "parts": {name: ended[name] for name in wanted if name in ended},
        "failed": [name for name, found in ended.items() if not found["ok"]],
        "not_run": not_run,
        "seconds": round(time.monotonic() - start, 1),
        "machine": machine(),
    }
    values["kept"] = not values["failed"] and not not_run
    lines.add({"summary": values})
    return values


def chosen(only: Collection[str]) -> list[str]:
    """The parts of some names, or of lists of names with commas, in the order in which parts run."""
    names = {name for words in only for name in words.split(",")}
    if unknown := names - set(PARTS):
        raise InputError(f"--only: expected some of {', '.join(PARTS)}, found {', '.join(sorted(unknown))!r}")
    return [name for name in PARTS if not names or name in names]


def in_this_process(name: str, lines: Lines) -> dict[str, Json]:
    """A part at toy size on the CPU."""
    return run_part(PartReport(name, lines.add), name, torch.device("cpu"))


def run_part(report: Report, name: str, device: torch.device) -> dict[str, Json]:
    """What a part found, or why it failed."""
    try:
        with tempfile.TemporaryDirectory(prefix=f"gpu-{name}-") as folder:
            report.folder = Path(folder)
            found = PARTS[name].run(report, device)
    except SkippedError as error:
        return {"ok": True, "skipped": str(error)}
    except Exception as error:  # the other parts continue
        traceback.print_exc()
        return {"ok": False, "error": f"{type(error).__name__}: {error}"}
    return {"ok": bool(found.get("kept", True)), "device": device.type, **found}


def children(names: Sequence[str], *, real: bool) -> Generator[tuple[str, Child | None]]:
    """Each part with a process for it, if it is real; the next one imports what it needs while a part runs."""
    waiting: dict[str, Child] = {}
    try:
        for at, name in enumerate(names):
            waiting |= {each: Child(each) for each in names[at : at + 2] if real and each not in waiting}
            yield name, waiting.get(name)
            waiting.pop(name, None)
    finally:
        for child in waiting.values():
            child.end()


class Child:
    """A process for a part on the GPU: a fault of the device, a crash or a hang ends with it. It waits to be run."""

    def __init__(self, name: str) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115  closed with the process
        self._process = subprocess.Popen(  # noqa: S603  our own words
            words_for(name),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            text=True,
            start_new_session=True,
        )

    def run(self, seconds: float, lines: Lines) -> dict[str, Json]:
        """What its part found, in so many seconds at most; its figures go to the lines."""
        found: dict[str, Json] | None = None
        assert self._process.stdout is not None  # noqa: S101  it is a pipe
        with ending(self._process, seconds) as late:
            self._release()
            for text in self._process.stdout:
                if text.startswith(MARK):
                    line: dict[str, Json] = json.loads(text[len(MARK) :])
                    if "metric" in line:
                        lines.add(line)
                    else:
                        found = line
            code = self._process.wait()
        if found is None:
            why = f"ended after {seconds:.0f} s" if late.is_set() else f"ended with exit code {code}"
            found = {"ok": False, "error": f"{why}; {last_lines(self._errors)}"}
        self.end()
        return found

    def end(self) -> None:
        """End the process, which does nothing when it was not run, and what it has started."""
        with self._errors, suppress(BrokenPipeError), self._process as process:  # it may end before it is released
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def _release(self) -> None:
        """Let it begin; one that has ended already is found by its exit code."""
        assert self._process.stdin is not None  # noqa: S101  it is a pipe
        with suppress(BrokenPipeError):
            self._process.stdin.write("begin\n")
            self._process.stdin.flush()


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
    """Run the part that the argument names on the GPU, for a `Child`, on request."""
    name = sys.argv[1]

    def send(line: Mapping[str, Json]) -> None:
        print(MARK + json.dumps(line), flush=True)

    if sys.stdin.readline():  # nothing: the other process has ended
        send(run_part(PartReport(name, send), name, torch.device("cuda", 0)))


if __name__ == "__main__":
    main()
