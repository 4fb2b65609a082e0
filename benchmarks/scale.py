"""ImageNet's size: 1.28 M images in tar shards, a first batch within 10 s of the command, memory below 2 GiB."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from math import ceil
from pathlib import Path

from benchmarks.harness import Report, machine
from benchmarks.render import photographs
from benchmarks.scale_parts import CACHE_GIB, PARTS, Figures
from benchmarks.scale_set import draw_classes, write_shards
from benchmarks.scale_store import write_store
from labelstore import LabelStore
from labelstore.errors import GiftwrapError
from labelstore.spec import Json
from pipeline.config import manifest_cache
from pipeline.images.manifest import scan
from trainer.labels import LABEL_BYTES

PROMISED: dict[str, float] = {"first_batch_s": 10, "memory_gib": 2}
"""The first batch counts from the start of the command, with a cached manifest. Memory is what a process has of its
own, without the pages of files, beside the budgets of decoded images and of labels that are read ahead."""
VIEWS = 300  # of the store that the arithmetic is of
GIB = 2**30


@dataclass(frozen=True)
class Size:
    """How much is measured.

    Attributes:
        images: N.
        classes: C, where images are drawn.
        sides: height and width of drawn images.
        views: of the store.
        side: of crops.
    """

    images: int
    classes: int
    sides: tuple[int, int]
    views: int
    side: int


FULL = Size(images=1_281_167, classes=1_000, sides=(256, 341), views=3, side=224)
QUICK = Size(images=3_000, classes=64, sides=(24, 32), views=2, side=16)


def run(report: Report, *, quick: bool = False) -> dict[str, Json]:
    """Write a set and a store of drawn labels, some 2 GB beside the report; measure in separate processes.

    Each photograph of GIFTWRAP_DATA, or a drawn picture where it is not set, has 1,281 names; so a first look at all
    images decodes each content once, where as many different ones would take some 0.4 ms of a core more each. The
    labels have the spectrum of an ImageNet classifier's. The epoch is played without pixels; some batches have them.
    """
    size = QUICK if quick else FULL
    with tempfile.TemporaryDirectory(dir=report.folder, prefix="scale-") as folder:
        root = Path(folder)
        pictures = None if quick else photographs()
        pictures = pictures or draw_classes(root / "pictures", size.classes, size.sides)
        images = root / "shards" / write_shards(pictures, root / "shards", size.images)
        path = root / "store"
        measured = in_this_process if quick else apart
        found = {"first manifest": measured("manifest", path, images)}
        manifest = scan(images, cache=manifest_cache(path))
        start = time.perf_counter()
        store = write_store(path, manifest, size.side, size.views)
        found["writing"] = {"seconds": time.perf_counter() - start}
        del manifest
        for name in ("manifest", "train", "labels", "rates"):
            found[name] = measured(name, path, images)
        values = summary(found)
        made: dict[str, Json] = {
            "views_300": {**arithmetic(store, VIEWS)},
            "bytes_per_label": {**store.bytes_per_label()},
            "fidelity": store.fidelity,
        }
    for contender, figures in found.items():
        for metric, value in figures.items():
            report.add(contender, metric.replace("_", " "), value, unit_of(metric))
    kept = all(values[name] <= most for name, most in PROMISED.items())
    return {
        **values,
        **made,
        "images": size.images,
        "columns": store.identity.columns,
        "views": size.views,
        "budgets_gib": {"decoded images": CACHE_GIB, "labels read ahead": LABEL_BYTES / GIB},
        "promised": {**PROMISED},
        **({} if quick else {"kept": kept}),
        "machine": machine(),
    }


def apart(name: str, store: Path, images: Path) -> Figures:
    """What a part measures in a separate process, and the seconds to its first batch if it has one."""
    start = time.time()
    ended = subprocess.run(  # noqa: S603  the words are this package's own
        [sys.executable, "-m", "benchmarks.scale_parts", name, str(store), str(images)],
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    if ended.returncode:
        raise GiftwrapError(f"the process that measures {name!r} ended with exit code {ended.returncode}")
    return since(start, json.loads(ended.stdout))


def in_this_process(name: str, store: Path, images: Path) -> Figures:
    """The same, sooner, with the memory of all parts."""
    return since(time.time(), PARTS[name](str(store), str(images)))


def since(start: float, figures: Figures) -> Figures:
    """Figures with the time of the first batch since the start."""
    if "first_batch_at" in figures:
        figures["first_batch_s"] = figures.pop("first_batch_at") - start
    return figures


def summary(found: Mapping[str, Figures]) -> dict[str, float]:
    """The figures that count."""
    train, labels, rates = found["train"], found["labels"], found["rates"]
    most = max(
        found["first manifest"]["manifest_bytes"],
        found["manifest"]["manifest_bytes"],
        train["train_bytes"] - CACHE_GIB * GIB,
        labels["epoch_bytes"],
    )
    return {
        "first_batch_s": train["first_batch_s"],
        "memory_gib": most / GIB,
        "first_manifest_s": found["first manifest"]["manifest_s"],
        "first_manifest_gib": found["first manifest"]["manifest_bytes"] / GIB,
        "manifest_s": found["manifest"]["manifest_s"],
        "manifest_gib": found["manifest"]["manifest_bytes"] / GIB,
        "open_s": labels["open_s"],
        "train_gib": train["train_bytes"] / GIB,
        "continued_s": train["continued_s"],
        "continued_most_s": train["continued_most_s"],
        "epoch_s": labels["epoch_s"],
        "epoch_gib": labels["epoch_bytes"] / GIB,
        "second_half_growth_mib": (labels["epoch_end_bytes"] - labels["epoch_half_bytes"]) / 2**20,
        "labels_rows_per_s": rates["labels_rows_per_s"],
        "codes_rows_per_s": rates["codes_rows_per_s"],
        "disk_rows_per_s": rates["disk_rows_per_s"],
    }


def arithmetic(store: LabelStore, views: int) -> dict[str, float]:
    """What a store of so many views of these labels is."""
    identity, each = store.identity, store.bytes_per_label()
    labels = identity.images * views
    once = sum(path.stat().st_size for path in (store.path / "calibration").rglob("*") if path.is_file())
    moving = sum(each.values()) * identity.images * store.state.views_sealed - once
    size = once + moving / store.state.views_sealed * views
    blocks = store.grid.runs * ceil(views / identity.block.views)
    return {
        "gb": size / 1e9,
        "float16_gb": labels * identity.columns * 2 / 1e9,
        "bytes_a_label": size / labels,
        "blocks": blocks,
        "files": blocks * (len(store.layout.codes) + 2),
    }


def unit_of(metric: str) -> str:
    """The unit that the end of a name states."""
    for end, unit in (("_per_s", "rows/s"), ("_s", "s"), ("_bytes", "bytes"), ("seconds", "s")):
        if metric.endswith(end):
            return unit
    return ""
