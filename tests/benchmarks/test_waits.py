"""What finds waits for a GPU and races between its streams, where there is no GPU: with injected ones."""

from __future__ import annotations

import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.harness import Report
from benchmarks.syncs import MESSAGE, Waits
from trainer import batch

CPU = torch.device("cpu")


def test_waits_are_counted_between_two_batches_by_the_line_that_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """A hidden wait and one for an event, each batch, below a function of a package."""

    def slices(*_: object) -> list[slice]:
        warnings.warn(MESSAGE, UserWarning, stacklevel=1)
        wait: Any = torch.cuda.Event.synchronize
        wait(None)
        return [slice(0, 1)]

    monkeypatch.setattr(torch.cuda.Event, "synchronize", lambda _: None)
    monkeypatch.setattr(batch, "slices", slices)
    once = torch.zeros(1)
    rows = batch.TrainBatch(once, once, once, once, once, once, once, once, 1)
    waits = Waits(CPU, 2, 5)
    before = warnings.showwarning
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(7):
            list(rows.pieces(1))
            waits.batch()
    assert warnings.showwarning is before
    assert waits.counted == 3
    (hidden,), (wanted,) = waits.hidden.items(), waits.wanted.items()
    assert hidden == wanted
    assert hidden[0].startswith("trainer/batch.py:")
    assert hidden[1] == 3
    assert waits.found(Report("any"), "any") == {"batches": 3, "hidden": {**waits.hidden}, "wanted": {**waits.wanted}}


def test_other_warnings_are_no_waits() -> None:
    waits = Waits(CPU, 1, 2)
    waits.batch()
    warnings.warn("something else", UserWarning, stacklevel=1)
    waits.batch()
    assert waits.ended
    assert not waits.hidden


def test_the_sanitizer_sees_every_thread() -> None:
    """In a process of its own: it changes torch for good. What it notes of an operation is noted at once."""
    program = """
import os, threading
from types import SimpleNamespace
import torch
torch.cuda.current_stream = lambda *_: SimpleNamespace(cuda_stream=0)
from torch.cuda import _sanitizer
from benchmarks.sanitizer import watch_threads
seen = []
_sanitizer.cuda_sanitizer.dispatch.event_handler._handle_kernel_launch = lambda *call: seen.append(
    (threading.current_thread().name, call[4].name)
)
_sanitizer.enable_cuda_sanitizer()
watch_threads()
torch.ones(3).add(1)
thread = threading.Thread(target=lambda: torch.ones(3).mul(2), name="another")
thread.start()
thread.join()
assert ("MainThread", "aten::add") in seen, seen
assert ("another", "aten::mul") in seen, seen
os._exit(0)  # the sanitizer would need a GPU while torch is torn down
"""
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])
