"""What the parts of `benchmarks.gpu` work on, and how they are timed; on a CPU at toy size."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.harness import Report, wait_for
from benchmarks.render import draw, photographs
from labelstore.command.flags import from_flags
from pipeline.config import BuildConfig
from pipeline.images.manifest import Manifest, scan
from pipeline.networks import build_network, save_weights
from pipeline.teacher.teacher import Teacher

ROUNDS, RATE_SECONDS = 5, 3.0  # of a rate, at most
NETWORKS: Mapping[str, int] = {"resnet18": 512, "resnet50": 256}  # crops a batch


class SkippedError(Exception):
    """A part cannot run on this machine; the message has the reason."""


def folder_of(report: Report) -> Path:
    """Where a part's files go."""
    if report.folder is None:
        raise ValueError("a part of the GPU's script needs a report with a folder")
    return report.folder


def settings(folder: Path, device: torch.device, network: str, **options: Any) -> BuildConfig:
    """A build by the network."""
    on_gpu = device.type == "cuda"
    name, size = (f"torchvision:{network}", 224) if on_gpu else ("cifar-resnet20", 32)
    weights = folder / f"{network}.safetensors"
    if not weights.exists():
        torch.manual_seed(0)
        save_weights(build_network(name, {}, classes=1000, size=size).state_dict(), weights)
    values: dict[str, Any] = {
        "images": folder / "images",
        "teacher": (name,),
        "weights": (str(weights),),
        "size": size,
        "views": 1,
        "store": folder / "store",
        "encoding": "int8",
        "dtype": "bfloat16",
        "device": str(device),
        "batch": NETWORKS[network] if on_gpu else 4,
    }
    return from_flags(BuildConfig, **(values | options))


def ceiling(report: Report, name: str, teacher: Teacher) -> float:
    """Crops a second of a teacher, on crops in device memory."""
    shape = (teacher.batch, teacher.size, teacher.size, 3)
    crops = torch.randint(0, 256, shape, dtype=torch.uint8, device=teacher.device)
    batches = 20 if teacher.device.type == "cuda" else 1

    def label() -> None:
        for pending in [teacher.start(crops) for _ in range(batches)]:
            pending.result()

    return rate(report, f"teacher {name}", label, batches * teacher.batch, teacher.device)


def images(folder: Path, device: torch.device) -> Manifest:
    """Photographs, or drawn pictures where there are none, and on a CPU."""
    on_gpu = device.type == "cuda"
    found = photographs() if on_gpu else None
    if found is None:
        (folder / "images").mkdir()
        found = draw(folder / "images", 512 if on_gpu else 6)
    manifest = scan(found, digests=False)
    return manifest.subset(np.arange(min(len(manifest), 1024)))


def rate(report: Report, name: str, act: Callable[[], object], count: int, device: torch.device) -> float:
    """Report how many a second an act makes, over some rounds after one that does not count."""
    act()
    rates: list[float] = []
    start = time.perf_counter()
    while not rates or (len(rates) < ROUNDS and device.type == "cuda" and time.perf_counter() - start < RATE_SECONDS):
        rates.append(count / timed(act, device))
    report.add(name, "rate", rates, "1/s")
    return sorted(rates)[len(rates) // 2]


def timed(act: Callable[[], object], device: torch.device) -> float:
    """Seconds of an act, with all that it leaves the device to do."""
    wait_for(device)
    start = time.perf_counter()
    act()
    wait_for(device)
    return time.perf_counter() - start
