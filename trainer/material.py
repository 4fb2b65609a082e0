"""The training data of a run, opened from its flags: replayed or fresh crops, with labels of any source."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from torch import Tensor

from labelstore.command.console import Console, quantity
from labelstore.operations.opening import open_store
from labelstore.spec import Identity, Json
from labelstore.store import LabelStore
from pipeline.images.manifest import Manifest, scan
from pipeline.images.remarks import report_left_out, report_skipped
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD, require_normalisation
from pipeline.plan.plan import PlanSpec
from pipeline.plan.spec import Interpolation
from pipeline.ranks import Ranks
from pipeline.recipes import recipe_of
from pipeline.recipes.setting import Setting, listed
from pipeline.recipes.stores import require_store
from pipeline.render import Renderer, make_renderer
from pipeline.replay.source import open_images
from trainer.config import TrainConfig
from trainer.crops import CropSource, FreshCrops, ReplayedCrops
from trainer.file_names import TRAIN_CACHE
from trainer.labels import ImageLabels, LabelSource, NoLabels, logits_of_images
from trainer.loader import Loader
from trainer.online import Online, OnlineLabels, Shown, labels_of, load_online, probe
from trainer.replay import Replay, open_crops

Normal: TypeAlias = tuple[tuple[float, ...], tuple[float, ...]]
"""Channel means and standard deviations."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Material:
    """The batches of a run, and what the student, its evaluation and its record need of them.

    Attributes:
        loader: yields the batches of this process.
        columns: C, the columns of the labels and of the student.
        classes: class names in target order.
        label_columns: the label column of each class.
        interpolation: filter with which crops are resized.
        renderer: id of the renderer.
        setting: the inputs of a recipe's formulas.
        made_of: everything that determines crops and labels, for the description of a run.
        store: identity of the store whose crops are replayed; None for fresh crops.
        manifest: the images of fresh crops.
        online: the teacher that labels crops during training.
        labels: the label source; None if labels are stored for each crop.
    """

    loader: Loader
    columns: int
    classes: tuple[str, ...]
    label_columns: tuple[int, ...]
    interpolation: Interpolation
    renderer: Mapping[str, Json]
    setting: Setting
    made_of: Mapping[str, Json]
    store: Identity | None = None
    manifest: Manifest | None = None
    online: Online | None = None
    labels: LabelSource | None = None

    @property
    def engine(self) -> Mapping[str, Json] | None:
        """The engine of the online teacher; None if there is none."""
        return self.online.teacher.engine if self.online else None

    def begin(self, console: Console) -> None:
        """Print notes and warnings about images and labels, before the first step."""
        if self.manifest is not None:
            console.line(f"images: {len(self.manifest):,} in {quantity(len(self.classes), 'class')}")
            report_left_out(self.manifest, console)
            report_skipped(self.manifest, console)
        if self.online and isinstance(self.labels, OnlineLabels):
            console.report(self.online.notes, self.online.warnings)
            probe(self.labels, self.loader.crops, console)

    def close(self) -> None:
        """Release the renderer of the online teacher's crops; the loader releases its own."""
        if isinstance(self.labels, OnlineLabels):
            self.labels.close()


def open_material(
    config: TrainConfig,
    ranks: Ranks,
    views: int | None,
    engine: Mapping[str, Any] | None = None,
    normal: Normal | None = None,
) -> Material:
    """Open the training data of a run.

    Args:
        config: of the run.
        ranks: the processes of the run.
        views: number of views to play; all when None.
        engine: engine with which the run started, if its labels are made online.
        normal: normalisation of fresh crops, if it is not the teacher's.

    Raises:
        GiftwrapError: when images, store, teacher and flags are incompatible.
    """
    if config.fresh:
        return open_fresh(config, ranks, views, engine, normal)
    if config.labels.source == "stored":
        return open_stored(config, ranks, views)
    return open_replayed(config, ranks, views, engine)


def open_replay(config: TrainConfig, ranks: Ranks, views: int | None) -> Replay:
    """The replay of a store's crops and labels in this process."""
    config.require_content(store_of(config).identity.content)
    return Replay(
        store_of(config),
        config.images,
        views=views,
        size=config.size,
        follow=config.follow,
        any_scale=config.any_scale,
        decoder=config.render.decoder,
        augmenter=config.render.augmenter,
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
        options=config.source,
        **order_of(config, ranks),
    )


