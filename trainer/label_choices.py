"""The flags that choose the labels of a run, and checks of which flags go together."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from labelstore.command.flags import Named, flags_of
from labelstore.errors import InputError
from pipeline.config import OF_LABELLER, EngineOptions, TeacherOptions, require_one_labeller
from pipeline.plan.spec import CropOptions
from trainer.choices import LossSpec

LabelsName = Literal["stored", "image", "online", "none"]
# Losses on raw logits, which an average of probabilities does not have.
ON_LOGITS = ("gift", "cosine", "mse", "mse+ce")


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelOptions:
    """Where labels come from."""

    source: Annotated[LabelsName, Named("labels")] = "stored"
    """Where labels come from. stored: one for each crop, from --store; image: one for each image, from a --store of one
    view; online: made during training by --teacher or --labeller; none: the classes only."""
    exact: bool = False
    """With --labels online: keep labels in float32 instead of rounding them to float16, as a float16 store does."""
    view: Annotated[int | None, Named("label-view")] = None
    """With --labels image: the view, counted from 0, whose labels are used; required if the store has several views."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OnlineTeacher(TeacherOptions):
    """The networks that label crops during training."""

    names: Annotated[tuple[str, ...], Named("teacher")] = ()
    """The network that labels, named as for build; several are averaged (weighted mean of their logits). `train` needs
    it with --labels online."""
    weights: tuple[str, ...] = ()
    """Weights of the teacher, one for each network, or several for one --teacher (an ensemble): a .safetensors or
    state-dict file, torchvision:IMAGENET1K_V1, timm:pretrained, or the folder of a projector."""
    size: Annotated[int | None, Named("teacher-size")] = None
    """Side of the teacher's crops in pixels, cut from the same boxes as the student's; the student's when left out."""


CROP_FLAGS = (*(field.name for field in fields(CropOptions)), "plan_seed", "class_order")
TEACHER_FLAGS = (*flags_of(OnlineTeacher), *(f"teacher_{field.name}" for field in fields(EngineOptions)))
NORMALISATION = ("mean", "std")  # also used by fresh crops without a teacher


def given(config: Flags, names: tuple[str, ...]) -> Iterator[str]:
    """The keys among ``names`` whose flags differ from their defaults."""
    flags = flags_of(type(config))
    for name in names:
        value: Any = config
        for field in flags[name].path:
            value = getattr(value, field)
        if value != flags[name].default:
            yield name


class Flags(Protocol):
    """The flags of `train` that crops and labels depend on; `trainer.config.TrainConfig` has them."""

    @property
    def labels(self) -> LabelOptions: ...  # noqa: D102
    @property
    def crops(self) -> CropOptions: ...  # noqa: D102
    @property
    def teacher(self) -> OnlineTeacher: ...  # noqa: D102
    @property
    def losses(self) -> tuple[LossSpec, ...]: ...  # noqa: D102
    @property
    def relabel(self) -> tuple[str, ...]: ...  # noqa: D102
    @property
    def store(self) -> Path | None: ...  # noqa: D102
    @property
    def size(self) -> int | None: ...  # noqa: D102
    @property
    def views(self) -> int | None: ...  # noqa: D102
    @property
    def view_order(self) -> str | None: ...  # noqa: D102
    @property
    def follow(self) -> bool: ...  # noqa: D102
    @property
    def fresh(self) -> bool: ...  # noqa: D102
    @property
    def draws_crops(self) -> bool: ...  # noqa: D102

    def plan(self, size: int) -> object: ...  # noqa: D102


def unused_flags(config: Flags) -> list[str]:
    """The flags of crops and labels that have no effect in a run, by key."""
    source = config.labels.source
    crops = () if config.fresh else ("class_order",) if config.draws_crops else CROP_FLAGS
    unused = [*crops, *(() if source == "online" else ("exact", *TEACHER_FLAGS))]
    if source == "online" and config.teacher.labeller:
        unused += [name for name in TEACHER_FLAGS if name.removeprefix("teacher_") not in OF_LABELLER]
    if config.fresh and source == "none":
        unused = [name for name in unused if name not in NORMALISATION]
    return [*unused, *(() if source == "image" else ("label_view",)), *(("labels",) if source == "stored" else ())]


def require_together(config: Flags) -> None:
    """Refuse flags of crops and labels that do not go together.

    Raises:
        InputError: names the flag, and what it needs.
    """
    source = config.labels.source
    if config.relabel and source == "none":
        raise InputError(
            f"--relabel {config.relabel[0]}: has no effect with --labels none, which has no labels; leave it out"
        )
    if config.store is None and source in ("stored", "image"):
        raise InputError(
            f"--labels {source}: needs --store, which has the labels; give it, or --labels online with --teacher and "
            f"--weights, or --labels none"
        )
    require_one_labeller(config)
    for name in given(config, tuple(unused_flags(config))):
        raise InputError(f"--{name.replace('_', '-')}: has no effect with {_cause(config, name)}; leave it out")
    teacher = config.teacher
    if source == "online" and teacher.labeller is None and not (teacher.names and teacher.weights):
        absent = " and ".join(flag for flag, value in _needed(teacher) if not value)
        raise InputError(f"--labels online: needs a teacher; give {absent}, or --labeller")
    for loss in config.losses:
        if source == "none" and loss.name != "ce" and ":" not in loss.name:
            raise InputError(f"--loss {loss.name}: needs labels, and --labels none has none; give --loss ce")
        if source == "image" and config.crops.mix != "none" and loss.name in ON_LOGITS:
            raise InputError(
                f"--loss {loss.name}: needs raw logits, and --labels image averages the probabilities of crops that "
                f"--mix {config.crops.mix} mixes; give kl, soft_ce or soft_ce+ce, or --mix none"
            )
    if config.fresh:
        _require_fresh(config)


def _needed(teacher: OnlineTeacher) -> tuple[tuple[str, tuple[str, ...]], ...]:
    return ("--teacher", teacher.names), ("--weights", teacher.weights)


def _cause(config: Flags, name: str) -> str:
    """The choice that makes a flag have no effect."""
    if name in CROP_FLAGS:
        return f"--labels {config.labels.source}, whose crops are those of --store"
    return f"--labels {config.labels.source}"


def _require_fresh(config: Flags) -> None:
    """Refuse flags that do not work with fresh crops."""
    if config.follow:
        raise InputError("--follow: plays the crops of a store that is being built; leave it out for fresh crops")
    if config.size is None and config.store is None:
        raise InputError("--size: fresh crops need a side in pixels; give --size")
    if config.view_order == "shuffle" and config.views is None:
        raise InputError(
            "--view-order shuffle: every epoch of fresh crops has a new view; leave it out, or give --views"
        )
    if config.size is not None:
        config.plan(config.size)
