"""A build and a training run under torch's CUDA sanitizer, which finds streams that race for memory."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from benchmarks import step
from benchmarks.gpu_inputs import folder_of
from benchmarks.harness import Report
from labelstore.command.console import Console
from labelstore.command.flags import changed
from labelstore.spec import Json
from trainer.train import train

WORKS = ("build", "train", "online")
SWITCH = "TORCH_CUDA_SANITIZER"  # torch looks for it when it is imported; its sanitizer needs a GPU
RACE = "data race"  # how the sanitizer begins a report
SECONDS = 100
SIZE = step.Size("convnet-d3", 32, (32, 32), 128, 64, 1, 0)  # each operation is slow: its stack is noted
EPOCHS = 2


def sanitizer(report: Report, device: torch.device) -> dict[str, Json]:
    """Run all at once, each in a separate process; nothing is reported."""
    works = WORKS if device.type == "cuda" else WORKS[-1:]  # which does what the others do, too
    children = {work: begin(work, folder_of(report), device) for work in works}
    found: dict[str, Json] = {}
    try:
        for work, child in children.items():
            _, text = child.communicate(timeout=SECONDS)
            races = text.count(RACE)
            report.add(work, "reports of the sanitizer", races, "")
            end: dict[str, Json] = {"exit code": child.returncode, "races": races}
            if child.returncode or races:
                end["text"] = text[-2_000:]
            found[work] = end
    finally:
        for child in children.values():
            with child:  # waits for it, and closes what it printed to
                child.kill()
    return {**found, "kept": all(not child.returncode for child in children.values()) and RACE not in str(found)}


def begin(work: str, folder: Path, device: torch.device) -> subprocess.Popen[str]:
    """Start the process of one of `WORKS`."""
    (folder / work).mkdir()
    words = [sys.executable, "-m", "benchmarks.sanitizer", work, str(folder / work), str(device)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | ({SWITCH: "1"} if device.type == "cuda" else {})
    return subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=environment)  # noqa: S603  our own words


def main() -> None:
    """What a process does: build a store; or build one on the CPU and train from it, by its labels or a teacher's."""
    work, folder, device = sys.argv[1], Path(sys.argv[2]), sys.argv[3]
    if SWITCH in os.environ:
        watch_threads()
    size = SIZE if device.startswith("cuda") else step.QUICK[0]
    if work == "build":
        step.prepare(folder, size, device)
        return
    config = step.prepare(folder, size, "cpu")
    if work == "online":
        config = step.labelled_online(config, folder, size)
    train(changed(config, device=device, epochs=EPOCHS), Console(silent=True))


def watch_threads() -> None:
    """Have the sanitizer see what every thread does: by itself it sees the first one only."""
    from torch.cuda import _sanitizer

    mode: Any = _sanitizer.CUDASanitizerDispatchMode
    lock, dispatch, run = threading.RLock(), mode.__torch_dispatch__, threading.Thread.run

    def one_at_a_time(self: Any, *call: Any) -> Any:
        with lock:  # what it notes of an operation belongs with its start
            return dispatch(self, *call)

    class OfThread(TorchDispatchMode):
        def __torch_dispatch__(self, *call: Any) -> Any:
            return mode.__torch_dispatch__(_sanitizer.cuda_sanitizer.dispatch, *call)

    of_thread: Any = OfThread

    def watched(self: threading.Thread) -> None:
        with of_thread():
            run(self)

    mode.__torch_dispatch__ = one_at_a_time
    threading.Thread.run = watched  # type: ignore[method-assign]  # on purpose: every thread is watched


if __name__ == "__main__":
    main()