def order_of(config: TrainConfig, ranks: Ranks) -> dict[str, Any]:
    """The arguments of a `Loader` that determine the batches and their order."""
    return {
        "batch_size": config.batch_size,
        "seed": config.seed,
        "view_order": config.play_order,
        "rank": ranks.rank,
        "world": ranks.world,
        "device": config.render.device,
    }


def store_of(config: TrainConfig) -> LabelStore:
    """The store of a run that has one."""
    assert config.store is not None  # noqa: S101  its flags were checked
    return open_store(config.store, config.store_cache, follow=config.follow)


def open_stored(config: TrainConfig, ranks: Ranks, views: int | None) -> Material:
    """Crops of a store with their stored labels."""
    replay = open_replay(config, ranks, views)
    identity = replay.store.identity
    return Material(
        loader=replay,
        columns=identity.columns,
        classes=identity.classes,
        label_columns=identity.label_columns,
        interpolation=replay.source.spec.interpolation,
        renderer=replay.source.renderer.id,
        setting=Setting.of(identity, config.student, config.epochs, config.size),
        made_of={"store": {"identity": identity.to_json(), "views": replay.order.views}},
        store=identity,
    )


def crops_of(config: TrainConfig, store: LabelStore, images: Path, views: int | None) -> ReplayedCrops:
    """The crops of a store, replayed from its images."""
    crops, _ = open_crops(
        store,
        images,
        views=views,
        size=config.size,
        **config.render.arguments,
        options=config.source,
    )
    return crops


def open_replayed(config: TrainConfig, ranks: Ranks, views: int | None, engine: Mapping[str, Any] | None) -> Material:
    """Crops of a store with online labels, or without labels."""
    crops = crops_of(config, store_of(config), config.images, views)
    source, identity = crops.source, crops.source.store.identity
    spec = PlanSpec.from_json(identity.require("plan"))
    found = Found.hard(identity.classes)
    if config.labels.source == "online":
        shown = Shown(classes=identity.classes, spec=spec, normalisation=(crops.mean, crops.std))
        found = Found.by(load_online(config, shown, ranks.world, engine), exact=config.labels.exact)
    crops.targets = np.array(found.label_columns, np.int64)[source.store.targets]
    labels = found.labels_of(config, crops, source.manifest, spec, source.renderer)
    return Material(
        loader=Loader(crops, labels, **order_of(config, ranks)),
        columns=found.columns,
        classes=identity.classes,
        label_columns=found.label_columns,
        interpolation=spec.interpolation,
        renderer=source.renderer.id,
        setting=Setting.of(identity, config.student, config.epochs, config.size),
        made_of={"store": {"identity": identity.to_json(), "views": crops.views}, **found.made_of},
        store=identity,
        online=found.online,
        labels=labels,
    )


def open_fresh(
    config: TrainConfig,
    ranks: Ranks,
    views: int | None,
    engine: Mapping[str, Any] | None,
    normal: Normal | None = None,
) -> Material:
    """Crops of a plan with image labels, online labels, or without labels."""
    manifest, spec, found = labelled(config, ranks, engine, normal)
    renderer = make_renderer(manifest, spec, **config.render.arguments)
    mean, std = normal or (found.mean, found.std)
    crops = FreshCrops(manifest, spec, renderer, mean=mean, std=std, label_columns=found.label_columns, views=views)
    labels = found.labels_of(config, crops, manifest, spec, renderer)
    return Material(
        loader=Loader(crops, labels, **order_of(config, ranks)),
        columns=found.columns,
        classes=manifest.classes,
        label_columns=found.label_columns,
        interpolation=spec.interpolation,
        renderer=renderer.id,
        setting=setting_of(config, manifest, spec),
        made_of={"crops": described(manifest, crops, spec), **found.made_of},
        manifest=manifest,
        online=found.online,
        labels=labels,
    )


