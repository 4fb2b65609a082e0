"""A transform holds a label of 1000 columns in at most 56 bytes at fidelity 0.95, and in 112 at 0.979.

Bytes a label against fidelity, KL and top-1 agreement, of unmixed and of CutMix crops: every encoding of this store,
the entropy of its codes, and what others store instead. Bytes are those of whole shards: codes and scales, with chunk
index and checksums, without columns and calibration. All contenders are measured on the first views of a float16
store, 4,096 rows and more; what they are fitted to comes from later views of it. All are compared with
float16.

With the images and weights that GIFTWRAP_DATA names, labels are those of an ImageNet classifier for 224 px crops of
1,000 photographs. The stores, float16 and transform, are made by `python -m pipeline build`, each with a calibration of
its own, and stay in OUT, so that a second run takes no teacher. Without GIFTWRAP_DATA labels are drawn, and transform
stores are converted from float16. Curves are coded in memory, with the calibration that a build would make: 16
unmixed crops of each image for its mean, then rows to fit to, then rows that choose the step; all rows are one block,
as in a store of more images, where those of so few have smaller blocks.

``side_share`` is of a set of N = 10,000 images with V = 300 views, by the bytes of a store's files: (a mean, a digest
and a target x N + marker and share of the seal x 300 blocks + basis, center, cells, audit rows and metadata once), over
codes and scales x N V. The largest of all transform stores counts.
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.harness import Report, machine
from benchmarks.rivals import (
    ProductQuantiser,
    Stored,
    agreement,
    divergence,
    entropy,
    int4,
    top_k_logits,
    top_k_probabilities,
)
from benchmarks.studies.rate_labels import KINDS, Case, Real, Synthetic, case_of, measured_views, read
from benchmarks.studies.rate_point import Point
from labelstore import LabelStore
from labelstore.durable.removing import require_absent
from labelstore.encodings import Codes, Encoding, make_encoding
from labelstore.encodings.fidelity import gift_fidelity
from labelstore.encodings.fitting import fit
from labelstore.encodings.transform import Transform
from labelstore.format import calibration, codecs
from labelstore.format.arrays import StoreLayout
from labelstore.format.shards import encode_shard
from labelstore.spec import BlockShape, Json

FIDELITIES = (0.9, 0.92, 0.935, 0.95, 0.965, 0.979, 0.98, 0.99)
LARGEST = (5, 10, 25, 50, 100, 200)
PARTS = (28, 56, 112)
METRICS = {
    "bytes": "B/label",
    "fidelity": "cosine",
    "KL at T = 1": "nats",
    "KL at T = 20": "nats",
    "top-1 agreement": "share",
    "entropy": "B/label",
}
LARGE_IMAGES, LARGE_VIEWS = 10_000, 300  # the set that `side_share` refers to: a block a view
PROMISED_SIDE = 0.25
TOLERANCE = 0.001  # by which the fidelity of other rows may miss the requested one

PICTURE = "rate-distortion.png"
NO_PICTURE = "matplotlib is missing: pip install 'giftwrap[plot]'"

Float32Array = npt.NDArray[np.float32]


class Promise(NamedTuple):
    """A transform store: the requested fidelity, and the most bytes a label."""

    mixed: bool
    fidelity: float
    bytes: float


PROMISES = (Promise(False, 0.979, 112), Promise(False, 0.95, 56), Promise(True, 0.95, 64))


@dataclass
class Board:
    """Takes what contenders make of labels, judges it, and reports it as it comes."""

    report: Report
    points: list[Point] = field(default_factory=list)

    def add(
        self, case: Case, name: tuple[str, str], logits: Float32Array, size: float, bound: float | None = None
    ) -> None:
        """Judge labels ``[n, C]`` decoded from ``size`` bytes each, whose codes have an entropy of ``bound``.

        Args:
            case: whose rows they are.
            name: the family, and which of it.
            logits: the decoded labels.
            size: bytes a label.
            bound: bytes a label.
        """
        exact, pairs = case.rows.logits, case.rows.pairs
        cosines = gift_fidelity(exact, logits, case.targets[pairs.images], case.targets[pairs.partners], pairs.weights)
        figures = {
            "bytes": size,
            **({} if bound is None else {"entropy": bound}),
            "fidelity": float(cosines.mean()),
            "KL at T = 1": divergence(exact, logits, 1),
            "KL at T = 20": divergence(exact, logits, 20),
            "top-1 agreement": agreement(exact, logits),
        }
        self.keep(Point(case.mixed, *name, figures))

    def keep(self, point: Point) -> None:
        """Report what was judged."""
        contender = f"{KINDS[point.mixed]}, {point.family} {point.label}".strip()
        for metric, value in point.figures.items():
            self.report.add(contender, metric, value, METRICS[metric])
        figures = ", ".join(f"{metric} {value:.4g}" for metric, value in point.figures.items())
        print(f"{contender}: {figures}", file=sys.stderr, flush=True)
        self.points.append(point)


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Make the stores, measure every contender, draw; some 20 minutes on 2 cores, most of them the teacher's.

    Args:
        report: its folder keeps the stores and takes the picture.
        quick: drawn labels of 64 columns, in seconds.
    """
    drawable = importlib.util.find_spec("matplotlib") is not None
    if report.folder and not drawable:
        print(f"no picture will be drawn: {NO_PICTURE}", file=sys.stderr, flush=True)
    elif report.folder:
        require_absent(report.folder / PICTURE)
    data = None if quick else os.environ.get("GIFTWRAP_DATA")
    promises = PROMISES[1:] if quick else PROMISES
    board = Board(report)
    with tempfile.TemporaryDirectory(prefix="rate-distortion-") as temporary:
        kept_in = report.folder / "stores" if report.folder else Path(temporary)
        maker = Real(Path(data), kept_in) if data else Synthetic(Path(temporary), quick=quick)
        print(f"labels: {maker.labels}; transform stores: {maker.how}", file=sys.stderr, flush=True)
        sources = [maker.source(mixed=mixed) for mixed in (False, True)]
        cases = [case_of(source, sources[0], mixed=bool(mixed)) for mixed, source in enumerate(sources)]
        stores = [maker.transform(sources[promise.mixed], promise.fidelity) for promise in promises]
        found = [
            measure_store(board, cases[promise.mixed], store, promise)
            for promise, store in zip(promises, stores, strict=True)
        ]
        side = max(map(side_share, stores))
    for case in cases:
        measure_encodings(board, case, FIDELITIES[1::3] if quick else FIDELITIES)
        measure_rivals(board, case, PARTS[:1] if quick else PARTS)
    values: dict[str, Json] = {
        "labels": maker.labels,
        "stores": maker.how,
        "transform": [*found],
        "side_share": round(side, 4),
    }
    if data:
        values["promised"] = {"transform": [promise._asdict() for promise in PROMISES], "side_share": PROMISED_SIDE}
        values["kept"] = side <= PROMISED_SIDE and all(map(kept, promises, found))
    if report.folder:
        values["picture"] = draw(board.points, report.folder / PICTURE) if drawable else NO_PICTURE
    return {**values, "machine": machine()}


