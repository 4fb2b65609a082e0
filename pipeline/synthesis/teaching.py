"""The teacher of a synthesis, as its flags name it; on all ranks with the engine of the first."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from labelstore.spec import Json
from pipeline.build.defaults import settle_teacher
from pipeline.config import TeacherOptions, json_object, require_labels
from pipeline.synthesis.method import Setting
from pipeline.teacher.engine.batches import Workload
from pipeline.teacher.engine.spec import TeacherSpec
from pipeline.teacher.labeller import Labeller, load_labeller
from pipeline.teacher.teacher import make_teacher


def has_teacher(options: TeacherOptions) -> bool:
    """Whether the flags name a teacher or a labeller."""
    return bool(options.names or options.weights or options.labeller)


def load_teacher(setting: Setting, size: int, columns: tuple[str, ...] = ()) -> Labeller:
    """The teacher, or the labeller of one's own, for crops of a side.

    Args:
        setting: of the method.
        size: side of the crops in pixels.
        columns: of the crops' rows.

    Raises:
        InputError: none is named, or it does not fit the classes.
    """
    options, classes = setting.config.teacher, setting.manifest.classes
    require_labels(options)
    if options.labeller is not None:
        args = json_object("--labeller-args", options.labeller_args or "{}")
        return load_labeller(options.labeller, args, size, classes, columns)
    teacher = make_teacher(teacher_spec(setting, size), size=size, classes=classes, work=Workload(crop_columns=columns))
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


def cross_entropies(logits: npt.NDArray[np.float32], columns: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
    """Cross-entropy of logits ``[n, C]`` with one column each ``[n]``, float64 ``[n]``."""
    wide = logits.astype(np.float64)
    most = wide.max(axis=1)
    own = np.take_along_axis(wide, columns[:, None], axis=1)[:, 0]
    losses: npt.NDArray[np.float64] = np.log(np.exp(wide - most[:, None]).sum(axis=1)) + most - own
    return losses
