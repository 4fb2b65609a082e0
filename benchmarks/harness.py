"""Interleaved timing: every candidate once a round, so that other load on the machine meets all alike."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from labelstore.newfile import write_new
from labelstore.spec import Json


@dataclass(frozen=True, slots=True)
class Timing:
    """How long candidates took.

    Attributes:
        wall: seconds of wall clock of each round, by candidate.
        cpu: seconds of processor time of each round, all threads together, by candidate.
    """

    wall: Mapping[str, list[float]]
    cpu: Mapping[str, list[float]]

    def rate(self, name: str, count: int) -> dict[str, float]:
        """Things a second at the median round, when a round of candidate ``name`` does ``count`` of them."""
        return {"wall": count / median(self.wall[name]), "cpu": count / median(self.cpu[name])}

    def speedup(self, name: str, other: str) -> float:
        """Median over the rounds of the wall time of ``other`` over that of ``name``."""
        return median(b / a for a, b in zip(self.wall[name], self.wall[other], strict=True))


def interleave(candidates: Mapping[str, Callable[[], object]], rounds: int = 5) -> Timing:
    """Time candidates in turns, after one round that does not count.

    A candidate that works on a GPU waits for it before it returns.
    """
    wall: dict[str, list[float]] = {name: [] for name in candidates}
    cpu: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):
        for name, candidate in candidates.items():
            wall_start, cpu_start = time.perf_counter(), time.process_time()
            candidate()
            if number:
                cpu[name].append(time.process_time() - cpu_start)
                wall[name].append(time.perf_counter() - wall_start)
    return Timing(wall, cpu)


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
    """What the figures were measured on."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "gpu": gpu,
        "torch": torch.__version__,
        "numpy": np.__version__,
    }


def _cpu() -> str:
    """Model name of the processor, where the system tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor()