def kept(promise: Promise, found: Mapping[str, Any]) -> bool:
    """Whether a store is as small as promised, at the requested fidelity."""
    return bool(found["bytes"] <= promise.bytes and found["fidelity"] >= promise.fidelity - TOLERANCE)


def draw(points: Sequence[Point], path: Path) -> str:
    """Draw the points; matplotlib takes a second to import, and need not be there."""
    from benchmarks.studies import rate_plot

    rate_plot.draw(points, path)
    return str(path)


def measure_store(board: Board, case: Case, store: LabelStore, promise: Promise) -> dict[str, Json]:
    """A transform store as its files are, and the fidelity that it records; its first views meet the case's rows."""
    views = range(measured_views(store.identity.images))
    decoded = read(store, views)
    if not all(map(np.array_equal, decoded.pairs, case.rows.pairs)):
        raise RuntimeError(f"{store}: other crops than those of the float16 store")
    codes = [store.codes(view, slice(None)) for view in views]
    bound = bytes_at_least({name: np.concatenate([code[name] for code in codes]) for name in codes[0]})
    shards = [size for name, size in disk_bytes(store).items() if part_of(name) == "labels"]
    size = sum(shards) / (store.identity.images * store.state.views_sealed)
    board.add(case, ("transform, store", str(promise.fidelity)), decoded.logits, size, bound)
    fidelity: Any = store.fidelity
    return {
        "fidelity": fidelity["mixed" if promise.mixed else "unmixed"]["mean"],
        "bytes": round(size, 2),
        "entropy": round(bound, 2),
        "mixed": promise.mixed,
        "asked": promise.fidelity,
    }


def side_share(store: LabelStore) -> float:
    """What a transform store holds besides labels and columns, over its labels, at the size of a large set."""
    totals = dict.fromkeys(("labels", "columns", "images", "blocks", "once"), 0)
    for name, size in disk_bytes(store).items():
        totals[part_of(name)] += size
    images, views = store.identity.images, store.state.views_sealed
    side = totals["images"] / images * LARGE_IMAGES
    side += totals["blocks"] / len(store.sealed_blocks()) * LARGE_VIEWS
    side += totals["once"]
    return side / (totals["labels"] / (images * views) * LARGE_IMAGES * LARGE_VIEWS)


