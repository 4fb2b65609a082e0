"""Render and label crops, batch by batch: alternately on a CPU, since both use all cores; in two threads on a GPU."""

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

WAITING = 1  # rendered batches that wait for a GPU's teacher while the next one is rendered
UNDER_WAY = 1  # batches in flight on a GPU when the next one is launched
REQUESTED = 4  # batches that a remote labeller processes while the next one is rendered


class Job(Protocol):
    """Crops to label."""

    @property
    def rows(self) -> Sequence[CropRows]:
        """Their rows, each of whole groups."""

    @property
    def names(self) -> Sequence[str]:
        """A description of each of `rows`, for errors."""


JobT = TypeVar("JobT", bound=Job)


@dataclass(frozen=True, slots=True)
class Rows:
    """A job that consists only of rows."""

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
        start: index of the first crop in the job.
        rows: of the crops.
        crops: uint8 ``[n, S, S, 3]`` on the renderer's device.
        made: on a GPU, event that marks when they are rendered.
    """

    job: JobT
    start: int
    rows: CropRows
    crops: Tensor
    made: torch.cuda.Event | None

    def ready(self) -> Tensor:
        """The crops, ordered after rendering in the current CUDA stream."""
        if self.made is not None:
            now = torch.cuda.current_stream(self.crops.device)
            now.wait_event(self.made)
            self.crops.record_stream(now)
        return self.crops


def label(
    renderer: Renderer, labeller: Labeller, group: int, jobs: Iterable[JobT], *, busy: Busy | None = None
) -> Generator[Labelled[JobT], None, None]:
    """Render and label the crops of jobs, one job after the other, in batches of the labeller's size.

    Close the iterator if it is not exhausted, so that its thread ends.

    Args:
        renderer: renders the crops.
        labeller: labels the crops; each of its batches has crops of one job.
        group: crops that may mix with each other.
        jobs: what to label; the next job is taken once the crops of the previous one are rendered.
        busy: counts the time at work.

    Raises:
        InputError: when a logit is NaN or infinite; names the image and the description of its rows.
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
    """Whether the labeller does not compete with the renderer for the CPU."""
    return labeller.device.type == "cuda"


def _batches(renderer: Renderer, labeller: Labeller, group: int, job: JobT) -> Iterator[Batch[JobT]]:
    """The crops of a job; on a GPU in a separate CUDA stream, so that labelling does not wait for the next batch."""
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
    """The stage that labels, one call for each batch. Finished batches are queued for the thread that calls `take`."""

    def __init__(self, labeller: Labeller, busy: Busy, under_way: int) -> None:
        self._labeller, self._busy, self._under_way = labeller, busy, under_way
        self._pending: deque[tuple[Batch[JobT], Pending, float]] = deque()
        self._finished: deque[Labelled[JobT]] = deque()  # at most as many as were passed in since the last `take`
        self._ended = 0.0

    def __call__(self, batch: Batch[JobT]) -> None:
        began = time.perf_counter()
        pending = started(self._labeller, batch.ready(), batch.rows)
        self._pending.append((batch, pending, began))
        self._collect(max(self._under_way, REQUESTED if pending.waits else 0))

    def finish(self) -> None:
        """Wait for batches in flight."""
        self._collect(0)

    def take(self) -> Iterator[Labelled[JobT]]:
        """The batches that have finished since the last call."""
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
        f"number, found {error.value}; check the teacher's weights, its --dtype and --mean/--std"
    )
