"""How often the host waits for a GPU in the steady state of a build and of a training run, and where."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from types import FrameType
from typing import Any, TextIO
from unittest.mock import patch

import torch

from benchmarks import step
from benchmarks.gpu_inputs import folder_of, images
from benchmarks.gpu_whole import build_of
from benchmarks.harness import Report
from labelstore.command.console import Console
from labelstore.spec import Json
from labelstore.store import LabelStore
from pipeline.build.build import prepare
from pipeline.build.filling import Filling
from pipeline.build.watching import Watch
from pipeline.ranks import Ranks
from trainer.run import make_run
from trainer.step import step as take_step
from trainer.stopping import StopSignals

MESSAGE = "called a synchronizing CUDA operation"  # torch's, of an operation that waits for all that was queued
PACKAGES = ("labelstore", "pipeline", "trainer")
ROOT = Path(__file__).parents[1]
FIRST, LAST = 10, 74  # batches between which waits are counted: two of the looks at whether losses are finite
TOY = 1, 3
SIZE = step.Size("resnet18-modified", 32, (32, 32), 2_048, 64, 1, 0)


class Waits:
    """Counts what waits for a GPU, by the line of ours that does, from one batch to another.

    Args:
        device: a CPU is never waited for, and only what is injected is counted.
        first: the batch after which counting begins.
        last: the batch after which it ends.

    Attributes:
        hidden: operations that wait for everything that was queued, though nobody wanted that.
        wanted: waits for an event or a stream.
    """

    def __init__(self, device: torch.device, first: int, last: int) -> None:
        self._device, self._first, self._last = device, first, last
        self._batches = 0
        self._open = ExitStack()
        self.hidden: Counter[str] = Counter()
        self.wanted: Counter[str] = Counter()

    @property
    def ended(self) -> bool:
        """Whether the last batch was counted."""
        return self._batches >= self._last

    @property
    def counted(self) -> int:
        """Batches that were counted."""
        return max(min(self._batches, self._last) - self._first, 0)

    def batch(self) -> None:
        """A batch is done."""
        self._batches += 1
        if self._batches == self._first:
            self._begin()
        if self._batches == self._last:
            self.close()

    def close(self) -> None:
        """Count no longer."""
        self._open.close()

    def _begin(self) -> None:
        self._open.enter_context(warnings.catch_warnings())
        warnings.simplefilter("always")
        warnings.showwarning = self._warned
        for owner in (torch.cuda.Stream, torch.cuda.Event, torch.cuda):
            self._open.enter_context(patch.object(owner, "synchronize", self._counting(owner.synchronize)))
        if self._device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
            self._open.callback(torch.cuda.set_sync_debug_mode, "default")

    def _warned(
        self,
        message: Warning | str,
        category: type[Warning],  # noqa: ARG002
        filename: str,
        lineno: int,
        file: TextIO | None = None,  # noqa: ARG002
        line: str | None = None,  # noqa: ARG002
    ) -> None:
        if MESSAGE in str(message):
            self.hidden[place(sys._getframe(1)) or f"{filename}:{lineno}"] += 1

    def _counting(self, wait: Callable[..., Any]) -> Callable[..., Any]:
        def counted(*args: Any) -> Any:
            self.wanted[place(sys._getframe(1)) or "elsewhere"] += 1
            return wait(*args)

        return counted

    def found(self, report: Report, name: str) -> dict[str, Json]:
        """Report the counts a batch; the summary, with every place."""
        count = max(self.counted, 1)
        report.add(name, "hidden waits a batch", self.hidden.total() / count, "")
        report.add(name, "waits for events and streams a batch", self.wanted.total() / count, "")
        return {"batches": self.counted, "hidden": {**self.hidden}, "wanted": {**self.wanted}}


def place(frame: FrameType | None) -> str | None:
    """File and line of the innermost frame of the packages; None if there is none."""
    while frame is not None:
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(ROOT) and path.relative_to(ROOT).parts[0] in PACKAGES:
            return f"{path.relative_to(ROOT)}:{frame.f_lineno}"
        frame = frame.f_back
    return None


class CountedWatch(Watch):
    """A build's watch that also counts batches."""

    def __init__(self, waits: Waits) -> None:
        super().__init__()
        self._waits = waits

    def add_crops(self, count: int) -> None:
        """A batch is labelled."""
        super().add_crops(count)
        self._waits.batch()


def syncs(report: Report, device: torch.device) -> dict[str, Json]:
    """Waits of a build by a ResNet-18, and of the training of a student: none are hidden."""
    build = of_a_build(report, device)
    training = of_training(report, device)
    enough = build.ended and training.ended
    found: dict[str, Json] = {"build": build.found(report, "build"), "train": training.found(report, "train")}
    return {**found, "kept": enough and not build.hidden and not training.hidden}


def of_a_build(report: Report, device: torch.device) -> Waits:
    """In batches of 64, of which several blocks are written meanwhile."""
    on_gpu = device.type == "cuda"
    manifest = images(folder_of(report), device)
    views, batch = -(-(LAST + 8) * 64 // len(manifest)) if on_gpu else 4, 64 if on_gpu else 4
    config = build_of(
        folder_of(report), device, "resnet18", manifest, views=views, batch=batch, decoder="cpu" if on_gpu else None
    )
    work = prepare(config, Console(silent=True), Ranks())
    waits = Waits(device, *((FIRST, LAST) if on_gpu else TOY))
    with closing(work.renderer), closing(waits):
        store = LabelStore.create(
            config.store,
            work.identity,
            image_digests=work.manifest.digests,
            targets=work.manifest.targets,
            views=views,
        )
        watch = CountedWatch(waits)
        with store.lease() as writer:
            Filling(store, work, store.missing(), Ranks(), Console(silent=True), watch, StopSignals()).fill(writer)
    return waits


def of_training(report: Report, device: torch.device) -> Waits:
    """Of a student on CutMix crops of 32 px, with everything that a run does between steps."""
    on_gpu = device.type == "cuda"
    size = SIZE if on_gpu else step.QUICK[0]
    (folder_of(report) / "training").mkdir()
    config = step.prepare(folder_of(report) / "training", size, str(device))
    waits = Waits(device, *((FIRST, LAST) if on_gpu else TOY))
    with closing(make_run(config, Ranks(), StopSignals())) as run, closing(waits):
        run.network.train()
        with closing(run.replay.play(config.epochs)) as batches:
            for batch in batches:
                run.total += take_step(run, batch)
                run.stop_conditions.between_steps()
                waits.batch()
                if waits.ended:
                    break
    return waits
