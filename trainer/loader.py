"""Batches of crops and labels in the order of a run; a training loop iterates over a `Loader`."""

from __future__ import annotations

import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass, replace
from itertools import tee
from typing import NoReturn

import torch
from torch.utils.data import IterableDataset

from labelstore.errors import InputError
from pipeline.device.current import make_current
from pipeline.device.moving import to_device
from pipeline.plan.augment import inputs_of
from pipeline.render.normalise import network_input, normalise
from trainer.batch import TrainBatch, concatenate, slices
from trainer.crops import Crops, CropSource, Int64Array
from trainer.labels import LabelSource
from trainer.order import UNBOUNDED, Order, OrderMode
from trainer.prefetch import Prefetcher, require_process

READ_AHEAD = 2  # batches that wait, as uint8, while the next one is rendered


@dataclass(frozen=True, slots=True)
class Span:
    """The part of a batch that one process makes, as offsets into the epoch.

    Attributes:
        low: start of the groups that contain its slice.
        high: end of these groups.
        begin: start of its slice.
        end: end of its slice.
        total: number of crops in the whole batch.
        share: as in `TrainBatch`.
        reused: rows from ``low`` on that were rendered for the spans before.
        played: whether its slice is yielded; not if only its crops are needed, for a later span.
    """

    low: int
    high: int
    begin: int
    end: int
    total: int
    share: float
    reused: int
    played: bool


@dataclass(frozen=True, slots=True)
class Play:
    """A span of an epoch, and the crops that are rendered for it.

    Attributes:
        span: the part of the batch that this process makes.
        view: the view that the epoch plays.
        positions: positions of the crops that were not rendered for the span before, int64 ``[n]``; may be empty.
    """

    span: Span
    view: int
    positions: Int64Array


