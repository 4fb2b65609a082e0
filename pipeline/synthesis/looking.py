"""The teacher's agreement with images: with the source images before a set is made, then with the finished set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from labelstore.command.console import Console
from labelstore.spec import Json
from pipeline.images.manifest import Manifest, scan, with_classes
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from pipeline.replay.source import order_of
from pipeline.synthesis.config import require_size
from pipeline.synthesis.method import Setting
from pipeline.synthesis.scoring import scores_of
from pipeline.synthesis.teaching import has_teacher, load_teacher
from pipeline.teacher.class_order import Agreement, agreement
from pipeline.teacher.labeller import Labeller, label_crops

FIRST = 256  # real images by which the order of the classes is judged
WORST = 3  # classes that are named


class Looking:
    """A teacher that only evaluates images, without slow preparation."""

    def __init__(self, setting: Setting, *, quiet: bool) -> None:
        """Load the teacher that the flags name; ``quiet`` where its notes were printed before."""
        config = setting.config
        engine = replace(config.engine, compile="off", cuda_graph=False)
        console = Console(silent=True) if quiet else setting.console
        self._setting = replace(setting, config=replace(config, engine=engine), console=console, engine=None)
        self._size = require_size(config, "the teacher")
        self._teacher: Labeller = load_teacher(self._setting, self._size)
        self._columns = np.array(self._teacher.class_columns or range(self._teacher.columns))

    def logits(self, manifest: Manifest, images: npt.NDArray[np.int64], *, whole: bool) -> npt.NDArray[np.float32]:
        """Logits, float32 ``[n, C]``, of images centre fit, or of a random crop of each."""
        render, size, seed = self._setting.config.render, self._size, self._setting.config.seed
        spec = PlanSpec(size=size, seed=seed, crop="center", flip=0.0) if whole else PlanSpec(size=size, seed=seed)
        plan = Plan(spec, manifest.heights, manifest.widths)
        renderer = make_renderer(manifest, spec, **render.arguments)

        def parts() -> Iterator[npt.NDArray[np.float32]]:
            for start in range(0, len(images), self._teacher.batch):
                rows = plan.unmixed(0, images[start : start + self._teacher.batch])
                yield label_crops(self._teacher, renderer.render(rows), rows)

        with closing(renderer):
            return np.concatenate([*parts()])

    def agreement(self, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]) -> Agreement:
        """The agreement of the teacher's first choice with the target, for source images of the set."""
        return agreement(logits[:, self._columns], targets, self._setting.manifest.classes)

    def cross_entropies(
        self, logits: npt.NDArray[np.float32], targets: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        """Cross-entropy of each row with its target, over all columns, float64 ``[n]``."""
        return scores_of(torch.from_numpy(logits), targets, self._teacher.class_columns).losses


def look_first(setting: Setting, *, quiet: bool) -> None:
    """Report how often the teacher agrees with some of the real images; warn when that points to a mix-up."""
    manifest = setting.manifest
    if not has_teacher(setting.config.teacher) or not len(manifest):
        return
    images = np.unique(np.linspace(0, len(manifest) - 1, min(FIRST, len(manifest))).astype(np.int64))
    looking = Looking(setting, quiet=quiet)
    report = looking.agreement(looking.logits(manifest, images, whole=True), manifest.targets[images])
    setting.console.line(report.text)
    if report.warning:
        setting.console.warn(report.warning)


def look_at_set(setting: Setting) -> dict[str, Json]:
    """Evaluate a finished set with the teacher: agreement on whole images and on random crops, and cross-entropy.

    Returns:
        Nothing where the flags name no teacher.
    """
    if not has_teacher(setting.config.teacher):
        return {}
    names = [setting.manifest.classes[target] for target in setting.targets]
    manifest = with_classes(names, scan(setting.config.out, class_order=order_of(names), digests=False, decode=False))
    looking, images = Looking(setting, quiet=True), np.arange(len(manifest))
    targets = setting.targets[manifest.targets]
    whole = looking.logits(manifest, images, whole=True)
    crops = looking.logits(manifest, images, whole=False)
    classes = setting.manifest.classes
    losses = looking.cross_entropies(whole, targets)
    counts = np.maximum(np.bincount(targets, minlength=len(classes)), 1)
    means = np.bincount(targets, losses, minlength=len(classes)) / counts
    worst = sorted(setting.targets.tolist(), key=lambda target: -means[target])[:WORST]
    return {
        "teacher": {
            "agreement": round(looking.agreement(whole, targets).top1, 2),
            "agreement_on_crops": round(looking.agreement(crops, targets).top1, 2),
            "cross_entropy": round(float(losses.mean()), 4),
            "worst": {classes[target]: round(float(means[target]), 4) for target in worst},
        }
    }


def in_words(teacher: Mapping[str, Json]) -> str:
    """The teacher's agreement with a set, as text."""
    worst = teacher["worst"]
    assert isinstance(worst, dict)  # noqa: S101  for mypy: JSON
    named = ", ".join(f"{name} ({value:.2g})" for name, value in worst.items())
    return (
        f"the teacher agrees with the targets on {teacher['agreement']:.2f} % of the whole images and "
        f"{teacher['agreement_on_crops']:.2f} % of random crops; cross-entropy {teacher['cross_entropy']:.3f} on "
        f"average, highest in {named}"
    )
