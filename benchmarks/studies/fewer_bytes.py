"""What would make a label of 1,000 columns smaller at fidelity 0.95: each idea by itself, on labels of a real teacher.

    GIFTWRAP_DATA=... python -m benchmarks.studies.fewer_bytes --out DIR

Bytes, fidelity, KL and top-1 agreement of MobileNetV2's labels of 224 px crops of 1,000 photographs, unmixed and
CutMix. The float16 stores of the rate-distortion claim are taken from ``DIR/stores``, or built there (a quarter of an
hour on two cores). Every idea is searched to fidelity 0.95 on the rows it is measured on. ``DIR/fewer-bytes.jsonl`` has
a line an idea, ``fewer-bytes.md`` the table; ideas that are there already are not tried again.

``bytes`` are PCodec's and 0.45 for scales; ``entropy`` is that of each component by itself; ``contexts`` what a model
fitted to other rows needs, where codes before are known (`benchmarks.studies.fewer_bytes_context`). ``side`` is of a
label of a set with 300 views: means and calibration crops, by entropy.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.studies import fewer_bytes_context as context
from benchmarks.studies.fewer_bytes_model import (
    Coded,
    Predict,
    Problem,
    Settings,
    entropy_of,
    make_problem,
    packed_bytes,
    quality_of,
    search,
)
from benchmarks.studies.fewer_bytes_predict import (
    Known,
    combined,
    fitted_sum,
    largest_left,
    patches,
    quantised_means,
    weights,
)
from benchmarks.studies.fewer_bytes_table import TITLE, sections
from benchmarks.studies.ledger import Ledger, Recorded
from benchmarks.studies.rate_labels import KINDS, Real
from benchmarks.studies.tables import write_tables
from labelstore import LabelStore
from labelstore.encodings.base import Pairs
from labelstore.spec import Json

MEASURED, FITTED = 3, 9  # views
FIRST_KNOWN, KNOWN = 5, 16
TODAY = 480  # components that means are stored in, at fidelity 0.95
VIEWS = 300
SCALE = 0.45  # bytes of a label's scale
NAME = "fewer-bytes"
PLAIN = Settings()

Float32Array = npt.NDArray[np.float32]
Float64Array = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Trial(Recorded):
    """An idea on labels of a kind.

    Attributes:
        kind: of crops: unmixed or CutMix.
        idea: its name.
    """

    kind: str
    idea: str

    @property
    def name(self) -> str:
        """In words; unique in the study."""
        return f"{self.kind}: {self.idea}"


@dataclass(frozen=True, eq=False)
class Crops:
    """Crops of some views, one view after another, ``[n]``.

    Attributes:
        logits: float32 ``[n, C]``.
        pairs: what they show.
        boxes: left, top, right, bottom, as parts of the image's sides ``[n, 4]``.
        flipped: left to right.
        partner: place of the other crop, itself where nothing is mixed.
        cut: rectangle that is filled from it, as parts of the crop's sides ``[n, 4]``.
    """

    logits: Float32Array
    pairs: Pairs
    boxes: Float64Array
    flipped: npt.NDArray[np.bool_]
    partner: npt.NDArray[np.int64]
    cut: Float64Array


def crops_of(store: LabelStore, views: range, sides: Float64Array) -> Crops:
    """Crops of some views of a store; ``sides`` are width and height of its images ``[N, 2]``."""
    parts = []
    for place, view in enumerate(views):
        rows, pairs = store.rows(view, slice(None)), store.pairs(view, slice(None))
        columns = dict(zip(rows.names, rows.values.astype(np.float64), strict=True))
        width, height = sides[pairs.images].T
        left, top = columns["left"] / width, columns["top"] / height
        box = np.stack([left, top, left + columns["width"] / width, top + columns["height"] / height], axis=1)
        count = len(pairs.images)
        here = np.arange(count)
        partner, cut = here, np.zeros((count, 4))
        if "partner" in columns:
            group, size = store.identity.group, store.identity.size
            partner = here // group * group + columns["partner"].astype(np.int64)
            low = np.stack([columns["mix_left"], columns["mix_top"]], axis=1)
            extent = np.stack([columns["mix_width"], columns["mix_height"]], axis=1)
            cut = np.concatenate([low, low + extent], axis=1) / size
        logits = store.read(view, slice(None)).logits.astype(np.float32)
        flipped = (columns["bits"].astype(np.int64) & 1).astype(np.bool_)
        parts.append((logits, pairs, box, flipped, partner + place * count, cut))
    return Crops(
        np.concatenate([part[0] for part in parts]),
        Pairs(*(np.concatenate(column) for column in zip(*(part[1] for part in parts), strict=True))),
        np.concatenate([part[2] for part in parts]),
        np.concatenate([part[3] for part in parts]),
        np.concatenate([part[4] for part in parts]),
        np.concatenate([part[5] for part in parts]),
    )


@dataclass(eq=False)
class Lab:
    """Labels of one kind, and predictions of them; those that take long are kept.

    Attributes:
        problem: in the basis of what means leave; ideas with another prediction have their own.
        known: labelled crops of every image, in logits.
        parts: fitted and measured crops.
    """

    known: Known
    parts: tuple[Crops, Crops]
    targets: npt.NDArray[np.int64]
    _problems: dict[str, Problem] = field(default_factory=dict)

    def shares(self, part: Crops, count: int, where: str = "crop") -> Float32Array:
        """Weights of the first known crops for crops, or for the rectangle that ``where`` names, ``[n, m]``."""
        boxes = part.boxes
        if where == "patch":  # of the partner's crop: what is filled from this one, seen from the other
            cut = np.empty_like(part.cut)
            cut[part.partner] = part.cut
            boxes = patches(boxes, part.flipped, cut)
        if where == "rest":
            boxes = patches(boxes, part.flipped, largest_left(part.cut))
        return weights(self.known.boxes[:, :count], boxes, part.pairs.images)

    def problem(self, name: str, predicted: Callable[[Crops], Float32Array], images: slice | None = None) -> Problem:
        """Labels in the basis of what a prediction leaves."""
        key = f"{name}, {images}"
        if key not in self._problems:
            self._problems.clear()  # one at a time: 100 MB each
            fitted, measured = self.parts
            chosen = None if images is None else np.isin(fitted.pairs.images, np.arange(len(self.targets))[images])
            self._problems[key] = make_problem(
                (fitted.logits, fitted.pairs),
                (measured.logits, measured.pairs),
                predicted(fitted),
                self.targets,
                chosen,
            )
        return self._problems[key]


def mixed(part: Crops, own: Float32Array) -> Float32Array:
    """Predictions of crops ``[n, C]``, mixed by area."""
    if (part.pairs.weights == 1).all():
        return own
    share = part.pairs.weights[:, None].astype(np.float32)
    return share * own + (1 - share) * own[part.partner]


def of_means(
    lab: Lab, finer: int, components: int | None = None, images: slice | None = None
) -> tuple[Problem, Predict]:
    """Prediction by mean labels, stored ``finer`` than the step, of the first components."""
    mean = lab.known.values[:KNOWN].mean(axis=0)
    problem = lab.problem("means", lambda part: mixed(part, mean[part.pairs.images]), images)
    rotated = mean @ problem.basis.T

    def predict(step: float) -> tuple[Float32Array, Float32Array, float]:
        kept, size = quantised_means(rotated, step / finer, components)
        ours, theirs = (mixed(part, kept[part.pairs.images]) for part in lab.parts)
        return ours, theirs, size

    return problem, predict


def by_area(lab: Lab) -> tuple[Problem, Predict]:
    """A regression for each component on the mean label and the logarithm of the crop's area, squared too."""
    problem, plain = of_means(lab, 8)
    logs = [np.log(np.prod(part.boxes[:, 2:] - part.boxes[:, :2], axis=1)).astype(np.float32) for part in lab.parts]
    powers = [np.stack([np.ones_like(each), each, each**2], axis=1)[..., None] for each in logs]

    def predict(step: float) -> tuple[Float32Array, Float32Array, float]:
        ours, theirs, size = plain(step)
        terms = [(ours * powers[0][:, k], theirs * powers[1][:, k]) for k in range(3)]
        flat = [(np.ones_like(ours) * powers[0][:, k], np.ones_like(theirs) * powers[1][:, k]) for k in range(3)]
        return (*fitted_sum([*terms, *flat], problem.fitted.values), size)

    return problem, predict


