"""Labels made during training: a teacher labels each batch of crops, as a build would have stored them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.command.console import Console
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.build.defaults import settle_teacher
from pipeline.config import json_object
from pipeline.images.manifest import Manifest
from pipeline.plan.augment.sides import at_size
from pipeline.plan.plan import PlanSpec
from pipeline.render import Renderer, make_renderer
from pipeline.teacher.engine.batches import CPU_BATCH, GPU_BATCHES
from pipeline.teacher.engine.precision import precision
from pipeline.teacher.labeller import BrokenLogitsError, Labeller, load_labeller, started
from pipeline.teacher.teacher import Teacher, make_teacher
from trainer.config import TrainConfig
from trainer.crops import Crops, CropSource
from trainer.label_choices import OnlineTeacher
from trainer.labels import Request


class OnlineLabels:
    """Labels that a labeller makes during training.

    Args:
        labeller: makes the labels.
        drawn_size: side for which the rows of the crops were drawn.
        renderer: renders the crops at the labeller's size, if that is not the student's.
        exact: whether labels are not rounded to float16.
        any_scale: whether labels stay float16, as a store returns them with ``any_scale``.
    """

    def __init__(
        self,
        labeller: Labeller,
        drawn_size: int,
        renderer: Renderer | None = None,
        *,
        exact: bool = False,
        any_scale: bool = False,
    ) -> None:
        self.labeller = labeller
        self._drawn_size, self._renderer = drawn_size, renderer
        self._exact, self._any_scale = exact, any_scale

    def label(self, requests: Iterator[Request]) -> Callable[[Crops], Tensor]:  # noqa: ARG002
        """Label the crops of each request."""
        return self.of

    def of(self, crops: Crops) -> Tensor:
        """The labels of crops, ``[n, C]`` on their device.

        Raises:
            InputError: when a logit is NaN or infinite; names the image.
        """
        logits = self.logits(self.pixels(crops), crops.rows, crops.view)
        if self._exact:
            return logits
        return logits.half() if self._any_scale else logits.half().float()

    def pixels(self, crops: Crops) -> Tensor:
        """The crops at the labeller's size, uint8 ``[n, S, S, 3]``."""
        if self._renderer is None:
            return crops.pixels
        return self._renderer.render(at_size(crops.rows, self._drawn_size, self.labeller.size))

    def logits(self, pixels: Tensor, rows: CropRows, view: int) -> Tensor:
        """The logits of any number of crops, float32 ``[n, C]``, batch by batch."""
        batch = self.labeller.batch
        pieces = [slice(start, start + batch) for start in range(0, len(rows), batch)]
        begun = [started(self.labeller, pixels[piece], rows.take(piece)) for piece in pieces]
        found = []
        for piece, pending in zip(pieces, begun, strict=True):
            try:
                found.append(pending.result())
            except BrokenLogitsError as error:
                raise InputError(
                    f"logit of image {rows.image[piece][error.row]} in view {view}, class {error.column}: expected a "
                    f"number, found {error.value}; look at the teacher's weights, --teacher-dtype and --mean/--std"
                ) from error
        logits = torch.cat(found)  # a new tensor: autograd does not accept those of inference mode
        return logits.to(pixels.device)  # a user's labeller may return them on another device

    def slot_difference(self, crops: Crops) -> float:
        """The largest difference between logits of the same crop in different slots of a batch; 0 if they are equal.

        The crops are labelled in order, in reverse order, and the first half separately.
        """
        count = min(len(crops.rows), self.labeller.batch)
        pixels, rows = self.pixels(crops)[:count], crops.rows.take(slice(count))
        plain = self.logits(pixels, rows, crops.view)
        reverse = self.logits(pixels.flip(0), rows.take(np.arange(count)[::-1]), crops.view).flip(0)
        half = slice(-(-count // 2))
        alone = self.logits(pixels[half], rows.take(half), crops.view)
        return max(float((plain - reverse).abs().max()), float((plain[half] - alone).abs().max()))

    def close(self) -> None:
        """Release the renderer of the teacher's crops."""
        if self._renderer:
            self._renderer.close()


@dataclass(frozen=True, eq=False, kw_only=True)
class Online:
    """A teacher, or a user's labeller, that labels during training.

    Attributes:
        teacher: the networks, or the labeller.
        options: its flags, with all defaults resolved.
        notes: lines to print.
        warnings: what to check before trusting the labels.
    """

    teacher: Labeller
    options: OnlineTeacher
    notes: tuple[str, ...]
    warnings: tuple[str, ...]

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means of its normalisation."""
        return self.teacher.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel standard deviations of its normalisation."""
        return self.teacher.std

    def made_of(self, *, exact: bool) -> dict[str, Json]:
        """Everything that determines the labels, for the description of a run, except the number of threads."""
        engine = {name: value for name, value in self.teacher.engine.items() if name != "threads"}
        columns: list[Json] = [*self.teacher.class_columns]
        return {
            "labels": {
                "source": "online",
                "teacher": dict(self.teacher.identity),
                "columns": self.teacher.columns,
                "class_columns": columns,
                "exact": exact,
            },
            "engine": engine,
        }


@dataclass(frozen=True, kw_only=True)
class Shown:
    """The crops that a teacher labels.

    Attributes:
        classes: classes of the images, in target order.
        spec: the plan of the crops.
        normalisation: channel means and deviations for augmentations of normalised pixels; None for the teacher's.
    """

    classes: tuple[str, ...]
    spec: PlanSpec
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def load_online(config: TrainConfig, shown: Shown, world: int, engine: Mapping[str, Any] | None) -> Online:
    """The teacher of --labels online.

    Args:
        config: of the run.
        shown: the crops.
        world: number of processes between which a batch is divided.
        engine: engine with which the run started; its batch and layout are kept.

    Raises:
        InputError: when the teacher does not exist, has other classes, or cannot run with these flags.
    """
    size = config.teacher.size or shown.spec.size
    if config.teacher.labeller:
        return own_online(config, shown, config.teacher.labeller, size)
    settled = settle_teacher(config.teacher, size, shown.spec.interpolation)
    spec = settled.teacher.spec(config.engine, config.render)
    if engine:
        spec = spec.like(engine)
    spec = replace(spec, batch=spec.batch or batch_of(config, shown.spec.group, world))
    if size != shown.spec.size:
        spec = replace(spec, plan_size=shown.spec.size)
    if shown.normalisation not in (None, (spec.mean, spec.std)):
        spec = replace(spec, plan=shown.normalisation)
    teacher = make_teacher(spec, size=size, classes=shown.classes)
    made = note_on(config, shown, spec.name, teacher)
    products = "in TF32" if teacher.run.products == "tf32" else "in full"
    shared = [f"precision: float32 products of teacher and student {products}"] if teacher.device.type == "cuda" else []
    assert isinstance(settled.teacher, OnlineTeacher)  # noqa: S101  what was given, changed
    return Online(
        teacher=teacher,
        options=settled.teacher,
        notes=(*settled.notes, made, *shared, *teacher.notes),
        warnings=(*settled.warnings, *teacher.warnings),
    )


def own_online(config: TrainConfig, shown: Shown, place: str, size: int) -> Online:
    """Load the labeller of --labeller, for crops of ``size`` px; the other arguments are those of `load_online`."""
    args = json_object("--labeller-args", config.teacher.labeller_args or "{}")
    labeller = load_labeller(place, args, size, shown.classes, shown.spec.columns)
    note = note_on(config, shown, str(labeller.identity.get("name", place)), labeller)
    return Online(teacher=labeller, options=config.teacher, notes=(note,), warnings=())


def note_on(config: TrainConfig, shown: Shown, name: str, labeller: Labeller) -> str:
    """A line to print: the labeller, and how it labels."""
    how = "as they are made" if config.labels.exact else "rounded to float16"
    at = "" if labeller.size == shown.spec.size else f", of the same boxes at {labeller.size} px"
    return f"labels: online, by {name} in batches of {labeller.batch}{at}, {how}"


@contextmanager
def one_precision(labels: object) -> Iterator[None]:
    """Keep the precision of the online teacher set for the whole run, if there is one.

    torch has one setting per process. If the teacher set its precision in the loader's thread, batch by batch, it would
    change the student's kernels in the main thread, depending on timing.

    Args:
        labels: of the run.
    """
    teacher = labels.labeller if isinstance(labels, OnlineLabels) else None
    with precision(teacher.run.products) if isinstance(teacher, Teacher) else nullcontext():
        yield


def batch_of(config: TrainConfig, group: int, world: int) -> int:
    """Default batch of the teacher: the crops of one process in a step, at most the default of a build."""
    step = -(-config.batch_size // world)
    most = GPU_BATCHES[-1] if config.render.device.startswith("cuda") else CPU_BATCH
    return min(-(-step // group) * group, most)


def labels_of(
    config: TrainConfig,
    online: Online,
    crops: CropSource,
    manifest: Manifest,
    spec: PlanSpec,
    renderer: Mapping[str, Json],
) -> OnlineLabels:
    """The labels of crops.

    Args:
        config: of the run.
        online: the labeller.
        crops: of the run.
        manifest: their images.
        spec: their plan, at the size for which the rows were drawn.
        renderer: id of the renderer of the crops.
    """
    size, own = online.teacher.size, None
    if size != crops.size:
        own = make_renderer(manifest, spec.at_side(size), **config.render.like(renderer))
    return OnlineLabels(
        online.teacher,
        crops.drawn_size,
        own,
        exact=config.labels.exact,
        any_scale=config.any_scale,
    )


def probe(labels: OnlineLabels, crops: CropSource, console: Console) -> None:
    """Label the first crops in different slots of a batch, and print whether their labels are equal."""
    group = crops.group
    count = min(-(-labels.labeller.batch // group) * group, crops.images)
    positions = np.arange(count)
    rows = crops.rows(0, positions)
    difference = labels.slot_difference(Crops(0, positions, rows, crops.pixels(rows)))
    if difference:
        console.warn(
            f"labels: a label depends on the other crops of its batch, by {difference:.1e} at most: online labels "
            f"match stored ones up to this difference, not bit for bit"
        )
    else:
        console.line("labels: each is the same in every slot of the teacher's batch, bit for bit")
