"""Crops replayed from a store, with their stored labels."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import torch

from labelstore.durable.storage import LocalStorage
from labelstore.errors import InputError, NotStoredError
from labelstore.format.blocks import BlockGrid
from labelstore.store import LabelStore
from pipeline.images.manifest import Manifest
from pipeline.images.source_table import ImageOptions
from pipeline.networks.normalisation import require_normalisation
from pipeline.plan.augment import inputs_of
from pipeline.replay.source import PixelReport, Replayer, check_pixels, open_source
from trainer.batch import TrainBatch
from trainer.crops import ReplayedCrops
from trainer.following import wait_for_view
from trainer.labels import StoredLabels
from trainer.loader import Loader, require_slice

__all__ = ["Replay", "TrainBatch"]


class Replay(Loader):
    """A :class:`trainer.loader.Loader` of the replayed crops of a store and their labels.

    Iteration is described there.

    Args:
        store: an open label store, or the path of its folder, or its address.
        images: the images of the store, or their manifest; other images are refused.
        batch_size: crops a batch.
        epoch: the epoch that the first iteration plays.
        seed: the run's seed; draws which view each epoch plays.
        view_order: ``shuffle`` or ``cycle`` (stored order).
        views: number of views to play, from the first on; all sealed views when None. A run keeps its number if the
            store is extended.
        rank: this process's number among those that train together.
        world: how many there are.
        size: side of the crops in pixels; the store's when None. Another size renders the same boxes at another
            resolution.
        follow: play the views of a running build, waiting for each; all that the build will make when ``views`` is
            None.
        mean: channel means of the normalisation; the teacher's when None.
        std: channel standard deviations of the normalisation; the teacher's when None.
        device: where batches are made and delivered.
        decoder: decoder of image files: ``cpu``, ``gpu`` or ``gpu-hw``; on a GPU that of the store when None.
        augmenter: library that cuts and resizes crops: ``pillow`` or ``dali``; that of the store when None.
        dtype: of ``images``.
        channels_last: memory layout of ``images``; the shape is the same. Channels-last saves a copy and is fastest for
            convolutions whose weights are channels-last too. Networks that flatten with ``view`` need contiguous
            images.
        any_scale: return labels as they are stored, in float16 or as int8 codes without scales, for a loss that is
            invariant to the scale (`LossSpec.any_scale`). Labels of ``transform``, and of ``int8`` with offsets or
            masked values, are decoded.
        threads: CPU threads of the renderer; all cores when None.
        cache_bytes: memory budget of decoded images.
        options: for images at a path: the kind of source, if it is not to be detected, and class names.

    Raises:
        MismatchError: when the images are not the store's, or its replayed crops differ at the stored size (P2).
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
        augmenter: str | None = None,
        dtype: torch.dtype = torch.float32,
        channels_last: bool = False,
        any_scale: bool = False,
        threads: int | None = None,
        cache_bytes: int | None = None,
        options: ImageOptions | None = None,
    ) -> None:
        require_slice(batch_size, epoch, rank, world)  # checked before anything is opened
        if follow and view_order != "cycle":
            raise InputError("follow: views come in stored order; give view_order 'cycle'")
        opened = followed(store) if follow else store if isinstance(store, LabelStore) else LabelStore.open(store)
        # A calibration has codes of all images; unpacking them takes as long as looking the images up, on other cores.
        with ThreadPoolExecutor(1, thread_name_prefix="giftwrap-unpack") as unpacking:
            unpacking.submit(lambda: opened.encoding)  # its error is raised again on use
            crops, self.pixels = open_crops(
                opened,
                images,
                views=views,
                size=size,
                mean=mean,
                std=std,
                device=device,
                decoder=decoder,
                augmenter=augmenter,
                threads=threads,
                cache_bytes=cache_bytes,
                options=options,
            )
        self.source: Replayer = crops.source
        self.store = self.source.store
        super().__init__(
            crops,
            StoredLabels(self.store, torch.device(device), any_scale=any_scale),
            batch_size=batch_size,
            epoch=epoch,
            seed=seed,
            view_order=view_order,
            rank=rank,
            world=world,
            device=device,
            dtype=dtype,
            channels_last=channels_last,
        )


