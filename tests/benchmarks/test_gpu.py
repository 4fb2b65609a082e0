"""The GPU's script where there is no GPU: every part runs small, and whatever a part does, the others run."""

from __future__ import annotations

import io
import json
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import gpu
from benchmarks.gpu_inputs import SkippedError
from benchmarks.gpu_parts import PARTS, Part
from labelstore.errors import InputError


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


@pytest.mark.long
@pytest.mark.skipif(torch.cuda.is_available(), reason="takes minutes on a GPU")
def test_every_part_runs_without_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(tmp_path)])
    assert command.main() == 0
    *lines, last = lines_of(tmp_path)
    assert last["summary"]["gpu"] == "none: every part ran on the CPU at toy size"
    ends = {line["part"]: line for line in lines if "ok" in line}
    assert list(ends) == list(PARTS)
    for name, end in ends.items():
        assert end["ok"], end
        assert ("no GPU" in end["skipped"]) if "gpu" in name else end.get("device", "cpu") == "cpu"
    assert ends["decoder-cpu"]["most"] == 0
    assert ends["syncs"]["train"] == {"batches": 2, "hidden": {}, "wanted": {}}
    assert ends["sanitizer"]["online"] == {"exit code": 0, "races": 0}
    measured = {line["part"] for line in lines if "metric" in line}
    assert measured == {name for name, end in ends.items() if "skipped" not in end}