def of_crops(lab: Lab, count: int, coarse: float, images: slice | None = None) -> tuple[Problem, Predict]:
    """Prediction by known crops, weighted by overlap; stored in codes of ``coarse`` steps, exact ones at 0."""
    shares = [lab.shares(part, count) for part in lab.parts]

    def exact(fitted: Crops) -> Float32Array:
        return mixed(fitted, combined(lab.known.values[:count], shares[0], fitted.pairs.images))

    problem = lab.problem(f"{count} crops", exact, images)
    known = Known(values=lab.known.values[:count] @ problem.basis.T, boxes=lab.known.boxes[:, :count])

    def predict(step: float) -> tuple[Float32Array, Float32Array, float]:
        values, size = known.stored(coarse * step) if coarse else (known.values, 0.0)
        own = [combined(values, share, part.pairs.images) for share, part in zip(shares, lab.parts, strict=True)]
        ours, theirs = (mixed(part, each) for part, each in zip(lab.parts, own, strict=True))
        return ours, theirs, size

    return problem, predict


def of_patches(lab: Lab, coarse: float) -> tuple[Problem, Predict]:
    """CutMix: what each of the two crops shows is predicted too, and all of it weighted by component and by area."""
    problem, _ = of_crops(lab, KNOWN, coarse)
    known = Known(values=lab.known.values[:KNOWN] @ problem.basis.T, boxes=lab.known.boxes[:, :KNOWN])
    shares = [[lab.shares(part, KNOWN, where) for where in ("crop", "rest", "patch")] for part in lab.parts]

    def terms(part: Crops, each: list[Float32Array], values: Float32Array) -> Iterator[Float32Array]:
        crop, rest, patch = (combined(values, share, part.pairs.images) for share in each)
        own = part.pairs.weights[:, None].astype(np.float32)
        for weight, whole, shown in ((own, crop, rest), (1 - own, crop[part.partner], patch[part.partner])):
            yield from (weight * whole, weight**2 * whole, weight * shown, weight**2 * shown)
        yield np.ones_like(crop)
        yield own * np.ones_like(crop)

    def predict(step: float) -> tuple[Float32Array, Float32Array, float]:
        values, size = known.stored(coarse * step)
        each = [terms(part, share, values) for part, share in zip(lab.parts, shares, strict=True)]
        return (*fitted_sum(list(zip(*each, strict=True)), problem.fitted.values), size)

    return problem, predict