def labelled(
    config: TrainConfig, ranks: Ranks, engine: Mapping[str, Any] | None, normal: Normal | None
) -> tuple[Manifest, PlanSpec, Found]:
    """The images, the plan and the labels of fresh crops."""
    if config.labels.source == "image":
        store = store_of(config)
        manifest = open_images(store, config.images, options=config.source)
        config.require_content(store.identity.content)
        if config.recipe and hasattr(recipe_of(config.recipe), "fresh"):  # its store of image labels is made by `build`
            require_store(config.recipe, store.identity, config.student)
        spec, found = config.plan(config.size or store.identity.size), Found.of_images(store, config.labels.view)
    else:
        manifest = scan(
            config.images,
            class_order=config.class_order,
            options=config.source,
            cache=config.run / TRAIN_CACHE,
            skip_broken=config.skip_broken,
        )
        spec = config.plan(config.size or 0)
        found = Found.hard(manifest.classes, config.teacher.mean, config.teacher.std)
        if config.labels.source == "online":
            shown = Shown(classes=manifest.classes, spec=spec, normalisation=normal)
            found = Found.by(load_online(config, shown, ranks.world, engine), exact=config.labels.exact)
    return manifest, spec, found


def setting_of(config: TrainConfig, manifest: Manifest, spec: PlanSpec) -> Setting:
    """The inputs of a recipe's formulas, for fresh crops."""
    return Setting(
        images=listed(len(manifest), manifest.skipped),
        classes=len(manifest.classes),
        size=spec.size,
        student=config.student,
        teacher=next(iter(config.teacher.names), config.student),
        epochs=config.epochs,
    )


def described(manifest: Manifest, crops: FreshCrops, spec: PlanSpec) -> dict[str, Json]:
    """Everything that determines fresh crops, for the description of a run."""
    return {
        "plan": spec.to_json(),
        "views": crops.views,
        "images": len(manifest),
        "classes": [*manifest.classes],
        "skipped": [*manifest.skipped],
        "manifest": manifest.digest,
        "mean": [*crops.mean],
        "std": [*crops.std],
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class Found:
    """The origin of labels that are not stored for each crop, and their columns.

    Attributes:
        columns: C.
        label_columns: the label column of each class.
        mean: channel means of fresh crops' normalisation.
        std: channel standard deviations of fresh crops' normalisation.
        made_of: everything that determines the labels, for the description of a run.
        images: the label of each image, float32 ``[N, C]``.
        online: the teacher that labels crops during training.
    """

    columns: int
    label_columns: tuple[int, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    made_of: Mapping[str, Json]
    images: Tensor | None = None
    online: Online | None = None

    @classmethod
    def hard(
        cls, classes: Sequence[str], mean: tuple[float, ...] | None = None, std: tuple[float, ...] | None = None
    ) -> Found:
        """No labels: column k is class k."""
        require_normalisation(mean or (), std or ())
        columns = tuple(range(len(classes)))
        made: dict[str, Json] = {"source": "none", "columns": len(classes), "class_columns": []}
        return cls(
            columns=len(classes),
            label_columns=columns,
            mean=mean or IMAGENET_MEAN,
            std=std or IMAGENET_STD,
            made_of={"labels": made},
        )

    @classmethod
    def by(cls, online: Online, *, exact: bool) -> Found:
        """Labels of a teacher."""
        teacher = online.teacher
        return cls(
            columns=teacher.columns,
            label_columns=teacher.class_columns or tuple(range(teacher.columns)),
            mean=teacher.mean,
            std=teacher.std,
            made_of=online.made_of(exact=exact),
            online=online,
        )

    @classmethod
    def of_images(cls, store: LabelStore, view: int | None) -> Found:
        """Labels of a store's images."""
        identity = store.identity
        images = logits_of_images(store, view)
        teacher: Any = identity.require("teacher")
        made: dict[str, Json] = {
            "source": "image",
            "store": identity.to_json(),
            "view": view or 0,
            "columns": identity.columns,
            "class_columns": [*identity.class_columns],
        }
        return cls(
            columns=identity.columns,
            label_columns=identity.label_columns,
            mean=tuple(teacher["mean"]),
            std=tuple(teacher["std"]),
            made_of={"labels": made},
            images=images,
        )

    def labels_of(
        self, config: TrainConfig, crops: CropSource, manifest: Manifest, spec: PlanSpec, renderer: Renderer
    ) -> ImageLabels | OnlineLabels | NoLabels:
        """The labels of crops.

        Args:
            config: of the run.
            crops: of the run.
            manifest: their images.
            spec: their plan, at the side that the rows are drawn for.
            renderer: what renders them.
        """
        if self.images is not None:
            return ImageLabels(self.images, crops.group, crops.drawn_size)
        if self.online is None:
            return NoLabels()
        return labels_of(config, self.online, crops, manifest, spec, renderer.id)