def counting(names: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Parts that do what is given and take no time; the list of those that were run."""
    run: list[str] = []

    def part(name: str, act: Any) -> Part:
        def begin(report: Any, device: torch.device) -> dict[str, Any]:
            run.append(name)
            found: dict[str, Any] = act(report, device)
            return found

        return Part(9, begin)

    for module in ("benchmarks.gpu.PARTS", "benchmarks.gpu_parts.PARTS"):
        monkeypatch.setattr(module, {name: part(name, act) for name, act in names.items()})
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return run


def test_a_part_that_fails_is_reported_and_the_others_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(report: Any, device: torch.device) -> dict[str, Any]:
        report.add("something", "rate", 3.0, "1/s")
        raise RuntimeError("the kernel is wrong")

    def skip(_report: Any, _device: torch.device) -> dict[str, Any]:
        raise SkippedError("no DALI")

    parts = {"bad": fail, "broken": lambda *_: {"kept": False}, "skipped": skip, "good": lambda *_: {"rate": 1.0}}
    counting(parts, monkeypatch)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(tmp_path), "--json"])
    assert command.main() == 1
    *lines, last = lines_of(tmp_path)
    ends = {line["part"]: line for line in lines if "ok" in line}
    assert [end["ok"] for end in ends.values()] == [False, False, True, True]
    assert ends["bad"]["error"] == "RuntimeError: the kernel is wrong"
    assert ends["skipped"]["skipped"] == "no DALI"
    assert lines[0] == {"part": "bad"} | {key: lines[0][key] for key in lines[0] if key != "part"}
    assert last["summary"]["failed"] == ["bad", "broken"]


def test_a_later_call_runs_what_earlier_ones_have_not_finished(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What failed comes last, what was named alone was not run by the call before, and no line is lost."""
    works = False

    def first(*_: Any) -> dict[str, Any]:
        if not works:
            raise RuntimeError("not yet")
        return {}

    run = counting({name: first if name == "a" else (lambda *_: {}) for name in "abcd"}, monkeypatch)
    found: Any = gpu.measure(tmp_path, only=("a,c",))
    assert (run, found["failed"], found["not_run"]) == (["a", "c"], ["a"], [])
    written = (tmp_path / "gpu.jsonl").read_text()
    (tmp_path / "gpu.jsonl").write_text(written + '{"part": "b", "ok": tr')  # killed while it wrote
    run.clear()
    works = True
    found = gpu.measure(tmp_path)
    assert run == ["b", "d", "a"]
    assert list(found["parts"]) == ["a", "b", "c", "d"]
    assert found["kept"]
    assert (tmp_path / "gpu.jsonl").read_text().startswith(written)
    run.clear()
    assert gpu.measure(tmp_path)["kept"]
    assert run == []
    monkeypatch.setattr(gpu, "CPU", "another GPU")
    gpu.measure(tmp_path, only=("b",))
    assert run == ["b"]


def test_unknown_parts_are_refused() -> None:
    with pytest.raises(InputError, match=r"--only: expected some of decoder-gpu, .*, found 'dance'"):
        gpu.measure(only=("loss,dance",))


def test_no_part_begins_after_the_time_is_up() -> None:
    found = gpu.measure(None, seconds=0)
    assert found["not_run"] == list(PARTS)
    assert not found["kept"]


def test_all_parts_fit_a_call_of_ten_minutes() -> None:
    assert sum(part.seconds for part in PARTS.values()) / 2 <= gpu.SECONDS  # an H100 takes about half of each
    assert list(PARTS)[:3] == ["decoder-gpu", "decoder-gpu-hw", "augmenter-dali"]  # what no CPU runs


@pytest.mark.parametrize(
    ("program", "expected"),
    [
        ("say('{\"metric\": 1}'); print('noise'); say('{\"ok\": true}')", {"ok": True}),
        ("say('{\"metric\": 1}'); sys.exit('no device')", "ended with exit code 1; no device"),
        ("say('{\"metric\": 1}'); os.kill(os.getpid(), 11)", "ended with exit code -11; "),
        ("say('{\"metric\": 1}'); time.sleep(60)", "ended after 3 s; "),
    ],
)
def test_a_process_that_dies_or_hangs_ends_alone(program: str, expected: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    start = f"import os, sys, time\ndef say(text): print({gpu.MARK!r} + text, flush=True)\n"
    monkeypatch.setattr(gpu, "words_for", lambda _name: [sys.executable, "-c", start + program])
    received: list[Any] = []
    lines = gpu.Lines(None)
    ends: list[Any] = []
    timer = Mock(side_effect=lambda _seconds, end: (ends.append(end), Mock())[1])
    monkeypatch.setattr(gpu, "threading", SimpleNamespace(Event=threading.Event, Timer=timer))

    def add(line: Any) -> None:
        received.append(line)
        if "sleep" in program:  # its time is up once it hangs, however long it takes to start
            ends.pop()()

    monkeypatch.setattr(lines, "add", add)
    found = gpu.Child("any").run(3, lines)
    assert timer.call_args.args[0] == 3
    assert received == [{"metric": 1}]
    assert found == (expected if isinstance(expected, dict) else {"ok": False, "error": expected})


def test_the_next_process_starts_while_a_part_runs_and_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Process:
        def __init__(self, name: str) -> None:
            self.name, self.ended = name, False
            started.append(self)

        def end(self) -> None:
            self.ended = True

    monkeypatch.setattr(gpu, "Child", Process)
    parts = gpu.children(["a", "b", "c", "d"], real=True)
    for name in "ab":
        assert next(parts) == (name, started["ab".index(name)])
        assert [each.name for each in started] == list("abc")[: "ab".index(name) + 2]
    parts.close()
    assert [each.ended for each in started] == [False, True, True]  # the first one ends itself
    assert list(gpu.children(["a"], real=False)) == [("a", None)]


def test_a_process_that_is_not_run_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    program = "import sys\nif sys.stdin.readline(): raise SystemExit('ran')"
    monkeypatch.setattr(gpu, "words_for", lambda _name: [sys.executable, "-c", program])
    child = gpu.Child("any")
    child.end()
    assert child._process.returncode is not None


def test_a_process_runs_a_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(PARTS, "input", Part(9, lambda _report, device: {"where": str(device)}))
    monkeypatch.setattr(sys, "argv", gpu.words_for("input")[2:])
    monkeypatch.setattr(sys, "stdin", io.StringIO("begin\n"))
    gpu.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line.removeprefix(gpu.MARK)) == {"ok": True, "device": "cuda", "where": "cuda:0"}