class Loader(IterableDataset[TrainBatch]):
    """Crops of any source, with labels of any source.

    Iterating yields the batches of one epoch; iterating again yields the next epoch. The order depends only on (seed,
    epoch): see :class:`trainer.order.Order`. Nothing is dropped: the last batch may be short. With several processes,
    each gets a slice of every batch; sizes of slices differ by at most one.

    It renders in its own threads: pass it to a loop, or to Lightning, directly. Wrapping it in ``DataLoader(loader,
    batch_size=None)`` changes nothing; DataLoader workers are refused, since they are other processes.

    Args:
        crops: source of the crops.
        labels: source of their labels.
        batch_size: crops a batch.
        epoch: the epoch that the first iteration plays.
        seed: the run's seed; draws which view each epoch plays.
        view_order: ``shuffle`` or ``cycle`` (stored order).
        views: number of views to play, from the first on; all when None. If ``crops`` has no limit, epoch e plays view
            e.
        rank: rank of this process.
        world: number of processes.
        device: where batches are made and delivered.
        dtype: of ``images``.
        channels_last: memory layout of ``images``, of the same shape.

    Raises:
        InputError: names the argument that is out of range.
    """

    def __init__(
        self,
        crops: CropSource,
        labels: LabelSource,
        *,
        batch_size: int,
        epoch: int = 0,
        seed: int = 0,
        view_order: OrderMode = "shuffle",
        views: int | None = None,
        rank: int = 0,
        world: int = 1,
        device: str = "cpu",
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
    ) -> None:
        require_slice(batch_size, epoch, rank, world)
        if views is not None and not 1 <= views <= (crops.views or views):
            raise InputError(f"views: expected 1 to {crops.views}, found {views}")
        self.crops, self.labels = crops, labels
        self.batch_size, self._rank, self._world = batch_size, rank, world
        self.order = Order(
            views=views or crops.views or UNBOUNDED,
            images=crops.images,
            group=crops.group,
            seed=seed,
            mode=view_order,
        )
        self._targets = torch.from_numpy(crops.targets)
        self._device, self._dtype, self.channels_last = torch.device(device), dtype, channels_last
        self._epoch, self._position = epoch, 0
        self._process = os.getpid()
        self._played: list[Prefetcher[tuple[TrainBatch, torch.cuda.Event | None]]] = []  # may still run
        self._turn = 0  # counts iterators and loaded states: an older iterator must not continue

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.crops.images // self.batch_size)

    @property
    def size(self) -> int:
        """Side of the crops in pixels."""
        return self.crops.size

    @property
    def epoch(self) -> int:
        """The epoch being played, or the next one."""
        return self._epoch

    @property
    def position(self) -> int:
        """Number of crops of :attr:`epoch` that were yielded."""
        return self._position

    @property
    def view(self) -> int:
        """The view that :attr:`epoch` plays."""
        loader, epoch = self._at(self._epoch)
        return loader.order.view(epoch)

    def __iter__(self) -> Iterator[TrainBatch]:
        """The rest of the current epoch, batch by batch."""
        return self.play(self._epoch + 1)

    def play(self, epochs: int) -> Generator[TrainBatch]:
        """The rest of all epochs before ``epochs``, batch by batch, without a pause between them.

        Raises:
            InputError: when another iteration was started meanwhile, or a state loaded; or when more than the current
            epoch is requested of a store that is followed, since its next view may not be stored yet.
        """
        require_process(self._process)
        self._turn += 1
        turn = self._turn
        if self.crops.growing:
            if epochs > self._epoch + 1:
                raise InputError(f"play: expected one epoch of a store that is followed, found {epochs - self._epoch}")
            self.crops.wait_for(self.view)
        for left in [each for each in self._played if each.stopped]:
            left.join()  # so that two iterations never render at the same time, unless both are in use
            self._played.remove(left)
        with Prefetcher(self._made(self._epoch, self._position, epochs), READ_AHEAD) as batches:
            self._played.append(batches)
            for batch, made in batches:
                # Advanced before the batch is yielded: while this batch is used, the state refers to the next one.
                if self._turn != turn:
                    raise InputError(
                        "replay: another iteration was begun, or a state loaded, while an epoch was being iterated; "
                        "continue the newest one"
                    )
                crops = self._at(self._epoch)[0].crops
                self._position += batch.total
                if self._position == self.crops.images:
                    self._epoch, self._position = self._epoch + 1, 0
                yield self._deliver(batch, made, crops)

    def state_dict(self) -> dict[str, int | str]:
        """Epoch and position of the next batch, and everything on which the order depends."""
        return {**self._order_state(), "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a state, which must have the same order.

        Raises:
            InputError: when seed, views, images or view order differ from the state's.
        """
        for name, ours in self._order_state().items():
            if state.get(name) != ours:
                raise InputError(
                    f"replay state: {name} was {state.get(name)!r} when it was saved and is {ours!r} now; "
                    f"the order would not be the same: give this run the same {name}"
                )
        self._epoch, self._position = int(state["epoch"]), int(state["position"])
        self._turn += 1

    @property
    def remark(self) -> str:
        """Lines about the crops for the start of a run; may be empty."""
        return self.crops.remark

    def of_store(self, epochs: int) -> int:
        """How many of the first ``epochs`` epochs play views of :attr:`order`."""
        return epochs

    def close(self) -> None:
        """Release the renderer, once no iteration uses it."""
        for each in self._played:
            each.join()
        self.crops.close()

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "replay: cannot be sent to another process (a DataLoader worker?); iterate over it where it was made, "
            "without workers, or make one in each process, with rank and world"
        )

    def _at(self, epoch: int) -> tuple[Loader, int]:
        """The loader that plays an epoch, and the number of that epoch in this loader."""
        return self, epoch

    def _order_state(self) -> dict[str, int | str]:
        order = self.order
        return {
            "version": 1,
            **self.crops.identity,
            "seed": order.seed,
            "views": order.views,
            "images": order.images,
            "group": order.group,
            "view_order": order.mode,
        }

    def _made(self, first: int, start: int, stop: int) -> Generator[tuple[TrainBatch, torch.cuda.Event | None]]:
        """This process's slices of epochs ``first`` to ``stop``, the first one from an offset on, on the device.

        On a GPU each comes with an event that marks when it is ready.
        """
        make_current(self._device)  # for the prefetcher's thread
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        with torch.cuda.stream(stream):
            for batch in self._slices(first, start, stop):
                moved = batch.change(lambda tensor: to_device(tensor, self._device))
                yield moved, stream.record_event() if stream else None

    def _slices(self, first: int, start: int, stop: int) -> Iterator[TrainBatch]:
        """This process's slice of each batch of epochs ``first`` to ``stop``."""
        # Labels may be read ahead of the crops, so that plays are computed once and buffered by `tee`.
        plays, ahead, further = tee(self._plays(first, start, stop), 3)
        label = self.labels.label((play.view, play.positions) for play in ahead if len(play.positions))
        rows, given = tee(self.crops.rows(play.view, play.positions) for play in further if len(play.positions))
        pixels = self.crops.stream(given)
        del ahead, further, given  # so that nothing is buffered for a source that ignores them
        held: TrainBatch | None = None
        for play in plays:
            span = play.span
            kept = held[max(len(held) - span.reused, 0) :] if held and span.reused else None
            first_row = span.low + span.reused - (len(kept) if kept else 0)
            parts = [kept] if kept else []
            if len(play.positions):
                made = next(pixels)
                crops = Crops(play.view, play.positions, next(rows), made)
                parts.append(self._paired(crops, label(crops)))
            joined = concatenate(parts)
            if span.played:
                own = joined[span.begin - first_row : span.end - first_row]
                yield replace(own, total=span.total, share=span.share)
            held = joined[max(span.end // self.crops.group * self.crops.group - first_row, 0) :]

    def _plays(self, first: int, start: int, stop: int) -> Iterator[Play]:
        """The spans of epochs ``first`` to ``stop``, the first one from an offset on."""
        for epoch in range(first, stop):
            view = self.order.view(epoch)
            for span in self._spans(start if epoch == first else 0):
                yield Play(span, view, self.order.positions(epoch, span.low + span.reused, span.high))

    def _spans(self, start: int) -> Iterator[Span]:
        """This process's part of each batch of an epoch from ``start`` on; mixed crops need their whole groups.

        Crops are rendered and labelled in the same parts wherever an epoch is continued, since the last bits of a
        matrix product depend on its number of rows. A group that begins before ``start`` may need an earlier part.
        """
        group, images, rendered = self.crops.group, self.crops.images, 0
        grid = start if start % self.batch_size else 0  # a position of a run with another batch size has no parts here
        for first in range(grid, images, self.batch_size):
            total = min(self.batch_size, images - first)
            own = slices(total, self._world)[self._rank]
            count = own.stop - own.start
            begin = first + own.start if count else first
            end = begin + max(count, 1)
            low, high = begin // group * group, min(-(-end // group) * group, images)
            reused, played = max(rendered - low, 0), first >= start
            if played or high > start // group * group:
                yield Span(low, high, begin, end, total, count * self._world / total, reused, played)
            rendered = high

    def _paired(self, crops: Crops, logits: torch.Tensor | None) -> TrainBatch:
        """Crops of whole groups with their labels, pixels as uint8 ``[n, S, S, 3]``."""
        rows = crops.rows
        index = torch.from_numpy(rows.image.astype("int64"))
        targets = self._targets[index]
        partners = rows.partners(self.crops.group) if rows.mixed else slice(None)
        return TrainBatch(
            images=crops.pixels,
            logits=torch.empty(len(rows), 0) if logits is None else logits,
            targets=targets,
            targets2=targets[partners],
            lam=torch.from_numpy(rows.weights(self.crops.drawn_size)),
            index=index,
            view=torch.full((len(rows),), crops.view),
            position=torch.from_numpy(crops.positions),
            rows=rows if inputs_of(rows.names) else None,
        )

    def _deliver(self, batch: TrainBatch, made: torch.cuda.Event | None, crops: CropSource) -> TrainBatch:
        """The batch, once it is ready, with pixels normalised as ``crops`` defines."""
        if made:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(made)
            batch.change(lambda tensor: _used_on(tensor, stream))
        how = (crops.mean, crops.std, self._dtype, self.channels_last)
        if batch.images.is_floating_point():  # not pixels
            return replace(batch, images=batch.images.to(self._dtype))
        if batch.rows is None:
            return replace(batch, images=normalise(batch.images, *how))
        return replace(batch, images=network_input(batch.images, batch.rows, *how, size=crops.drawn_size))


def require_slice(batch_size: int, epoch: int, rank: int, world: int) -> None:
    """Refuse numbers that no process of a run can have.

    Raises:
        InputError: names the first one.
    """
    if not 0 <= rank < world:
        raise InputError(f"rank: expected one of {world}, found {rank}")
    if batch_size < world:
        raise InputError(
            f"batch_size: expected at least 1, and one crop for each of {world} processes, found {batch_size}"
        )
    if epoch < 0:
        raise InputError(f"epoch: expected at least 0, found {epoch}")


def _used_on(tensor: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Prevent memory from being reused before ``stream`` has finished with it."""
    tensor.record_stream(stream)
    return tensor
