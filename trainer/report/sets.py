"""The card of an image set: where it comes from, its images, and what its method measured of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.command.console import quantity
from labelstore.command.names import printable
from labelstore.durable.places import is_synthesised
from labelstore.operations.synthesised import made_by, set_info
from labelstore.storage_table import without_credentials
from pipeline.images.manifest import Manifest, scan
from pipeline.images.provenance import PIECES, Pieces, read_pieces
from pipeline.render.options import RenderOptions
from pipeline.replay.folder import centres, in_turns
from pipeline.teacher.column_names import class_title
from trainer.report.page import (
    Card,
    Cell,
    Column,
    Counts,
    Facts,
    Folded,
    Histogram,
    Item,
    Plots,
    Sheet,
    Table,
    Text,
    Tile,
)

BINS = 20
DIGEST = 12  # characters of a digest
MEASURED = {  # arrays of a set's pieces that are a number an image: title, name of the axis
    "scores": ("Scores: the teacher's cross-entropy of each piece", "nats"),
    "confidences": ("Confidence of the teacher in the target", "probability"),
}


def set_card(path: Path, tiles: int) -> Card:
    """The card of an image set, with at most ``tiles`` images on its sheet."""
    manifest = scan(path, class_order="bytes", digests=False, decode=False)
    record: Mapping[str, Any] = set_info(path) if is_synthesised(path) else {}
    pieces = read_pieces(path / PIECES) if record and (path / PIECES).is_file() else None
    counts = np.bincount(manifest.targets, minlength=len(manifest.classes))
    items: list[Item] = [Facts([*of_images(manifest, counts), *provenance(record)])]
    if not record:
        items.append(Text("No record of how the set was made: it was not made by `giftwrap synthesize`.", "note"))
    items.append(_sheet(manifest, tiles))
    if pieces is not None:
        items += scores(pieces, record)
    items.append(_classes(manifest, counts))
    made = f"{made_by(record)}." if record else ""
    kind = "image set, made" if record else "image set"
    title = without_credentials(str(path))
    return Card(title, kind, made or f"{len(manifest):,} images in {len(manifest.classes):,} classes.", items)


def of_images(manifest: Manifest, counts: npt.NDArray[np.int64]) -> list[tuple[str, str]]:
    """How many images there are, and how large."""
    sizes = f"{in_range(manifest.heights)} px high, {in_range(manifest.widths)} px wide"
    return [
        ("images", f"{len(manifest):,} in {quantity(len(manifest.classes), 'class')}, {in_range(counts)} a class"),
        ("size", sizes),
    ]


def in_range(numbers: npt.NDArray[np.integer[Any]]) -> str:
    """The one number that all are, or the least and the largest."""
    low, high = int(numbers.min()), int(numbers.max())
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"


def provenance(record: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What made a set, in words."""
    if not record:
        return []
    source, teacher, flags = (_object(record, name) for name in ("images", "teacher", "flags"))
    versions = _object(record, "versions")
    weights = f", weights {str(teacher['weights'])[:DIGEST]}" if teacher.get("weights") else ""
    numbers = {name: value for name, value in flags.items() if value not in (None, [], False)}
    found = {
        "method": str(record.get("method", "")),
        "made of": f"{source['images']:,} images, digest {str(source.get('manifest'))[:DIGEST]}"
        if isinstance(source.get("images"), int)
        else "",
        "teacher": f"{teacher.get('name', 'an ensemble')}{weights}" if teacher else "",
        "numbers": ", ".join(f"{name} {_shown(value)}" for name, value in numbers.items()),
        "fewer images": ", ".join(f"{name}: {count}" for name, count in _object(record, "fewer").items()),
        "giftwrap": str(versions.get("giftwrap", "")),
    }
    return [(name, text) for name, text in found.items() if text]


def _object(record: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    """A part of a record; nothing where it has none."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def _shown(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _sheet(manifest: Manifest, tiles: int) -> Sheet:
    """The first images of each class, centre fit."""
    chosen = in_turns(manifest)[:tiles]
    chosen = chosen[np.lexsort([chosen, manifest.targets[chosen]])]
    pixels = centres(manifest, chosen, RenderOptions())
    shown = [
        Tile(
            crop,
            class_title(manifest.classes[manifest.targets[image]]),
            (printable(manifest.names[image].split("/", 1)[-1]),),
        )
        for crop, image in zip(pixels, chosen, strict=True)
    ]
    which = "All images" if len(shown) == len(manifest) else f"{len(shown):,} of {len(manifest):,} images"
    return Sheet(shown, f"{which}, centre fit to a square, with their classes and files.")


def scores(pieces: Pieces, record: Mapping[str, Any]) -> list[Item]:
    """What the method measured of each image, and what of all of them."""
    plots = [
        _histogram(pieces.arrays[name], title, axis)
        for name, (title, axis) in MEASURED.items()
        if name in pieces.arrays
    ]
    found: list[Item] = [Plots(plots)] if plots else []
    if "agreements" in pieces.arrays:
        share = 100 * float(pieces.arrays["agreements"].mean())
        found.append(Text(f"The teacher's first choice is the target for {share:.2f} % of the images."))
    if plots and (names := record.get("classes")):
        found.append(_by_class(pieces, list(map(str, names))))
    return found


def _histogram(numbers: npt.NDArray[Any], title: str, axis: str) -> Histogram:
    """How numbers are spread; those that are not finite are left out."""
    values = numbers.astype(np.float64).ravel()
    values = values[np.isfinite(values)]
    high = float(values.max()) if len(values) else 1.0
    low = min(float(values.min()) if len(values) else 0.0, 0.0)
    edges = np.linspace(low, high if high > low else low + 1, BINS + 1)
    counts = np.histogram(values, edges)[0]
    return Histogram(
        title,
        axis,
        "pieces" if numbers.ndim > 1 and numbers.shape[1] > 1 else "images",
        edges.tolist(),
        [Counts("", counts.tolist())],
    )


def _by_class(pieces: Pieces, classes: Sequence[str]) -> Folded:
    """The mean of each measured number by class."""
    names = [name for name in MEASURED if name in pieces.arrays]
    columns = [Column("class"), Column("images", True), *(Column(f"mean {name[:-1]}", True) for name in names)]
    means = {name: pieces.arrays[name].astype(np.float64).reshape(len(pieces), -1).mean(axis=1) for name in names}
    rows = []
    for target in np.unique(pieces.targets).tolist():
        chosen = pieces.targets == target
        title = class_title(classes[target]) if target < len(classes) else f"class {target}"
        numbers = [Cell(f"{value:.4g}", value) for name in names for value in [float(means[name][chosen].mean())]]
        rows.append([Cell(title), Cell.number(float(chosen.sum()), 0), *numbers])
    return Folded("Scores by class", [Table(columns, rows)])


def _classes(manifest: Manifest, counts: npt.NDArray[np.int64]) -> Folded:
    """The classes with their folders and images."""
    columns = [Column("class"), Column("folder"), Column("images", True)]
    rows = [
        [Cell(class_title(name)), Cell(printable(name)), Cell.number(float(count), 0)]
        for name, count in zip(manifest.classes, counts.tolist(), strict=True)
    ]
    return Folded(f"All {len(rows):,} classes", [Table(columns, rows)])
