"""The teacher of a synthesis, as its flags name it; on all ranks with the engine of the first."""

from __future__ import annotations

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.build.defaults import settle_teacher
from pipeline.config import TeacherOptions, json_object, require_labels
from pipeline.device.memory import keep_freed_memory
from pipeline.synthesis.method import Setting
from pipeline.teacher.engine.batches import Workload
from pipeline.teacher.engine.spec import TeacherSpec
from pipeline.teacher.labeller import Labeller, load_labeller
from pipeline.teacher.teacher import make_teacher


def has_teacher(options: TeacherOptions) -> bool:
    """Whether the flags name a teacher or a labeller."""
    return bool(options.names or options.weights or options.labeller)


def load_teacher(
    setting: Setting,
    size: int,
    columns: tuple[str, ...] = (),
    *,
    pad_to: int | None = None,
    block: int | None = None,
) -> Labeller:
    """The teacher, or the user's labeller, for crops of a given size.

    Args:
        setting: of the method.
        size: side of the crops in pixels.
        columns: of the crops' rows.
        pad_to: side that normalised crops are padded to before the network has them; None: they are not.
        block: crops that are labelled together, by which the batch of a GPU is chosen where the flags have none.

    Raises:
        InputError: none is named, or it does not fit the classes.
    """
    options, classes = setting.config.teacher, setting.manifest.classes
    require_labels(options)
    keep_freed_memory()
    if options.labeller is not None:
        if pad_to is not None:
            raise InputError(
                f"--labeller {options.labeller}: expected a teacher, whose crops can be padded after they are "
                f"normalised; give --teacher and --weights, or --fit resize"
            )
        args = json_object("--labeller-args", options.labeller_args or "{}")
        return load_labeller(options.labeller, args, size, classes, columns)
    work = Workload(crop_columns=columns, block=None if block is None else lambda _columns: block)
    spec = teacher_spec(setting, pad_to or size)
    teacher = make_teacher(spec, size=size, classes=classes, work=work, pad_to=pad_to)
    setting.console.report(teacher.notes, teacher.warnings)
    return teacher


def teacher_spec(setting: Setting, size: int) -> TeacherSpec:
    """The teacher that the flags name, with what its weights were trained with where flags are left out."""
    config = setting.config
    found = settle_teacher(config.teacher, size, "bilinear")
    setting.console.report(found.notes, found.warnings)
    spec = found.teacher.spec(config.engine, config.render)
    return spec if setting.engine is None else spec.like(setting.engine)


def described(labeller: Labeller) -> dict[str, Json]:
    """A teacher as a method states it: its identity, and under ``engine`` what runs it."""
    return {**labeller.identity, "engine": dict(labeller.engine)}