@dataclass(frozen=True)
class Idea:
    """One line of the table: what is tried, how predictions are made, and how codes."""

    name: str
    make: Callable[[Lab], tuple[Problem, Predict]]
    settings: Settings = PLAIN
    only_mixed: bool = False


def fine(lab: Lab) -> tuple[Problem, Predict]:
    """Means in an eighth of the step."""
    return of_means(lab, 8)


# In an order in which a basis is fitted once for neighbours that share it.
IDEAS = (
    Idea("today: means in 1/2 step", lambda lab: of_means(lab, 2, TODAY)),
    Idea("means in 1/2 step, all components", lambda lab: of_means(lab, 2)),
    Idea("means in 1/4 step", lambda lab: of_means(lab, 4)),
    Idea("means in 1/8 step", fine),
    Idea("means in 1/8 step, 480 components", lambda lab: of_means(lab, 8, TODAY)),
    Idea("means in 1/16 step", lambda lab: of_means(lab, 16)),
    Idea("1/8 step, regression on area", by_area),
    Idea("1/8 step, bit worth 0 (plain rounding)", fine, Settings(worth=0.0)),
    Idea("1/8 step, bit worth 0.5", fine, Settings(worth=0.5)),
    Idea("1/8 step, bit worth 1.5", fine, Settings(worth=1.5)),
    Idea("1/8 step, bit worth 2", fine, Settings(worth=2.0)),
    Idea("1/8 step, bit worth 3", fine, Settings(worth=3.0)),
    Idea("1/8 step, a centroid a component", fine, Settings(centroids=True)),
    Idea("1/8 step, network of 512 features", fine, Settings(repair=512)),
    Idea("1/8 step, trained network of 256 units", fine, Settings(trained=True)),
    Idea("1/8 step, basis fitted to half of the images", lambda lab: of_means(lab, 8, None, slice(0, None, 2))),
    Idea("today at 0.98", lambda lab: of_means(lab, 2), Settings(fidelity=0.98)),
    Idea("1/8 step at 0.98", fine, Settings(fidelity=0.98)),
    Idea("1/8 step at 0.96", fine, Settings(fidelity=0.96)),
    Idea("8 crops by overlap, exact", lambda lab: of_crops(lab, 8, 0.0)),
    Idea("24 crops by overlap, 1/2 step", lambda lab: of_crops(lab, 24, 0.5)),
    Idea("16 crops by overlap, exact", lambda lab: of_crops(lab, KNOWN, 0.0)),
    Idea("16 crops by overlap, 1/4 step", lambda lab: of_crops(lab, KNOWN, 0.25)),
    Idea("16 crops by overlap, 1/2 step", lambda lab: of_crops(lab, KNOWN, 0.5)),
    Idea("16 crops by overlap, 1 step", lambda lab: of_crops(lab, KNOWN, 1.0)),
    Idea("16 crops and what is shown, 1/2 step", lambda lab: of_patches(lab, 0.5), PLAIN, only_mixed=True),
    Idea("16 crops, 1/2 step, bit worth 1.5", lambda lab: of_crops(lab, KNOWN, 0.5), Settings(worth=1.5)),
    Idea("16 crops, 1/2 step, at 0.96", lambda lab: of_crops(lab, KNOWN, 0.5), Settings(fidelity=0.96)),
    Idea(
        "16 crops, 1/2 step, basis fitted to half of the images",
        lambda lab: of_crops(lab, KNOWN, 0.5, slice(0, None, 2)),
    ),
)


