"""The loader of `--phase`: epochs of labelled crops, and epochs of fresh crops with hard labels, in one run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from labelstore.errors import InputError
from pipeline.ranks import Ranks
from pipeline.render import make_renderer
from trainer.batch import TrainBatch
from trainer.config import TrainConfig
from trainer.crops import FreshCrops, ReplayedCrops
from trainer.labels import NoLabels
from trainer.loader import Loader
from trainer.material import Material, described, order_of


class PhasedLoader(Loader):
    """Plays the epochs of two loaders of the same images, in batches of the same size.

    The views of a store are played only in labelled epochs, in the same order as in a run without other epochs: the
    first labelled epoch plays the first view of the order. If views have no limit, epoch e plays view e in either
    loader.

    Args:
        labelled: yields crops with labels.
        fresh: yields fresh crops without labels; its views have no limit.
        hard: for each epoch of the run, whether ``fresh`` plays it.
        order: the arguments of a loader that determine batches and order, the same for both.
    """

    def __init__(self, labelled: Loader, fresh: Loader, hard: Sequence[bool], **order: Any) -> None:
        super().__init__(labelled.crops, labelled.labels, views=labelled.crops.views, **order)
        self._labelled, self._fresh, self._hard = labelled, fresh, tuple(hard)
        if fresh.crops.images != labelled.crops.images:
            raise InputError(
                f"phases: expected fresh crops of {labelled.crops.images} images, found {fresh.crops.images}"
            )

    @property
    def remark(self) -> str:
        """Lines about the crops of both, printed when a run starts."""
        own, fresh = self.crops.remark, self._fresh.crops.remark
        return own if own == fresh else f"{own}\n{fresh}"

    def of_store(self, epochs: int) -> int:
        """How many of the first ``epochs`` epochs are labelled."""
        return self._hard[:epochs].count(False)

    def close(self) -> None:
        """Release the renderers of both."""
        super().close()
        if self._fresh.crops is not self.crops:
            self._fresh.close()

    def _at(self, epoch: int) -> tuple[Loader, int]:
        if epoch < len(self._hard) and self._hard[epoch]:
            return self._fresh, epoch
        return self._labelled, epoch if self.crops.views is None else self.of_store(epoch)

    def _order_state(self) -> dict[str, int | str]:
        hard = "".join("h" if each else "s" for each in self._hard)
        return {
            **super()._order_state(),
            **{f"fresh_{name}": value for name, value in self._fresh.crops.identity.items()},
            "fresh_epochs": ",".join(f"{len([*run])}{kind}" for kind, run in groupby(hard)),
        }

    def _slices(self, first: int, start: int, stop: int) -> Iterator[TrainBatch]:
        """The slices of consecutive epochs of the same loader at a time; nothing is read ahead across a change."""
        for _, run in groupby(range(first, stop), lambda epoch: self._at(epoch)[0] is self._fresh):
            epochs = [*run]
            loader, begin = self._at(epochs[0])
            yield from loader._slices(begin, start, begin + len(epochs))
            start = 0


def with_phases(material: Material, config: TrainConfig, ranks: Ranks) -> Material:
    """The training data of a run, with fresh crops in epochs whose loss reads no labels.

    Fresh crops show the images of the store, with its crop size and normalisation.

    Args:
        material: training data without these epochs.
        config: of the run.
        ranks: its processes.

    Raises:
        InputError: when the flags of crops are invalid.
    """
    if not config.hard_phases:
        return material
    hard = [not phase.loss.reads_labels for phase in config.phases for _ in range(phase.epochs)]
    order, labelled = order_of(config, ranks), material.loader
    if config.fresh:  # the same crops, without labels
        fresh = Loader(labelled.crops, NoLabels(), views=labelled.crops.views, **order)
        return replace(material, loader=PhasedLoader(labelled, fresh, hard, **order))
    replayed = labelled.crops
    assert isinstance(replayed, ReplayedCrops)  # noqa: S101  those of a store
    manifest, spec = replayed.source.manifest, config.plan(replayed.size)
    renderer = make_renderer(manifest, spec, **config.render.arguments)
    crops = FreshCrops(
        manifest, spec, renderer, mean=replayed.mean, std=replayed.std, label_columns=material.label_columns
    )
    fresh = Loader(crops, NoLabels(), **{**order, "view_order": "cycle"})
    made = {**material.made_of, "crops": described(manifest, crops, spec)}
    return replace(material, loader=PhasedLoader(labelled, fresh, hard, **order), made_of=made)
