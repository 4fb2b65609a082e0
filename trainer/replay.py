"""Crops and labels, batch by batch, in the one order of a run: what a training loop iterates over."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor

from labelstore.errors import InputError, NotStoredError
from labelstore.store import LabelBatch, LabelStore
from pipeline.codes import DeviceCodes
from pipeline.manifest import Manifest
from pipeline.moving import to_device
from pipeline.render.normalise import normalise
from pipeline.source import PixelReport, Source, check_pixels, open_source
from trainer.order import Order

LABEL_BYTES = 256 << 20  # of encoded labels, read ahead of the crops that they belong to
READ_AHEAD = 2  # batches waiting, as uint8, while one more is rendered
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class TrainBatch:
    """One batch of n crops and their labels.

    Attributes:
        images: the student's input, ``[n, 3, S, S]``, normalised as the teacher's was.
        logits: the teacher's logits, float32 ``[n, C]``, raw: no temperature, no softmax.
        targets: hard labels, as columns of ``logits``, int64 ``[n]``.
        targets2: hard labels of the partners, int64 ``[n]``; equal to ``targets`` where nothing is mixed.
        lam: weight of ``targets``, the rest is that of ``targets2``, float32 ``[n]``; 1 where nothing is mixed.
        index: image index of each crop, int64 ``[n]``.
        view: view of each crop, int64 ``[n]``.
        position: position of each crop in its view, int64 ``[n]``; ``store.read(view, position)`` finds it again.
    """

    images: Tensor
    logits: Tensor
    targets: Tensor
    targets2: Tensor
    lam: Tensor
    index: Tensor
    view: Tensor
    position: Tensor

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, rows: slice) -> TrainBatch:
        return TrainBatch(*(getattr(self, field.name)[rows] for field in fields(self)))


def concatenate(batches: list[TrainBatch]) -> TrainBatch:
    """Join batches end to end."""
    if len(batches) == 1:
        return batches[0]
    columns = zip(*([getattr(batch, field.name) for field in fields(batch)] for batch in batches), strict=True)
    return TrainBatch(*(torch.cat(column) for column in columns))


class Replay:
    """The crops of a store, rendered again and paired with their labels.

    Iterating gives the batches of one epoch; iterating again gives the next epoch. The order is a function of
    (seed, epoch) alone: see :class:`trainer.order.Order`. Nothing is dropped: the last batch may be short.

    Args:
        store: a label store or its path.
        images: the class folder that the store was made of (or its manifest); any other is refused.
        batch_size: crops a batch.
        epoch: the epoch that the first iteration plays.
        seed: the run's seed; draws which view each epoch plays.
        view_order: ``shuffle`` or ``cycle`` (stored order).
        views: views to play, the first ones of the store; all that are sealed when None. A run keeps its number when
            the store is extended.
        mean: channel means of the normalisation; the teacher's when None.
        std: channel standard deviations of the normalisation; the teacher's when None.
        device: where batches are made and delivered.
        decoder: what decodes files: ``cpu``, ``gpu`` or ``gpu-hw``; on a GPU what decoded the store's when None.
        dtype: of ``images``.
        threads: CPU threads of the renderer; all cores when None.
        cache_bytes: memory budget of decoded images.

    Raises:
        MismatchError: when the images are not the store's, or its crops do not come out again (P2).
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
        mean: tuple[float, ...] | None = None,
        std: tuple[float, ...] | None = None,
        device: str = "cpu",
        decoder: str | None = None,
        dtype: torch.dtype = torch.float32,
        threads: int | None = None,
        cache_bytes: int = 2 << 30,
    ) -> None:
        if batch_size < 1:
            raise InputError(f"batch_size: expected at least 1, found {batch_size}")
        self.source: Source = open_source(
            store, images, device=device, decoder=decoder, threads=threads, cache_bytes=cache_bytes
        )
        self.store = self.source.store
        identity, sealed = self.store.identity, self.store.state.views_sealed
        if not sealed:
            raise NotStoredError(f"{self.store.path}: no view is sealed yet; finish the build first")
        if views is not None and not 1 <= views <= sealed:
            raise InputError(f"views: expected 1 to {sealed}, the sealed views of {self.store.path}, found {views}")
        self.pixels: PixelReport = check_pixels(self.source)
        self.batch_size = batch_size
        self.order = Order(
            views=sealed if views is None else views,
            images=identity.images,
            group=identity.group,
            seed=seed,
            mode=view_order,
        )
        teacher: Any = identity.teacher
        self._mean = tuple(mean or teacher["mean"])
        self._std = tuple(std or teacher["std"])
        self._device, self._dtype = torch.device(device), dtype
        # Codes are several times smaller than what they decode to: a GPU gets them, and decodes.
        on_gpu = self._device.type != "cpu"
        self._decode = DeviceCodes(self.store.encoding, self._device).decode if on_gpu else None
        self._epoch, self._position = epoch, 0
        self._loaded = 0  # how often a state was loaded: an iterator of before must not go on

    def __len__(self) -> int:
        """Batches an epoch."""
        return -(-self.store.identity.images // self.batch_size)

    @property
    def epoch(self) -> int:
        """The epoch being played, or the next one."""
        return self._epoch

    @property
    def view(self) -> int:
        """The view that :attr:`epoch` plays."""
        return self.order.view(self._epoch)

    def __iter__(self) -> Iterator[TrainBatch]:
        """The rest of the current epoch, batch by batch."""
        images, loaded = self.store.identity.images, self._loaded
        with ahead(self._batches(self._epoch, self._position), READ_AHEAD) as batches:
            for batch in batches:
                # Advanced before the batch is handed out: the state names the next batch while this one is used.
                if self._loaded != loaded:
                    raise InputError("replay state: loaded while an epoch was being iterated; begin a new iteration")
                self._position += len(batch)
                if self._position == images:
                    self._epoch, self._position = self._epoch + 1, 0
                yield self._deliver(batch)

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
        self._loaded += 1

    def close(self) -> None:
        """Release the renderer."""
        self.source.close()

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

    def _batches(self, epoch: int, start: int) -> Iterator[TrainBatch]:
        """Batches of exactly ``batch_size`` (the last may be short); a cut group's rest is kept for the next."""
        held: list[TrainBatch] = []
        count = 0
        for chunk in self._groups(epoch, start):
            held.append(chunk)
            count += len(chunk)
            while count >= self.batch_size:
                joined = concatenate(held)
                yield joined[: self.batch_size]
                held, count = [joined[self.batch_size :]], count - self.batch_size
        if count:
            yield concatenate(held)

    def _groups(self, epoch: int, start: int) -> Iterator[TrainBatch]:
        """Whole groups from ``start`` on, about a batch at a time; a group cut by ``start`` loses its head."""
        images, group = self.store.identity.images, self.store.identity.group
        step, view = -(-self.batch_size // group) * group, self.order.view(epoch)
        firsts = range(start // group * group, images, step)
        requests = ((view, self.order.positions(epoch, first, min(first + step, images))) for first in firsts)
        # Blocks come ahead of the crops that are rendered, within LABEL_BYTES.
        stream = self.store.stream(requests, budget_bytes=LABEL_BYTES, decode=self._decode)
        for first, labels in zip(firsts, stream, strict=True):
            yield self._render(labels)[max(start - first, 0) :]

    def _render(self, labels: LabelBatch) -> TrainBatch:
        """Crops of whole groups beside their labels, with pixels as uint8 ``[n, S, S, 3]``."""
        identity, rows = self.store.identity, labels.rows
        targets = torch.from_numpy(labels.targets)
        partners = rows.partners(identity.group) if rows.mixed else slice(None)
        return TrainBatch(
            images=self.source.renderer.render(rows),
            logits=torch.as_tensor(labels.logits),
            targets=targets,
            targets2=targets[partners],
            lam=torch.from_numpy(rows.weights(identity.size)),
            index=torch.from_numpy(rows.image.astype("int64")),
            view=torch.full((len(rows),), labels.view),
            position=torch.from_numpy(labels.positions),
        )

    def _deliver(self, batch: TrainBatch) -> TrainBatch:
        """The batch on its device, with pixels normalised."""
        moved = [to_device(getattr(batch, field.name), self._device) for field in fields(batch)]
        images = normalise(moved[0], self._mean, self._std, self._dtype, channels_last=True)
        return TrainBatch(images, *moved[1:])


class ahead(Iterator[T]):  # noqa: N801  reads as a verb: with ahead(items, 2) as items
    """Take items of an iterator in a thread; at most ``depth`` wait, while one more is made.

    A context manager: leaving it stops the thread, however the consumer ended. Errors of the iterator are raised
    where its item would have come.
    """

    def __init__(self, items: Iterator[T], depth: int) -> None:
        self._items = items
        self._results: queue.Queue[tuple[bool, Any]] = queue.Queue(depth)
        self._stopped = threading.Event()
        self._ended = False
        self._thread = threading.Thread(target=self._work, daemon=True, name="giftwrap-ahead")

    def __enter__(self) -> ahead[T]:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        while self._thread.is_alive():
            try:  # make room for a put that waits
                self._results.get(timeout=0.05)
            except queue.Empty:
                continue

    def __next__(self) -> T:
        if self._ended:
            raise StopIteration
        more, value = self._results.get()
        if more:
            item: T = value
            return item
        self._ended = True
        if value is None:
            raise StopIteration
        raise value

    def _work(self) -> None:
        end: BaseException | None = None
        try:
            for item in self._items:
                if self._stopped.is_set():
                    return
                self._results.put((True, item))
        except BaseException as error:
            end = error
        if not self._stopped.is_set():
            self._results.put((False, end))
