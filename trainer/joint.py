"""Train on several stores together: `train --store A B`. One teacher labelled all of them, with the same columns.

Each view plays the crops of all stores once. The groups of the stores are interleaved at random, but the groups of one
store keep their order, so that each store is still read sequentially.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import tee
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.durable.keeping import PieceCache
from labelstore.errors import InputError, MismatchError
from labelstore.format.columns import CropRows
from labelstore.spec import Identity, Json, first_difference, shorten
from labelstore.store import LabelStore
from pipeline.plan import draws
from pipeline.ranks import Ranks
from pipeline.recipes.setting import Setting
from trainer.config import TrainConfig
from trainer.crops import Crops, CropSource, Int64Array, ReplayedCrops
from trainer.labels import LabelSource, Request, StoredLabels
from trainer.loader import Loader
from trainer.material import Material, Normal, crops_of, open_material, order_of

ALIKE = ("columns", "teacher", "size", "group", "crop_columns", "content")


def open_any(
    config: TrainConfig,
    ranks: Ranks,
    views: int | None,
    engine: Mapping[str, Any] | None = None,
    normal: Normal | None = None,
) -> Material:
    """Open the material of a run with one store, several or none; the arguments are those of `open_material`."""
    if config.more_stores:
        return open_joint(config, ranks, views)
    return open_material(config, ranks, views, engine, normal)


def open_joint(config: TrainConfig, ranks: Ranks, views: int | None) -> Material:
    """The crops of several stores with their stored labels.

    Raises:
        InputError: the labels cannot be combined, such as when a class has two columns.
        MismatchError: teachers, columns or sizes differ, or images or replayed crops do not match a store.
    """
    kept = config.store_cache
    cache = PieceCache(kept.cache_dir, kept.bytes) if kept.cache_dir else None
    stores = [LabelStore.open(path, cache=cache) for path in (config.store, *config.more_stores) if path is not None]
    for store in stores:
        config.loss.require_content(store.identity.content)
    identity = joined([store.identity for store in stores], [str(store.path) for store in stores])
    sources = [
        crops_of(config, store, images, views)
        for store, images in zip(stores, (config.images, *config.more_images), strict=True)
    ]
    crops = JointCrops(sources, identity.manifest)
    any_scale = config.loss.any_scale and not config.relabel
    device = torch.device(config.render.device)
    labels = [StoredLabels(store, device, any_scale=any_scale) for store in stores]
    made: dict[str, Json] = {
        "identity": identity.to_json(),
        "views": crops.views,
        "stores": [store.identity.to_json() for store in stores],
    }
    return Material(
        loader=Loader(crops, JointLabels(crops, labels), **order_of(config, ranks)),
        columns=identity.columns,
        classes=identity.classes,
        label_columns=identity.label_columns,
        interpolation=sources[0].source.spec.interpolation,
        renderer=sources[0].source.renderer.id,
        setting=Setting.of(identity, config.student, config.epochs, config.size),
        made_of={"store": made},
        store=identity,
    )


def joined(identities: Sequence[Identity], names: Sequence[str]) -> Identity:
    """The joint identity of several stores: all images, and the classes in the order of their columns.

    Args:
        identities: identities of the stores.
        names: names of the stores, for messages.

    Raises:
        InputError: names the first difference between stores that cannot be combined.
    """
    first, columns = identities[0], dict[str, int]()
    for identity, name in zip(identities, names, strict=True):
        for field in ALIKE:
            found = first_difference(_plain(getattr(first, field)), _plain(getattr(identity, field)))
            if found:
                place, theirs, ours = found
                raise MismatchError(
                    f"{name}: expected the {' '.join(filter(None, (field, place)))} of {names[0]}, {shorten(theirs)}, "
                    f"found {shorten(ours)}; give stores of one teacher with equal --class-columns, crops and size to "
                    f"one training"
                )
        for text, column in zip(identity.classes, identity.label_columns, strict=True):
            if columns.setdefault(text, column) != column or list(columns.values()).count(column) > 1:
                raise InputError(
                    f"{name}: class {text!r} has column {column}, which does not fit the columns of the other stores; "
                    f"build all stores with the columns of one teacher (--class-columns)"
                )
    if len({identity.manifest for identity in identities}) < len(identities):
        raise InputError("--store: expected stores of different images, found the same images twice")
    ordered = sorted(columns, key=lambda text: columns[text])
    chosen = tuple(columns[text] for text in ordered)
    digest = hashlib.sha256("\n".join(identity.manifest for identity in identities).encode()).hexdigest()
    return replace(
        first,
        images=sum(identity.images for identity in identities),
        classes=tuple(ordered),
        class_columns=() if chosen == tuple(range(first.columns)) else chosen,
        manifest=digest,
        skipped=tuple(path for identity in identities for path in identity.skipped),
    )


def _plain(value: Any) -> Json:
    """A field of an identity as JSON."""
    return [*value] if isinstance(value, tuple) else value


class JointCrops(CropSource):
    """The crops of several stores, in one order of whole groups.

    Args:
        sources: crops of each store; sizes, normalisations and groups must be equal.
        manifest: digest of all images.

    Raises:
        InputError: when groups do not divide the images of a store, or normalisations differ.
    """

    def __init__(self, sources: Sequence[ReplayedCrops], manifest: str) -> None:
        first = sources[0]
        self.sources = tuple(sources)
        self.group, self.size, self.drawn_size = first.group, first.size, first.drawn_size
        self.mean, self.std = first.mean, first.std
        for source in sources:
            if source.images % self.group and len(sources) > 1:
                raise InputError(
                    f"{source.source.store.path}: {source.images} images are not whole groups of {self.group} that are "
                    f"mixed; stores that are played together need that, or --mix none"
                )
            if (source.mean, source.std) != (self.mean, self.std):
                raise InputError(f"{source.source.store.path}: other normalisation than that of the first store")
        counts = [source.images for source in sources]
        self.images, self.starts = sum(counts), tuple(int(each) for each in np.cumsum([0, *counts]))
        self.views = min(source.views or 1 for source in sources)
        self.targets = np.concatenate([source.targets for source in sources])
        seeds = " ".join(str(source.identity["plan_seed"]) for source in sources)
        self.identity = {"manifest": manifest, "plan_seed": seeds}
        self.remark = "; ".join(source.remark for source in sources)

    def places(self, view: int, positions: Int64Array) -> tuple[Int64Array, Int64Array]:
        """The store of each position of a view, and the position in that store, both int64 ``[n]``."""
        groups, within = positions // self.group, positions % self.group
        which, number = _mixed(tuple(source.images // self.group for source in self.sources), view)
        return which[groups], number[groups] * self.group + within

    def rows(self, view: int, positions: Int64Array) -> CropRows:
        """The stored rows, with image indexes that count through all stores."""
        which, own = self.places(view, positions)
        values: Any = None
        for number, source in enumerate(self.sources):
            at = np.flatnonzero(which == number)
            if len(at):
                found = source.rows(view, own[at])
                if values is None:
                    names, values = found.names, np.empty((len(found.names), len(positions)), np.uint16)
                values[:, at] = moved(found, self.starts[number]).values
        if values is None:
            return self.sources[0].rows(view, positions)
        return CropRows(names, values)

    def parts(self, rows: CropRows) -> Iterator[tuple[int, Int64Array, CropRows]]:
        """Split rows by store: its number, the indexes of its rows, and the rows with its image indexes."""
        which = np.searchsorted(self.starts, rows.image.astype(np.int64), side="right") - 1
        for number in np.unique(which).tolist():
            at = np.flatnonzero(which == number)
            yield number, at, moved(rows.take(at), -self.starts[number])

    def pixels(self, rows: CropRows) -> Tensor:
        """Render each crop with the renderer of its store."""
        pixels: Tensor | None = None
        for number, at, own in self.parts(rows):
            made = self.sources[number].pixels(own)
            if pixels is None:
                pixels = made.new_empty((len(rows), *made.shape[1:]))
            pixels[torch.from_numpy(at).to(made.device)] = made
        return self.sources[0].pixels(rows) if pixels is None else pixels

    def close(self) -> None:
        """Release the renderers."""
        for source in self.sources:
            source.close()


class JointLabels(LabelSource):
    """The label that each crop has in its store.

    Args:
        crops: the crops of the stores.
        labels: the labels of each store, in the same order.
    """

    def __init__(self, crops: JointCrops, labels: Sequence[LabelSource]) -> None:
        self._crops, self._labels = crops, labels

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor]:
        """Each store reads its labels ahead of the crops."""
        given = tee(requests, len(self._labels))
        own = [labels.label(self._of(number, given[number])) for number, labels in enumerate(self._labels)]
        return lambda crops: self._label(crops, own)

    def _of(self, number: int, requests: Iterator[Request]) -> Iterator[Request]:
        """The requests of one store."""
        for view, positions in requests:
            which, own = self._crops.places(view, positions)
            if (which == number).any():
                yield view, own[which == number]

    def _label(self, crops: Crops, own: Sequence[Callable[[Crops], Tensor | None]]) -> Tensor:
        """The labels of crops, each from its store."""
        logits: Tensor | None = None
        _, positions = self._crops.places(crops.view, crops.positions)
        for number, at, rows in self._crops.parts(crops.rows):
            index = torch.from_numpy(at)
            found = own[number](Crops(crops.view, positions[at], rows, crops.pixels[index.to(crops.pixels.device)]))
            assert found is not None  # noqa: S101  stored labels always are
            if logits is None:
                logits = found.new_empty((len(crops.rows), found.shape[1]))
            logits[index.to(found.device)] = found
        assert logits is not None  # noqa: S101  crops are at least one
        return logits


@lru_cache(maxsize=8)
def _mixed(groups: tuple[int, ...], view: int) -> tuple[Int64Array, Int64Array]:
    """The store of each group of a view, in random order, and the number of the group in that store."""
    stores = np.repeat(np.arange(len(groups)), groups)
    which = stores[draws.permutation(draws.key("order of stores", view, *groups), len(stores))]
    number = np.empty(len(which), np.int64)
    for store, count in enumerate(groups):
        number[which == store] = np.arange(count)
    return which, number


def moved(rows: CropRows, images: int) -> CropRows:
    """The rows with ``images`` added to each image index."""
    image = (rows.image.astype(np.int64) + images).astype(np.uint32)
    values = rows.values.copy()
    values[rows.names.index("image_low")] = (image & 0xFFFF).astype(np.uint16)
    values[rows.names.index("image_high")] = (image >> 16).astype(np.uint16)
    return CropRows(rows.names, values)
