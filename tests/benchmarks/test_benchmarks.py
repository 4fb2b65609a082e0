from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from benchmarks import __main__ as command
from benchmarks import harness, plan
from pipeline.plan.plan import Plan, PlanSpec

TRIED_ELSEWHERE = ("crash", "rate-distortion")  # in parts, by tests of their own


def test_candidates_take_turns_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = {"wall": 0.0, "cpu": 0.0}
    calls: list[str] = []

    def work(name: str, seconds: list[float]) -> None:
        calls.append(name)
        now = seconds[calls.count(name) - 1]
        clock["wall"] += now
        clock["cpu"] += 2 * now

    time = SimpleNamespace(perf_counter=lambda: clock["wall"], process_time=lambda: clock["cpu"])
    monkeypatch.setattr(harness, "time", time)
    monkeypatch.setattr(harness, "_descendants", lambda _: [])
    timing = harness.interleave(
        {"fast": lambda: work("fast", [90, 1, 2, 4]), "slow": lambda: work("slow", [90, 8, 8, 8])}, rounds=3
    )
    assert calls == ["fast", "slow"] * 4
    assert timing.wall == {"fast": [1, 2, 4], "slow": [8, 8, 8]}
    assert timing.rate("fast", 10) == {"wall": 5, "cpu": 2.5}
    assert timing.speedup("fast", "slow") == 4  # the median of 8, 4, 2


def test_rounds_go_on_until_they_are_enough() -> None:
    asked: list[int] = []

    def until(timing: harness.Timing) -> bool:
        asked.append(timing.rounds)
        return timing.rounds == 6

    assert harness.interleave({"a": lambda: None}, 4, until=until, most=9).rounds == 6
    assert asked == [4, 5, 6]
    assert harness.interleave({"a": lambda: None}, 4, until=lambda _: False, most=9).rounds == 9


def test_the_interval_of_a_median_is_the_binomials() -> None:
    """Ranks from tables of the sign test: for 6 to 8 values the extremes, for 25 the 8th from each end."""
    for count, rank in ((3, 1), (6, 1), (8, 1), (9, 2), (20, 6), (25, 8), (50, 18)):
        values = np.random.default_rng(count).permutation(count) + 1.0
        found = harness.Interval.of(values.tolist())
        assert (found.low, found.high) == (rank, count + 1 - rank)
        assert found.median == (count + 1) / 2


def test_processor_time_counts_the_processes_that_work_for_this_one() -> None:
    code = "import time\nwhile time.process_time() < 0.4: pass\nprint(flush=True)\ninput()"
    process = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    start = harness.cpu_seconds()
    process.stdout.readline()
    assert harness.cpu_seconds() - start > 0.2
    process.communicate(b"\n")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.long) if name in TRIED_ELSEWHERE else name for name in command.CLAIMS]
)
def test_every_claim_runs_at_toy_size(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GIFTWRAP_DATA", raising=False)
    if name == "remote":
        pytest.importorskip("obstore")
    code = run(monkeypatch, "run", name, "--quick", "--out", str(tmp_path))
    assert code == 0 or name != "crash"  # rates depend on the machine, this does not
    *lines, last = [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()]
    assert list(last) == ["summary"]
    assert lines
    for line in lines:
        assert list(line) == ["contender", "metric", "value", "unit", "rounds", "min", "max"]
        assert line["min"] <= line["value"] <= line["max"]


def test_the_plan_is_not_timed_when_its_crops_are_others() -> None:
    sides = (np.full(3_000, side, np.int32) for side in plan.SIDES)
    with pytest.raises(RuntimeError, match="other crops than torchvision's"):
        plan.require_alike(Plan(PlanSpec(size=224, scale=(0.5, 1.0)), *sides), plan.torchvision_boxes(500))


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *words])
    return command.main()


@pytest.mark.parametrize(("kept", "code"), [(True, 0), (False, 1)])
def test_the_command_tells_and_fails_when_a_claim_is_not_kept(
    kept: bool, code: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    values: dict[str, Any] = {"rate": {"wall": 2_500_000.0, "cpu": 0.123456}, "kept": kept}
    monkeypatch.setattr("benchmarks.plan.run", lambda _report, **_options: values)
    assert run(monkeypatch, "run", "plan", "--json") == code
    assert json.loads(capsys.readouterr().out) == values
    assert run(monkeypatch, "run", "plan") == code
    assert "wall 2,500,000, cpu 0.1235" in capsys.readouterr().out


def test_claims_are_listed_and_unknown_ones_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "list") == 0
    assert "at least 2 M crops/s" in capsys.readouterr().out
    assert run(monkeypatch, "run", "speed of light") == 2
    assert f"expected one of {', '.join(command.CLAIMS)}, found 'speed of light'" in capsys.readouterr().err
