"""Check that existing labels belong to these images: agreement with the class folders, and with a teacher."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from labelstore.command.console import Console
from labelstore.errors import MismatchError
from pipeline.adopt.blocks import first_crops
from pipeline.adopt.config import AdoptConfig
from pipeline.adopt.labels import MASKED, Labels, crop_columns
from pipeline.build.defaults import settle_teacher
from pipeline.config import EngineOptions, json_object
from pipeline.images.manifest import Manifest
from pipeline.plan.spec import PlanSpec
from pipeline.render import Renderer
from pipeline.replay.alike import Alike, known_alike
from pipeline.teacher.class_order import Agreement, agreement
from pipeline.teacher.labeller import Labeller, label_crops, load_labeller
from pipeline.teacher.teacher import make_teacher

SAMPLED = 1_024  # labels of each sampled view
TEACHER_CROPS = 64  # crops of each sampled view that the teacher labels again
TEACHER_BATCH = 64
ADVICE = (
    "the images are in another order than their labels (--sampler-seed, --order, --image-list), or the classes are "
    "(--class-order, --class-columns), or these are not the images that were labelled"
)

Part = tuple[int, int, int]
"""Consecutive positions: view, first position, and the one after the last."""


@dataclass(frozen=True, eq=False)
class Evidence:
    """How often sampled labels agree with the class folders of their images.

    Attributes:
        labels: the labels, in the order that agrees best.
        parts: the sampled positions.
        each: agreement of each sampled view, by its number.
        whole: agreement of all sampled views together.
    """

    labels: Labels
    parts: tuple[Part, ...]
    each: dict[int, Agreement]
    whole: Agreement

    @property
    def text(self) -> str:
        """One line for the console."""
        views = ", ".join(map(str, self.each))
        return (
            f"the labels agree with the folders on {self.whole.top1:.2f} % of {self.whole.rows:,} crops of views "
            f"{views} (chance {self.whole.chance:.2f} %)"
        )

    def require(self, config: AdoptConfig) -> None:
        """Refuse labels that agree hardly more often than chance.

        Raises:
            MismatchError: names the view, and the flags that may be wrong.
        """
        poor = [view for view, found in self.each.items() if found.warning]
        if not poor and not self.whole.warning:
            return
        worst = self.each[poor[0]] if poor else self.whole
        where = f"view {poor[0]}" if poor else "all of them"
        raise MismatchError(
            f"{config.labels}: expected labels of these images, found that those of {where} agree with the folders on "
            f"{worst.top1:.2f} % of {worst.rows:,} crops, where guessing gives {worst.chance:.2f} %: {ADVICE}; nothing "
            f"was written"
        )


def agreeing(each: Sequence[Labels], manifest: Manifest, columns: Sequence[int]) -> Evidence:
    """Choose the order of the labels that agrees best with the class folders.

    The target of a mixed crop is that of the image with most of its pixels.

    Args:
        each: the same labels in several orders.
        manifest: the images.
        columns: column of each class in a label.
    """
    found = [_agreement_of(labels, manifest, list(columns)) for labels in each]
    return max(found, key=lambda evidence: evidence.whole.top1)


def _agreement_of(labels: Labels, manifest: Manifest, columns: list[int]) -> Evidence:
    parts = tuple(parts_of(labels))
    logits, targets, places = [], [], []
    for view, start, stop in parts:
        shown = labels.shown(view, start, stop)
        logits.append(shown.logits[:, columns].astype(np.float32))
        targets.append(manifest.targets[shown.mainly])
        places.append(view)
    each = {}
    for view in dict.fromkeys(places):
        mine = [at for at, place in enumerate(places) if place == view]
        each[view] = agreement(
            np.concatenate([logits[at] for at in mine]),
            np.concatenate([targets[at] for at in mine]),
            manifest.classes,
        )
    whole = agreement(np.concatenate(logits), np.concatenate(targets), manifest.classes)
    return Evidence(labels, parts, each, whole)


def parts_of(labels: Labels) -> list[Part]:
    """The positions to sample: groups spread over the first, second, middle and last view."""
    group = labels.group if labels.group > 1 else min(SAMPLED, labels.images)
    groups = -(-labels.images // group)
    chosen = np.unique(np.linspace(0, groups - 1, min(groups, -(-SAMPLED // group))).astype(int)).tolist()
    views = dict.fromkeys(view for view in (0, 1, labels.views // 2, labels.views - 1) if view < labels.views)
    return [(view, at * group, min((at + 1) * group, labels.images)) for view in views for at in chosen]


def teacher_of(config: AdoptConfig, manifest: Manifest, console: Console) -> Labeller | None:
    """The teacher or labeller of the flags; None without one."""
    given = config.teacher
    if given.labeller is not None:
        args = json_object("--labeller-args", given.labeller_args or "{}")
        return load_labeller(given.labeller, args, config.size, manifest.classes, crop_columns("none"))
    if not given.names:
        return None
    settled = settle_teacher(given, config.size, config.interpolation or "bilinear")
    console.report(settled.notes, settled.warnings)
    spec = settled.teacher.spec(EngineOptions(batch=TEACHER_BATCH), config.render)
    teacher = make_teacher(spec, size=config.size, classes=manifest.classes)
    console.report(teacher.notes, teacher.warnings)
    return teacher


def require_same_teacher(found: Evidence, labeller: Labeller, spec: PlanSpec, renderer: Renderer) -> str:
    """Render some sampled crops, label them again and compare; returns a line for the console.

    Raises:
        MismatchError: the teacher gives other labels.
    """
    labels = found.labels
    first_parts: dict[int, Part] = {}  # of each view
    for part in found.parts:
        first_parts.setdefault(part[0], part)
    stored, made = [], []
    for view, start, stop in first_parts.values():
        crops = labels.crops(view, start, stop)
        count = min(TEACHER_CROPS, len(crops.rows))
        pixels = first_crops(renderer, crops.rows, spec.group, count)
        made.append(label_crops(labeller, pixels, crops.rows.take(slice(count))))
        stored.append(crops.logits[:count].astype(np.float32))
    theirs, ours = np.concatenate(stored), np.concatenate(made)
    alike = Alike.of(theirs, ours) if labels.content == "logits" else known_alike(theirs, ours, MASKED)
    if not alike.ok:
        raise MismatchError(
            f"another teacher, or other crops: {alike.text}; give the teacher that made the labels (--teacher, "
            "--weights, --mean, --std), the --size and --interpolation of its crops, or leave --teacher out; nothing "
            "was written"
        )
    return f"teacher: {alike.text}"