def measured(lab: Lab, idea: Idea) -> dict[str, Json]:
    """The line of an idea."""
    start = time.process_time()
    problem, predict = idea.make(lab)
    coded = search(problem, predict, idea.settings)
    seconds = time.process_time() - start
    found = quality_of(problem, coded.logits)
    return {
        "bytes": round(packed_bytes(coded.codes) + SCALE, 2),
        "entropy": round(entropy_of(coded.codes), 2),
        **conditioned(coded),
        "side": round(coded.side / VIEWS, 2),
        "step": round(coded.step, 4),
        "components": coded.codes.shape[1],
        "fidelity": round(float(found.fidelity.mean()), 5),
        "kl_1": round(float(found.kl_1.mean()), 5),
        "kl_20": round(float(found.kl_20.mean()), 7),
        "top1": round(float(found.top1.mean()), 4),
        "cpu_seconds": round(seconds, 1),
    }


def conditioned(coded: Coded) -> dict[str, Json]:
    """The size of the same codes with models that use more context."""
    fitted = coded.fitted[::3]
    classes, stored = context.by_class(fitted, coded.codes, 8)
    return {
        "model": round(context.by_component(fitted, coded.codes), 2),
        "contexts": round(context.by_neighbours(fitted, coded.codes), 2),
        "classes": round(classes + stored, 2),
    }


def sources(out: Path, data: Path) -> list[LabelStore]:
    """The float16 stores of both kinds; existing ones are read unchanged."""
    maker = Real(data, out / "stores")
    folders = [out / "stores" / kind for kind in KINDS]
    return [
        LabelStore.open(folder) if LabelStore.exists(folder) else maker.source(mixed=bool(mix))
        for mix, folder in enumerate(folders)
    ]


def labs(out: Path, data: Path) -> Iterator[tuple[str, Lab]]:
    """The labels of both kinds."""
    stores = sources(out, data)
    files = sorted(path for path in (data / "imagenet-samples").glob("*/*") if path.is_file())
    sides = np.array([Image.open(path).size for path in files], np.float64)
    plain = stores[0]
    views = range(FIRST_KNOWN, plain.state.views_sealed - FITTED)
    crops = crops_of(plain, views, sides)
    order = np.argsort(crops.pairs.images, kind="stable").reshape(len(sides), len(views))
    known = Known(values=crops.logits[order].transpose(1, 0, 2)[:24].copy(), boxes=crops.boxes[order][:, :24])
    for kind, store in zip(KINDS, stores, strict=True):
        last = store.state.views_sealed
        parts = crops_of(store, range(last - FITTED, last), sides), crops_of(store, range(MEASURED), sides)
        yield kind, Lab(known, parts, store.target_columns.astype(np.int64))


def main() -> None:
    """Try what is not in the table yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--only", default="", help="ideas whose names contain this")
    args = parser.parse_args()
    data = os.environ.get("GIFTWRAP_DATA")
    if not data:
        parser.error("set GIFTWRAP_DATA to the folder with imagenet-samples and models")
    ledger: Ledger[Trial] = Ledger(args.out / f"{NAME}.jsonl")
    for kind, lab in labs(args.out, Path(data)):
        for idea in IDEAS:
            trial = Trial(kind=kind, idea=idea.name)
            if trial in ledger or args.only not in idea.name or (idea.only_mixed and kind == KINDS[0]):
                continue
            ledger.add(trial, measured(lab, idea))
            print(json.dumps(ledger.of(trial)), flush=True)
    write_tables(ledger.path, TITLE, sections(ledger.lines, [idea.name for idea in IDEAS]))


if __name__ == "__main__":
    main()
