"""Interleaved timing: every candidate once a round, so that other load on the machine meets all alike."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import comb
from pathlib import Path
from statistics import median
from typing import Literal

import numpy as np
import torch

from labelstore.durable.newfile import write_new
from labelstore.spec import Json


@dataclass(frozen=True, slots=True)
class Timing:
    """The times of candidates.

    Attributes:
        wall: seconds of wall clock of each round, by candidate.
        cpu: seconds of processor time of each round, of all threads and of the processes that they started, by
            candidate.
    """

    wall: Mapping[str, list[float]]
    cpu: Mapping[str, list[float]]

    @property
    def rounds(self) -> int:
        """How often each candidate took its turn."""
        return len(next(iter(self.wall.values())))

    def rate(self, name: str, count: int) -> dict[str, float]:
        """Things a second at the median round, when a round of candidate ``name`` does ``count`` of them."""
        return {"wall": count / median(self.wall[name]), "cpu": count / median(self.cpu[name])}

    def speedup(self, name: str, other: str) -> float:
        """Median over the rounds of the wall time of ``other`` over that of ``name``."""
        return median(b / a for a, b in zip(self.wall[name], self.wall[other], strict=True))

    def interval(self, name: str, other: str, clock: Literal["wall", "cpu"] = "wall") -> Interval:
        """The ratio of the time of ``name`` to that of ``other``, taken round by round."""
        times: Mapping[str, list[float]] = getattr(self, clock)
        return Interval.of([ours / theirs for ours, theirs in zip(times[name], times[other], strict=True)])


@dataclass(frozen=True, slots=True)
class Interval:
    """A median, and where it lies with 95 % confidence, whatever the values are distributed like.

    Attributes:
        median: of the values.
        low: lower end; with fewer than 6 values, the smallest, and the confidence is less.
        high: upper end, likewise.
    """

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """The interval between two order statistics: as many values below the one as above the other."""
        ordered, count = sorted(values), len(values)
        # The median lies below the k-th smallest value with the probability that fewer than k of n coins fall one way.
        outside = [sum(comb(count, i) for i in range(k)) / 2**count for k in range(1, count + 1)]
        below = max(sum(2 * chance <= 0.05 for chance in outside) - 1, 0)
        return cls(median(ordered), ordered[below], ordered[-1 - below])

    @property
    def width(self) -> float:
        """Of the interval."""
        return self.high - self.low

    def to_json(self) -> Json:
        """Median, low and high."""
        return [self.median, self.low, self.high]


def interleave(
    candidates: Mapping[str, Callable[[], object]],
    rounds: int = 5,
    *,
    until: Callable[[Timing], bool] = lambda _: True,
    most: int = 0,
) -> Timing:
    """Time candidates in turns, after one round that does not count.

    A candidate that works on a GPU waits for it before it returns.

    Args:
        candidates: what each does in a round.
        rounds: that are timed.
        until: whether to stop; called after these rounds and after every further one.
        most: rounds that are timed at most, when it never is.
    """
    timing = Timing({name: [] for name in candidates}, {name: [] for name in candidates})
    for candidate in candidates.values():
        candidate()
    while timing.rounds < rounds or (timing.rounds < most and not until(timing)):
        for name, candidate in candidates.items():
            wall_start, cpu_start = time.perf_counter(), cpu_seconds()
            candidate()
            timing.cpu[name].append(cpu_seconds() - cpu_start)
            timing.wall[name].append(time.perf_counter() - wall_start)
    return timing


def wait_for(device: torch.device) -> None:
    """Wait until a GPU has finished its queued work; returns at once on a CPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cpu_seconds() -> float:
    """Processor time of this process, and of those that it has started, such as the workers of a loader."""
    ended = os.times().children_user + os.times().children_system
    return time.process_time() + ended + sum(map(_ticks, _descendants(os.getpid()))) / os.sysconf("SC_CLK_TCK")


def _descendants(ancestor: int) -> list[int]:
    """The processes that a process has started, and those that these have."""
    parents = {
        int(stat.parent.name): int(fields[1]) for stat in Path("/proc").glob("[0-9]*/stat") if (fields := _stat(stat))
    }
    found, pending = [], [ancestor]
    while pending:
        parent = pending.pop()
        children = [process for process, its in parents.items() if its == parent]
        found += children
        pending += children
    return found


def _ticks(process: int) -> int:
    """Clock ticks that a process has run for; 0 when it has ended."""
    fields = _stat(Path(f"/proc/{process}/stat"))
    return int(fields[11]) + int(fields[12]) if fields else 0


def _stat(path: Path) -> list[str]:
    """The fields of a process after its name, of which the first is its state; none when it has ended."""
    try:
        return path.read_text().rpartition(")")[2].split()
    except OSError:
        return []


class Report:
    """What a measurement found, line by line as it goes: in ``FOLDER/NAME.jsonl`` where a folder is given.

    Args:
        name: of the claim.
        folder: where files go; None keeps nothing.
    """

    def __init__(self, name: str, folder: Path | None = None) -> None:
        self.folder = folder
        self._file = None if folder is None else folder / f"{name}.jsonl"
        if self._file:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_new(self._file, b"")

    def add(self, contender: str, metric: str, values: float | Sequence[float], unit: str) -> None:
        """One line: the median, smallest and largest of the values of all rounds, or one value."""
        rounds = [values] if isinstance(values, int | float) else list(values)
        self._write(
            {
                "contender": contender,
                "metric": metric,
                "value": median(rounds),
                "unit": unit,
                "rounds": len(rounds),
                "min": min(rounds),
                "max": max(rounds),
            }
        )

    def end(self, summary: Mapping[str, Json]) -> None:
        """The last line."""
        self._write({"summary": dict(summary)})

    def _write(self, line: Mapping[str, Json]) -> None:
        if self._file:
            with self._file.open("a") as file:
                file.write(json.dumps(line) + "\n")


def machine() -> dict[str, Json]:
    """The machine and the versions of a measurement."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _cpu() -> str:
    """Model name of the processor, where the system reports it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
