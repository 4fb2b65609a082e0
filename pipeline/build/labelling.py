"""Crops rendered and labelled, batch by batch: in turns on a CPU, whose cores both take; in two threads on a GPU."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from pipeline.build.stages import RENDER, TEACHER, Busy, hand_over
from pipeline.device.faults import device_faults
from pipeline.plan.plan import Plan
from pipeline.render import Renderer
from pipeline.render.batches import render_batches
from pipeline.teacher.labeller import BrokenLogitsError, Labeller, Pending, started

WAITING = 1  # rendered batches that wait for a GPU's teacher, while one more is rendered
UNDER_WAY = 1  # batches that a GPU labels while the next one is sent to it
REQUESTED = 4  # batches whose labels a labeller elsewhere makes while the next one is rendered


class Job(Protocol):
    """Crops to label."""

    @property
    def rows(self) -> Sequence[CropRows]:
        """Their rows, each of whole groups."""

    @property
    def names(self) -> Sequence[str]:
        """What each of `rows` is, for an error."""


JobT = TypeVar("JobT", bound=Job)


@dataclass(frozen=True, slots=True)
class Rows:
    """A job that is nothing but its rows."""

    rows: Sequence[CropRows]
    names: Sequence[str]


@dataclass(frozen=True, slots=True)
class Labelled(Generic[JobT]):
    """The next labelled crops of a job, in the order of its rows.

    Attributes:
        job: the one that they belong to.
        crops: uint8 ``[n, S, S, 3]`` on the renderer's device.
        logits: float32 ``[n, C]``, finite, on the labeller's device.
    """

    job: JobT
    crops: Tensor
    logits: Tensor


@dataclass(frozen=True, slots=True)
class Batch(Generic[JobT]):
    """Rendered crops of a job.

    Attributes:
        job: the one that they belong to.
        start: place of the first in the job.
        rows: of the crops.
        crops: uint8 ``[n, S, S, 3]`` on the renderer's device.
        made: on a GPU, when they are there.
    """

    job: JobT
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
    renderer: Renderer, labeller: Labeller, group: int, jobs: Iterable[JobT], *, busy: Busy | None = None
) -> Generator[Labelled[JobT], None, None]:
    """Render and label the crops of jobs, one job after the other, in batches of the labeller's size.

    Close the iterator when it is left early, so that its thread ends.

    Args:
        renderer: of the crops.
        labeller: of the labels; its batches hold crops of one job.
        group: crops that may mix with each other.
        jobs: what to label; the next one is taken when the crops of the one before are rendered.
        busy: counts the time at work.

    Raises:
        InputError: when a logit is NaN or infinite; names the first one's image and what its rows are.
    """
    busy = busy or Busy()
    on_gpu = _on_gpu(labeller)
    teaching = _Teaching[JobT](labeller, busy, UNDER_WAY if on_gpu else 0)
    with hand_over(teaching, WAITING if on_gpu else 0, labeller.device) as teach:
        for job in jobs:
            for batch in busy.making(RENDER, _batches(renderer, labeller, group, job)):
                teach(batch)
                yield from teaching.take()
    teaching.finish()
    yield from teaching.take()


def first_labels(plan: Plan, renderer: Renderer, labeller: Labeller) -> npt.NDArray[np.float32]:
    """Logits of the first crops of view 0, one batch of them: float32 ``[n, C]``.

    Raises:
        InputError: when a logit is NaN or infinite.
    """
    group = plan.spec.group
    count = min(-(-labeller.batch // group) * group, plan.images)
    first = Rows([plan.rows(0, 0, count)], ["view 0"])
    return torch.cat([each.logits for each in label(renderer, labeller, group, [first])]).cpu().numpy()


def _on_gpu(labeller: Labeller) -> bool:
    """Whether the labeller leaves the CPU to the renderer."""
    return labeller.device.type == "cuda"


def _batches(renderer: Renderer, labeller: Labeller, group: int, job: JobT) -> Iterator[Batch[JobT]]:
    """The crops of a job, on a GPU in a stream of their own, so that no batch waits for the making of the next."""
    side = torch.cuda.Stream(labeller.device) if labeller.device.type == "cuda" else None
    start = 0
    batches = render_batches(renderer, job.rows, labeller.batch, group)
    while True:
        with torch.cuda.stream(side), device_faults("crops are rendered", "a smaller --cache-gib"):
            try:
                crops, rows = next(batches)
            except StopIteration:
                return
            made = side.record_event() if side else None
        yield Batch(job, start, rows, crops, made)
        start += len(crops)


class _Teaching(Generic[JobT]):
    """The labeller's stage: one call a batch. Finished batches wait to be taken by the thread that calls `take`."""

    def __init__(self, labeller: Labeller, busy: Busy, under_way: int) -> None:
        self._labeller, self._busy, self._under_way = labeller, busy, under_way
        self._pending: deque[tuple[Batch[JobT], Pending, float]] = deque()
        self._finished: deque[Labelled[JobT]] = deque()  # no more than were handed over since the last `take`
        self._ended = 0.0

    def __call__(self, batch: Batch[JobT]) -> None:
        began = time.perf_counter()
        pending = started(self._labeller, batch.ready(), batch.rows)
        self._pending.append((batch, pending, began))
        self._collect(max(self._under_way, REQUESTED if pending.waits else 0))

    def finish(self) -> None:
        """Wait for what is under way."""
        self._collect(0)

    def take(self) -> Iterator[Labelled[JobT]]:
        """The batches that were finished since the last call."""
        while self._finished:
            yield self._finished.popleft()

    def _collect(self, left: int) -> None:
        while len(self._pending) > left:
            batch, pending, began = self._pending.popleft()
            try:
                logits = pending.result()
            except BrokenLogitsError as error:
                raise _named(batch, error) from error
            _require_shape(self._labeller, logits, len(batch.crops))
            now = time.perf_counter()
            self._busy.add(TEACHER, now - max(began, self._ended))
            self._ended = now
            self._finished.append(Labelled(batch.job, batch.crops, logits))


def _require_shape(labeller: Labeller, logits: Tensor, count: int) -> None:
    expected = (torch.float32, (count, labeller.columns))
    if (logits.dtype, tuple(logits.shape)) != expected:
        raise InputError(
            f"labeller {labeller.identity.get('name', '')}: expected logits float32 {list(expected[1])}, "
            f"found {logits.dtype} {list(logits.shape)}"
        )


def _named(batch: Batch[JobT], error: BrokenLogitsError) -> InputError:
    """The error with the crop's image and view."""
    each, row = 0, batch.start + error.row
    while row >= len(batch.job.rows[each]):
        row -= len(batch.job.rows[each])
        each += 1
    return InputError(
        f"logit of image {batch.rows.image[error.row]} in {batch.job.names[each]}, class {error.column}: expected a "
        f"number, found {error.value}; look at the teacher's weights, its --dtype and --mean/--std"
    )
