"""Crops rendered and labelled, batch by batch: in turns on a CPU, whose cores both take; in two threads on a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.build.stages import RENDER, TEACHER, Busy, hand_over
from pipeline.plan.plan import Plan
from pipeline.render import Renderer
from pipeline.render.stream import stream
from pipeline.teacher.teacher import BrokenLogitsError, Pending, Teacher

WAITING = 1  # rendered batches for a GPU's teacher, while one more is rendered
UNDER_WAY = 1  # batches that a GPU labels while the next one is sent to it


class Job(Protocol):
    """Crops to label."""

    @property
    def rows(self) -> Sequence[CropRows]:
        """Their rows, each of whole groups."""

    @property
    def names(self) -> Sequence[str]:
        """What each of `rows` is, for an error."""

    def take(self, crops: Tensor, labels: npt.NDArray[np.float32]) -> None:
        """The next crops, uint8 ``[n, S, S, 3]``, and their logits ``[n, C]``; called in the teacher's thread."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Rendered crops of a job.

    Attributes:
        job: theirs.
        start: place of the first in the job.
        rows: of the crops.
        crops: uint8 ``[n, S, S, 3]`` on the renderer's device.
        made: on a GPU, when they are there.
    """

    job: Job
    start: int
    rows: CropRows
    crops: Tensor
    made: torch.cuda.Event | None

    def ready(self) -> Tensor:
        """The crops, for the current stream."""
        if self.made is not None:
            now = torch.cuda.current_stream(self.crops.device)
            now.wait_event(self.made)
            self.crops.record_stream(now)
        return self.crops


def label(
    renderer: Renderer,
    teacher: Teacher,
    group: int,
    jobs: Iterable[Job],
    *,
    busy: Busy | None = None,
    between: Callable[[], object] = lambda: None,
) -> None:
    """Render and label the crops of jobs, one job after the other, in batches of the teacher's size.

    Args:
        renderer: of the crops.
        teacher: of the labels; its batches hold crops of one job.
        group: crops that may mix with each other.
        jobs: what to label; they are told what came out.
        busy: counts the time at work.
        between: called after each batch.

    Raises:
        InputError: when a logit is NaN or infinite; names the first one's image and what its rows are.
    """
    busy = busy or Busy()
    on_gpu = _on_gpu(teacher)
    teaching = _Teaching(teacher, busy, UNDER_WAY if on_gpu else 0)
    with hand_over(teaching, WAITING if on_gpu else 0) as teach:
        for job in jobs:
            for batch in busy.making(RENDER, _batches(renderer, teacher, group, job)):
                teach(batch)
                between()
    teaching.finish()


def first_labels(plan: Plan, renderer: Renderer, teacher: Teacher) -> npt.NDArray[np.float32]:
    """Logits of the first crops of view 0, one batch of them: float32 ``[n, C]``.

    Raises:
        InputError: when a logit is NaN or infinite.
    """
    group = plan.spec.group
    count = min(-(-teacher.batch // group) * group, plan.images)
    first = _First([plan.rows(0, 0, count)], ["view 0"])
    label(renderer, teacher, group, [first])
    return np.concatenate(first.labels)


@dataclass(frozen=True, slots=True)
class _First:
    """Crops whose logits are looked at and not kept."""

    rows: Sequence[CropRows]
    names: Sequence[str]
    labels: list[npt.NDArray[np.float32]] = field(default_factory=list)

    def take(self, _crops: Tensor, labels: npt.NDArray[np.float32]) -> None:
        """Keep the labels of the next crops."""
        self.labels.append(labels.copy())


def _on_gpu(teacher: Teacher) -> bool:
    """Whether the teacher leaves the CPU to the renderer."""
    return teacher.device.type == "cuda"


def _batches(renderer: Renderer, teacher: Teacher, group: int, job: Job) -> Iterator[Batch]:
    """The crops of a job, on a GPU in a stream of their own, so that no batch waits for the making of the next."""
    side = torch.cuda.Stream(teacher.device) if teacher.device.type == "cuda" else None
    start = 0
    batches = stream(renderer, job.rows, teacher.batch, group)
    while True:
        with torch.cuda.stream(side):
            try:
                crops, rows = next(batches)
            except StopIteration:
                return
            made = side.record_event() if side else None
        yield Batch(job, start, rows, crops, made)
        start += len(crops)


class _Teaching:
    """The teacher's stage: one call a batch; the job is told at once, or when the next batch is under way."""

    def __init__(self, teacher: Teacher, busy: Busy, under_way: int) -> None:
        self._teacher, self._busy, self._under_way = teacher, busy, under_way
        self._pending: deque[tuple[Batch, Pending, float]] = deque()
        self._ended = 0.0

    def __call__(self, batch: Batch) -> None:
        began = time.perf_counter()
        self._pending.append((batch, self._teacher.start(batch.ready(), batch.rows), began))
        self._collect(self._under_way)

    def finish(self) -> None:
        """Wait for what is under way."""
        self._collect(0)

    def _collect(self, left: int) -> None:
        while len(self._pending) > left:
            batch, pending, began = self._pending.popleft()
            try:
                labels = pending.result()
            except BrokenLogitsError as error:
                raise _named(batch, error) from error
            now = time.perf_counter()
            self._busy.add(TEACHER, now - max(began, self._ended))
            self._ended = now
            batch.job.take(batch.crops, labels.numpy())


def _named(batch: Batch, error: BrokenLogitsError) -> InputError:
    """The error with the crop's image and view."""
    each, row = 0, batch.start + error.row
    while row >= len(batch.job.rows[each]):
        row -= len(batch.job.rows[each])
        each += 1
    return InputError(
        f"logit of image {batch.rows.image[error.row]} in {batch.job.names[each]}, class {error.column}: expected a "
        f"number, found {error.value}; look at the teacher's weights, its --dtype and --mean/--std"
    )