def part_of(name: str) -> str:
    """What the bytes of a file of a store grow with, by its path there; labels and columns grow with crops."""
    folder, _, file = name.rpartition("/")
    if folder == "seals" or (folder == "markers" and name != calibration.FILE):
        return "blocks"
    if file.startswith("c."):
        if folder in ("labels", "scales"):
            return "labels"
        if folder == "rows":
            return "columns"
        if folder == "calibration/means" or folder.startswith("images/"):
            return "images"
    return "once"


def disk_bytes(store: LabelStore) -> dict[str, int]:
    """Size of each file of a store, by its path there."""
    files = [path for path in store.path.rglob("*") if path.is_file()]
    return {path.relative_to(store.path).as_posix(): path.stat().st_size for path in files}


def measure_encodings(board: Board, case: Case, fidelities: Sequence[float]) -> None:
    """Every encoding on offer, each with its codecs, coded in memory."""
    logits, pairs = case.rows.logits, case.rows.pairs
    for name in ("float16", "int8"):
        for codec in ("raw", "zstd"):
            encoding = make_encoding({"name": name, "codec": codec}, case.identity.columns)
            codes = encoding.encode(logits, pairs)
            board.add(case, (name, codec), encoding.decode(codes, pairs), shard_bytes(case, encoding, codes))
    packed = sum(len(codecs.compress("pcodec", part)) for part in np.array_split(logits.astype(np.float16), 10))
    board.add(case, ("float16", "pcodec"), logits, packed / len(logits))
    for fidelity in fidelities:
        ready = fitted_transform(case, fidelity)
        codes = ready.encode(logits, pairs)
        decoded, bound = ready.decode(codes, pairs), bytes_at_least(codes)
        for codec in ("pcodec", "zstd"):
            other = make_encoding({**ready.to_json(), "codec": codec}, case.identity.columns)
            size = shard_bytes(case, other, codes)
            board.add(case, (f"transform, {codec}", str(fidelity)), decoded, size, bound)


def fitted_transform(case: Case, fidelity: float, **options: Any) -> Transform:
    """A transform with the calibration that a build would make; ``options`` are others of its parameters."""
    encoding = Transform(case.identity.columns, fidelity=fidelity, **options)
    found = fit(encoding, case.means, case.fitted, case.search, case.targets)
    return encoding.calibrated(found.with_means(found.code(case.means)))


def shard_bytes(case: Case, encoding: Encoding, codes: Codes) -> float:
    """Bytes a label of the shards of one block with all the case's rows."""
    images = case.identity.images
    views = len(case.rows.logits) // images
    block = BlockShape(views=views, positions=case.identity.block.positions)
    layout = StoreLayout.of(replace(case.identity, encoding=encoding.to_json(), block=block))
    total = 0
    for array in layout.codes:
        values = codes[array.name].reshape(views, images, *codes[array.name].shape[1:])
        total += len(encode_shard(array, np.moveaxis(values, -1, 1) if array.planar else values))
    return total / (views * images)


def bytes_at_least(codes: Codes) -> float:
    """Entropy of all codes of a label, in bytes."""
    return sum(entropy(array.reshape(len(array), -1)) for array in codes.values())


def measure_rivals(board: Board, case: Case, each_parts: Sequence[int]) -> None:
    """What others store, and the mean labels alone."""
    logits = case.rows.logits
    columns, predicted = logits.shape[1], case.predicted(case.rows.pairs)
    rivals = [("int4", "", int4(logits))]
    for k in LARGEST:
        rivals += [("top-k logits", str(k), top_k_logits(logits, k))] if k < columns else []
        rivals += [("top-k probabilities", str(k), top_k_probabilities(logits, k))] if k < columns else []
    rest = case.fitted.logits - case.predicted(case.fitted.pairs)
    for parts in each_parts:
        if parts < columns:
            plain, residual = ProductQuantiser(case.fitted.logits, parts), ProductQuantiser(rest, parts)
            after = residual.stored(logits - predicted)
            rivals += [
                ("product quantiser", str(parts), plain.stored(logits)),
                ("product quantiser after means", str(parts), Stored(after.bytes, predicted + after.logits)),
            ]
    for family, label, stored in rivals:
        board.add(case, (family, label), stored.logits, stored.bytes)
    board.add(case, ("means alone", ""), predicted, 0)
