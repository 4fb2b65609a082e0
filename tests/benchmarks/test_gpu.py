"""The GPU's script where there is no GPU: every part runs small, and whatever a part does, the others go on."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import __main__ as command
from benchmarks import gpu
from benchmarks.gpu_parts import PARTS, Part, SkippedError


def lines_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "gpu.jsonl").read_text().splitlines()]


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
        assert ("no GPU" in end["skipped"]) if "gpu" in name else end["device"] == "cpu"
    assert ends["decoder cpu"]["most"] == 0
    measured = {line["part"] for line in lines if "metric" in line}
    assert measured == {name for name, end in ends.items() if "skipped" not in end}


def test_a_part_that_fails_is_told_and_the_others_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(report: Any, device: torch.device) -> dict[str, Any]:
        report.add("something", "rate", 3.0, "1/s")
        raise RuntimeError("the kernel is wrong")

    def skip(_report: Any, _device: torch.device) -> dict[str, Any]:
        raise SkippedError("no DALI")

    parts = {
        "bad": Part(9, fail),
        "broken": Part(9, lambda *_: {"kept": False}),
        "skipped": Part(9, skip),
        "good": Part(9, lambda *_: {"rate": 1.0}),
    }
    for module in ("benchmarks.gpu.PARTS", "benchmarks.gpu_parts.PARTS"):
        monkeypatch.setattr(module, parts)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "gpu", "--out", str(tmp_path), "--json"])
    assert command.main() == 1
    *lines, last = lines_of(tmp_path)
    ends = {line["part"]: line for line in lines if "ok" in line}
    assert [end["ok"] for end in ends.values()] == [False, False, True, True]
    assert ends["bad"]["error"] == "RuntimeError: the kernel is wrong"
    assert ends["skipped"]["skipped"] == "no DALI"
    assert lines[0] == {"part": "bad"} | {key: lines[0][key] for key in lines[0] if key != "part"}
    assert last["summary"]["failed"] == ["bad", "broken"]


def test_no_part_begins_after_the_time_is_up() -> None:
    found = gpu.measure(None, seconds=0)
    assert found["failed"] == list(PARTS)
    assert found["parts"]["resize"]["error"] == "no time left of 0 s"


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
    heard: list[Any] = []
    lines = gpu.Lines(None)
    monkeypatch.setattr(lines, "add", heard.append)
    found = gpu.in_a_process("any", 3 if "sleep" in program else 60, lines)
    assert heard == [{"metric": 1}]
    assert found == (expected if isinstance(expected, dict) else {"ok": False, "error": expected})


def test_a_process_runs_a_part(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(PARTS, "input", Part(9, lambda _report, device: {"where": str(device)}))
    monkeypatch.setattr(sys, "argv", gpu.words_for("input")[2:])
    gpu.main()
    (line,) = capsys.readouterr().out.splitlines()
    assert json.loads(line.removeprefix(gpu.MARK)) == {"ok": True, "device": "cuda", "where": "cuda:0"}