def open_crops(
    store: LabelStore | Path | str,
    images: Manifest | Path | str,
    *,
    views: int | None = None,
    size: int | None = None,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    device: str = "cpu",
    decoder: str | None = None,
    augmenter: str | None = None,
    threads: int | None = None,
    cache_bytes: int | None = None,
    options: ImageOptions | None = None,
) -> tuple[ReplayedCrops, PixelReport]:
    """The crops of a store, and the result of the check of its pixels; the arguments are those of `Replay`.

    Raises:
        MismatchError: when the images are not the store's, or its replayed crops differ at the stored size (P2).
    """
    source = open_source(
        store,
        images,
        device=device,
        decoder=decoder,
        augmenter=augmenter,
        threads=threads,
        cache_bytes=cache_bytes,
        options=options,
    )
    views = views_of(source.store, views)
    if source.store.follow:
        wait_for_view(source.store, 0)
    found = check_pixels(source)
    if size not in (None, source.spec.size):
        source = source.at_size(size, device=device, threads=threads, cache_bytes=cache_bytes)
    normalisation = normalisation_of(source.store, mean, std)
    return ReplayedCrops(source, views, *normalisation, remark_on(found, source)), found


def followed(store: LabelStore | Path | str) -> LabelStore:
    """A store, opened with ``follow``.

    Raises:
        InputError: when it is not a folder on this machine, since a build can only be watched there.
    """
    store = store if isinstance(store, LabelStore) else LabelStore.open(store, follow=True)
    if not isinstance(store.storage, LocalStorage):
        raise InputError(
            f"{store.path}: expected a store in a folder of this machine to follow, found one that is read with "
            f"{type(store.storage).__name__}; wait for its build to end, and leave follow out"
        )
    return store if store.follow else LabelStore.open(store.path, follow=True)


def remark_on(pixels: PixelReport, source: Replayer) -> str:
    """A line about the check of a store's pixels, and the size at which they are replayed."""
    drawn, size = source.store.identity.size, source.spec.size
    if not pixels.crops:
        return "replay: not checked, since the labels were made elsewhere and no crops are stored with them"
    how = "bit for bit" if pixels.equal else f"within {pixels.max_difference} levels, on another renderer"
    other = "" if size == drawn else f"; the student gets the same boxes at {size} px"
    return f"replay: {pixels.crops} stored crops were reproduced at {drawn} px, {how}{other}"


def views_of(store: LabelStore, views: int | None) -> int:
    """How many views are played: ``views``, or all sealed views; all that will be built if followed."""
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
            f"{store.path}: views {in_runs(removed)} lack blocks that were damaged and have been removed; "
            f"run the `{store.maker}` that made the store, which makes only these again"
            + (f", or play the first {removed[0]}: --views {removed[0]}" if removed[0] else "")
        )
    return wanted


def in_runs(numbers: Sequence[int]) -> str:
    """Ascending numbers as text, with runs such as "3 to 7"."""
    edges = [at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1]
    runs = [numbers[start:stop] for start, stop in pairwise((0, *edges, len(numbers)))]
    return ", ".join(str(run[0]) if len(run) == 1 else f"{run[0]} to {run[-1]}" for run in runs)


def normalisation_of(
    store: LabelStore, mean: tuple[float, ...] | None, std: tuple[float, ...] | None
) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and deviation of the network's input: the teacher's, or given ones if the store allows them."""
    augmented = inputs_of(store.identity.crop_columns)
    require_normalisation(mean or (), std or (), "Replay: ")
    if mean is not None and std is not None and not augmented:
        return tuple(mean), tuple(std)
    teacher: Any = store.identity.require("teacher")
    given = tuple(mean or teacher["mean"]), tuple(std or teacher["std"])
    if augmented and given != (tuple(teacher["mean"]), tuple(teacher["std"])):
        raise InputError(
            f"mean, std: expected the teacher's, {teacher['mean']} and {teacher['std']}, since the crops of "
            f"{store.path} are augmented after the normalisation, found {[*given[0]]} and {[*given[1]]}; leave them out"
        )
    return given
