"""Crops and labels, batch by batch, in the one order of a run: what a training loop iterates over."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NoReturn

import torch
from torch.utils.data import IterableDataset

from labelstore.encodings import Codes, Pairs
from labelstore.errors import InputError, NotStoredError
from labelstore.format.blocks import BlockGrid
from labelstore.store import LabelBatch, LabelStore
from pipeline.device.codes import DeviceCodes
from pipeline.device.moving import to_device
from pipeline.images.manifest import Manifest
from pipeline.networks.normalisation import require_normalisation
from pipeline.plan.augment import inputs_of
from pipeline.plan.augment.sides import at_size
from pipeline.render.normalise import network_input, normalise
from pipeline.replay.source import PixelReport, Source, check_pixels, open_source
from trainer.ahead import ahead, require_process
from trainer.batch import TrainBatch, concatenate, slices
from trainer.following import wait_for_view
from trainer.order import Order

__all__ = ["Replay", "TrainBatch"]

LABEL_BYTES = 256 << 20  # of encoded labels, read ahead of the crops that they belong to
READ_AHEAD = 2  # batches waiting, as uint8, while one more is rendered


@dataclass(frozen=True, slots=True)
class Span:
    """What one process makes of one batch; offsets into the epoch.

    Attributes:
        low: where the groups begin that its slice lies in.
        high: where they end.
        begin: where its slice begins.
        end: where it ends.
        total: crops of the whole batch.
        share: as in `TrainBatch`.
        reused: rows from ``low`` on that the span before has rendered.
    """

    low: int
    high: int
    begin: int
    end: int
    total: int
    share: float
    reused: int


class Replay(IterableDataset[TrainBatch]):
    """The crops of a store, rendered again and paired with their labels.

    Iterating gives the batches of one epoch; iterating again gives the next epoch. The order is a function of
    (seed, epoch) alone: see :class:`trainer.order.Order`. Nothing is dropped: the last batch may be short. Of several
    processes each gets its slice of every batch; their sizes differ by one at most.

    It is a loader already, with threads of its own: give it to a loop, or to Lightning, as it stands. Around it, a
    ``DataLoader(replay, batch_size=None)`` does nothing; with workers it is refused, since these are other processes.

    Args:
        store: a label store or its path.
        images: the class folder that the store was made of (or its manifest); any other is refused.
        batch_size: crops a batch.
        epoch: the epoch that the first iteration plays.
        seed: the run's seed; draws which view each epoch plays.
        view_order: ``shuffle`` or ``cycle`` (stored order).
        views: views to play, the first ones of the store; all that are sealed when None. A run keeps its number when
            the store is extended.
        rank: this process's number among those that train together.
        world: how many there are.
        size: side of ``images``; the store's when None. The same boxes, at another resolution.
        follow: play views of a build that is still running, all that it was asked for when ``views`` is None; each is
            waited for.
        mean: channel means of the normalisation; the teacher's when None.
        std: channel standard deviations of the normalisation; the teacher's when None.
        device: where batches are made and delivered.
        decoder: what decodes files: ``cpu``, ``gpu`` or ``gpu-hw``; on a GPU what decoded the store's when None.
        dtype: of ``images``.
        channels_last: memory layout of ``images``, of the same shape: channels-last spares a copy and is fastest for
            convolutions whose weights have it too; networks that flatten by ``view`` need the other.
        any_scale: labels come as they are stored, in float16 or as int8 codes without their scales, for a loss that
            takes them in any scale (`LossSpec.any_scale`); those of ``transform``, and of ``int8`` where they have
            offsets or masked values, come decoded.
        threads: CPU threads of the renderer; all cores when None.
        cache_bytes: memory budget of decoded images.

    Raises:
        MismatchError: when the images are not the store's, or its crops do not come out again (P2), at its own size.
    """

    def __init__(
        self,
        store: LabelStore | Path | str,
        images: Manifest | Path | str,
        *,
        batch_size: int,
        epoch: int = 0,
        seed: int = 0,
        view_order: Literal["shuffle", "cycle"] = "shuffle",
        views: int | None = None,
        rank: int = 0,
        world: int = 1,
        size: int | None = None,
        follow: bool = False,
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: str = "cpu",
        decoder: str | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        any_scale: bool = False,
        threads: int | None = None,
        cache_bytes: int = 2 << 30,
    ) -> None:
        if not 0 <= rank < world:
            raise InputError(f"rank: expected one of {world}, found {rank}")
        if batch_size < world:
            raise InputError(
                f"batch_size: expected at least 1, and one crop for each of {world} processes, found {batch_size}"
            )
        if epoch < 0:
            raise InputError(f"epoch: expected at least 0, found {epoch}")
        if follow and view_order != "cycle":
            raise InputError("follow: views come in stored order; give view_order 'cycle'")
        if follow:
            store = LabelStore.open(store.path if isinstance(store, LabelStore) else store, follow=True)
        self.source: Source = open_source(
            store, images, device=device, decoder=decoder, threads=threads, cache_bytes=cache_bytes
        )
        self.store = self.source.store
        identity = self.store.identity
        views = views_of(self.store, views)
        if follow:
            wait_for_view(self.store, 0)
        self.pixels: PixelReport = check_pixels(self.source)
        if size not in (None, identity.size):
            self.source = self.source.at_size(size, device=device, threads=threads, cache_bytes=cache_bytes)
        self.size = self.source.spec.size
        self.batch_size, self._rank, self._world = batch_size, rank, world
        self.order = Order(views=views, images=identity.images, group=identity.group, seed=seed, mode=view_order)
        self._mean, self._std = normalisation_of(self.store, mean, std)
        self._device, self._dtype, self.channels_last = torch.device(device), dtype, channels_last
        self._decode = decoder_for(self.store, self._device, any_scale=any_scale)
        self._epoch, self._position = epoch, 0
        self._process = os.getpid()
        self._turn = 0  # of iterators and states: an older iterator must not continue

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.store.identity.images // self.batch_size)

    @property
    def epoch(self) -> int:
        """The epoch being played, or the next one."""
        return self._epoch

    @property
    def position(self) -> int:
        """Crops of :attr:`epoch` that were handed out."""
        return self._position

    @property
    def view(self) -> int:
        """The view that :attr:`epoch` plays."""
        return self.order.view(self._epoch)

    def __iter__(self) -> Iterator[TrainBatch]:
        """The rest of the current epoch, batch by batch."""
        return self.play(self._epoch + 1)

    def play(self, epochs: int) -> Generator[TrainBatch]:
        """The rest of all epochs before ``epochs``, batch by batch, without a pause between them.

        Raises:
            InputError: when another iteration was begun meanwhile, or a state loaded; when more than the current epoch
                is wanted of a store that is followed, whose next view may not be there.
        """
        require_process(self._process)
        self._turn += 1
        images, turn = self.store.identity.images, self._turn
        if self.store.follow:
            if epochs > self._epoch + 1:
                raise InputError(f"play: expected one epoch of a store that is followed, found {epochs - self._epoch}")
            wait_for_view(self.store, self.view)
        with ahead(self._made(self._epoch, self._position, epochs), READ_AHEAD) as batches:
            for batch, made in batches:
                # Advanced before the batch is handed out: the state names the next batch while this one is used.
                if self._turn != turn:
                    raise InputError(
                        "replay: another iteration was begun, or a state loaded, while an epoch was being iterated; "
                        "continue the newest one"
                    )
                self._position += batch.total
                if self._position == images:
                    self._epoch, self._position = self._epoch + 1, 0
                yield self._deliver(batch, made)

    def state_dict(self) -> dict[str, int | str]:
        """Where the run stands: the next batch that will be handed out, and what the order depends on."""
        return {**self._order_state(), "epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int | str]) -> None:
        """Continue from a state; the order must be that of the state.

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

    def close(self) -> None:
        """Release the renderer."""
        self.source.close()

    def __reduce__(self) -> NoReturn:
        raise InputError(
            "replay: cannot be sent to another process (a DataLoader worker?); iterate over it where it was made, "
            "without workers, or make one in each process, with rank and world"
        )

    def _order_state(self) -> dict[str, int | str]:
        order = self.order
        return {
            "version": 1,
            "manifest": self.store.identity.manifest,
            "plan_seed": self.store.identity.seed,
            "seed": order.seed,
            "views": order.views,
            "images": order.images,
            "group": order.group,
            "view_order": order.mode,
        }

    def _made(self, first: int, start: int, stop: int) -> Generator[tuple[TrainBatch, torch.cuda.Event | None]]:
        """This process's slices of epochs ``first`` to ``stop``, the first one from an offset on, on the device.

        On a GPU with when they are there.
        """
        stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        with torch.cuda.stream(stream):
            for batch in self._slices(first, start, stop):
                moved = batch.change(lambda column: to_device(column, self._device))
                yield moved, stream.record_event() if stream else None

    def _slices(self, first: int, start: int, stop: int) -> Iterator[TrainBatch]:
        """This process's slice of each batch, in memory, of epochs ``first`` to ``stop``."""
        group, images = self.store.identity.group, self.store.identity.images
        requests = (
            (self.order.view(epoch), self.order.positions(epoch, span.low + span.reused, span.high))
            for epoch in range(first, stop)
            for span in self._spans(start if epoch == first else 0, images)
            if span.low + span.reused < span.high
        )
        # Blocks come ahead of the crops that are rendered, within LABEL_BYTES.
        stream = self.store.stream(requests, budget_bytes=LABEL_BYTES, decode=self._decode)
        for epoch in range(first, stop):
            held: TrainBatch | None = None
            for span in self._spans(start if epoch == first else 0, images):
                parts = [held[len(held) - span.reused :]] if held and span.reused else []
                if span.low + span.reused < span.high:
                    parts.append(self._render(next(stream)))
                joined = concatenate(parts)
                own = joined[span.begin - span.low : span.end - span.low]
                yield replace(own, total=span.total, share=span.share)
                held = joined[span.end // group * group - span.low :]

    def _spans(self, start: int, stop: int) -> Iterator[Span]:
        """What this process makes of each batch from ``start`` on; mixed crops need their whole groups."""
        group, rendered = self.store.identity.group, 0
        for first in range(start, stop, self.batch_size):
            total = min(self.batch_size, stop - first)
            own = slices(total, self._world)[self._rank]
            count = own.stop - own.start
            begin = first + own.start if count else first
            end = begin + max(count, 1)
            low, high = begin // group * group, min(-(-end // group) * group, stop)
            yield Span(low, high, begin, end, total, count * self._world / total, max(rendered - low, 0))
            rendered = high

    def _render(self, labels: LabelBatch) -> TrainBatch:
        """Crops of whole groups beside their labels, with pixels as uint8 ``[n, S, S, 3]``."""
        identity, rows = self.store.identity, labels.rows
        targets = torch.from_numpy(labels.targets)
        partners = rows.partners(identity.group) if rows.mixed else slice(None)
        return TrainBatch(
            images=self.source.renderer.render(at_size(rows, identity.size, self.size)),
            logits=torch.as_tensor(labels.logits),
            targets=targets,
            targets2=targets[partners],
            lam=torch.from_numpy(rows.weights(identity.size)),
            index=torch.from_numpy(rows.image.astype("int64")),
            view=torch.full((len(rows),), labels.view),
            position=torch.from_numpy(labels.positions),
            rows=rows if inputs_of(rows.names) else None,
        )

    def _deliver(self, batch: TrainBatch, made: torch.cuda.Event | None) -> TrainBatch:
        """The batch with pixels normalised, once it is there."""
        if made:
            stream = torch.cuda.current_stream(self._device)
            stream.wait_event(made)
            batch.change(lambda column: _used_on(column, stream))
        how = (self._mean, self._std, self._dtype, self.channels_last)
        if batch.rows is None:
            return replace(batch, images=normalise(batch.images, *how))
        return replace(batch, images=network_input(batch.images, batch.rows, *how, size=self.store.identity.size))


def views_of(store: LabelStore, views: int | None) -> int:
    """How many views are played: the first ``views``, or all that are there, or will be where the store is followed."""
    there = store.state.views_target if store.follow else store.state.views_sealed
    if not there:
        raise NotStoredError(f"{store.path}: no view is sealed yet; finish the build first, or follow it: --follow")
    if views is not None and not 1 <= views <= there:
        raise InputError(
            f"views: expected 1 to {there}, those of {store.path}, found {views}; "
            f"`pipeline build --views {views}` adds the others"
        )
    wanted = there if views is None else views
    grid = BlockGrid.of(store.identity)
    removed = sorted({view for block in store.missing() for view in range(*grid.views(block)) if view < wanted})
    if removed and not store.follow:
        raise NotStoredError(
            f"{store.path}: views {in_runs(removed)} lack blocks that were damaged and are removed; "
            f"run the `{store.maker}` that made the store, which fills just them"
            + (f", or play the first {removed[0]}: --views {removed[0]}" if removed[0] else "")
        )
    return wanted


def in_runs(numbers: Sequence[int]) -> str:
    """Ascending numbers in words, runs of them as "3 to 7"."""
    edges = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    runs = [numbers[start:stop] for start, stop in pairwise((0, *edges, len(numbers)))]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def decoder_for(
    store: LabelStore, device: torch.device, *, any_scale: bool
) -> Callable[[Codes, Pairs], torch.Tensor] | None:
    """What makes labels of codes on a device; None where the encoding itself does, on a CPU."""
    as_stored = any_scale and store.encoding.scaled
    if device.type == "cpu" and not as_stored:
        return None
    # Codes are several times smaller than what they decode to: a GPU gets them, and decodes.
    codes = DeviceCodes(store.encoding, device)
    return codes.directions if as_stored else codes.decode


def normalisation_of(
    store: LabelStore, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the network's input: the teacher's unless others are given, where others can be."""
    augmented = inputs_of(store.identity.crop_columns)
    require_normalisation(mean or (), std or (), "Replay: ")
    if mean is not None and std is not None and not augmented:
        return tuple(mean), tuple(std)
    teacher: Any = store.identity.require("teacher")
    given = tuple(mean or teacher["mean"]), tuple(std or teacher["std"])
    if augmented and given != (tuple(teacher["mean"]), tuple(teacher["std"])):
        raise InputError(
            f"mean, std: expected the teacher's, {teacher['mean']} and {teacher['std']}, behind which the crops of "
            f"{store.path} are augmented further, found {[*given[0]]} and {[*given[1]]}; leave them out"
        )
    return given


def _used_on(column: torch.Tensor, stream: torch.cuda.Stream) -> torch.Tensor:
    """Keep memory from being used again before ``stream`` is done with it."""
    column.record_stream(stream)
    return column
