"""Labels that the rate-distortion claim is measured on: stores of them, and what contenders may learn from."""

from __future__ import annotations

import contextlib
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.commands import command
from benchmarks.drawn import Drawn
from benchmarks.studies.study import TEACHER
from labelstore import LabelStore
from labelstore.encodings import Pairs
from labelstore.encodings.fitting import Sample
from labelstore.errors import InputError
from labelstore.operations.convert import convert
from labelstore.spec import Identity
from pipeline.build.calibrate import MEAN_CROPS, rows_to_fit

KINDS = ("unmixed", "CutMix")  # of crops: at 1, those that are mixed
MEASURED_ROWS = 4_096  # at least, in whole views
LEARN_VIEWS = 15  # to fit to and to search with
SPREAD = 0.8  # of drawn labels: means alone are about as good as with real ones

Float32Array = npt.NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Case:
    """Labels of one kind of crops.

    Attributes:
        mixed: whether they are CutMix crops.
        identity: of the float16 store that they come from.
        rows: of the first v views: what all contenders are measured on ``[v N]``.
        fitted: rows of other views, that contenders are fitted to.
        search: rows of yet other views, that steps are chosen by.
        means: mean labels of all images, from unmixed crops of yet other views ``[N, C]``.
        targets: label column of each image's class ``[N]``.
    """

    mixed: bool
    identity: Identity
    rows: Sample
    fitted: Sample
    search: Sample
    means: Float32Array
    targets: npt.NDArray[np.int64]

    def predicted(self, pairs: Pairs) -> Float32Array:
        """The mean labels of what crops show ``[n, C]``."""
        weights = pairs.weights[:, None].astype(np.float32)
        mixed: Float32Array = weights * self.means[pairs.images] + (1 - weights) * self.means[pairs.partners]
        return mixed


def measured_views(images: int) -> int:
    """Views that contenders are measured on, however few of them a block holds."""
    return -(-MEASURED_ROWS // images)


def views_for(images: int, *, mixed: bool) -> int:
    """Views of a float16 store: the first to measure on, others for means and to learn from."""
    return measured_views(images) + LEARN_VIEWS + (0 if mixed else MEAN_CROPS)


class Real:
    """Stores of an ImageNet classifier's labels, built as users build them, or as an earlier run left them."""

    labels = "those of MobileNetV2 for 224 px crops of 1,000 ImageNet photographs"
    how = "built with the teacher"

    def __init__(self, data: Path, folder: Path) -> None:
        self._folder = folder
        images, weights = data / "imagenet-samples", data / "models" / "imagenet-mobilenetv2_100.fp16.safetensors"
        if missing := [str(path) for path in (images, weights) if not path.exists()]:
            raise InputError(f"GIFTWRAP_DATA: expected {' and '.join(missing)}; unset it to measure drawn labels")
        self._flags = ("--images", images, *TEACHER, "--weights", weights, "--size", 224, "--dtype", "bfloat16")

    def source(self, *, mixed: bool) -> LabelStore:
        """The float16 labels of one kind of crops."""
        return self._build(KINDS[mixed], mixed, views_for(1_000, mixed=mixed), "float16")

    def transform(self, source: LabelStore, fidelity: float) -> LabelStore:
        """The first crops of it in a transform, in blocks of the same shape."""
        block, name = source.identity.block.views, f"{source.path.name}-{fidelity}"
        views = -(-measured_views(source.identity.images) // block) * block
        return self._build(name, source.identity.group > 1, views, "transform", "--fidelity", fidelity)

    def _build(self, name: str, mixed: bool, views: int, encoding: str, *flags: object) -> LabelStore:
        mix, store = ("--mix", "cutmix") if mixed else (), self._folder / name
        with contextlib.redirect_stdout(sys.stderr):
            command(
                "pipeline", "build", *self._flags, *mix, "--views", views, "--encoding", encoding, *flags,
                "--store", store,
            )  # fmt: skip
        return LabelStore.open(store)


class Synthetic:
    """Stores of drawn labels, and what they are converted to."""

    labels = "drawn, with statistics like a classifier's; set GIFTWRAP_DATA for real ones"
    how = "converted from float16"

    def __init__(self, folder: Path, *, quick: bool) -> None:
        self._folder, self._shape = folder, (256, 64) if quick else (1_000, 1_000)

    def source(self, *, mixed: bool) -> LabelStore:
        """The float16 labels of one kind of crops."""
        views = views_for(self._shape[0], mixed=mixed)
        drawn = Drawn(*self._shape, views, group=128 if mixed else 1, spread=SPREAD)
        return drawn.store(self._folder / KINDS[mixed], {"name": "float16"})

    def transform(self, source: LabelStore, fidelity: float) -> LabelStore:
        """The same labels in a transform."""
        path = self._folder / f"{source.path.name}-{fidelity}"
        return convert(source, path, {"name": "transform", "fidelity": fidelity})


def case_of(source: LabelStore, unmixed: LabelStore, *, mixed: bool) -> Case:
    """The labels of a float16 store, shared out; mean labels come from the store of unmixed crops."""
    measured = measured_views(source.identity.images)
    for_means = range(measured, measured + MEAN_CROPS)
    first = measured if mixed else for_means.stop
    to_learn = read(source, range(first, first + LEARN_VIEWS))
    fitted, searched = rows_to_fit(source.identity.images, source.identity.columns)
    searched = min(searched, len(to_learn.logits) // 5)
    edge, stop = len(to_learn.logits) - searched, len(to_learn.logits)
    head, tail = slice(max(edge - fitted, 0), edge), slice(edge, stop)
    labels = read(unmixed, for_means)
    means = np.zeros((source.identity.images, source.identity.columns))
    np.add.at(means, labels.pairs.images, labels.logits)
    return Case(
        mixed=mixed,
        identity=source.identity,
        rows=read(source, range(measured)),
        fitted=Sample(to_learn.logits[head], to_learn.pairs.take(head)),
        search=Sample(to_learn.logits[tail], to_learn.pairs.take(tail)),
        means=(means / MEAN_CROPS).astype(np.float32),
        targets=source.target_columns,
    )


def read(store: LabelStore, views: range) -> Sample:
    """All labels of some views, one after another."""
    logits = [store.read(view, slice(None)).logits for view in views]
    pairs = [store.pairs(view, slice(None)) for view in views]
    return Sample(np.concatenate(logits), Pairs(*map(np.concatenate, zip(*pairs, strict=True))))
