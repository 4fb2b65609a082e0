"""A contact sheet of a class folder: its images, with their classes."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from labelstore.command.console import Console
from labelstore.command.names import printable
from labelstore.durable.newfile import new_file
from labelstore.errors import InputError
from pipeline.images.manifest import Manifest, scan
from pipeline.images.remarks import report_left_out
from pipeline.images.source_table import ImageOptions
from pipeline.plan.plan import Plan, PlanSpec
from pipeline.render import make_renderer
from pipeline.render.options import RenderOptions
from pipeline.replay.sheet import Caption, draw_sheet
from pipeline.teacher.column_names import class_title

MAX_SIDE = 224  # of an image on the sheet
LEGEND = "Below each image, centre fit to a square: its class and its file."


def draw_folder(
    images: Path,
    out: Path,
    *,
    start: int = 0,
    count: int = 32,
    columns: int = 8,
    render: RenderOptions,
    options: ImageOptions | None = None,
    console: Console | None = None,
) -> int:
    """Write the sheet; returns the number of images on it. The first image of each class comes first, then the second.

    Args:
        images: a class folder, or another container.
        out: the PNG to write.
        start: the first image to show.
        count: how many.
        columns: images a row of the sheet.
        render: how they are rendered.
        options: what the images are, where it is not to be recognised, and names of their classes.
        console: prints what is not read, and what may be wrong with the folders.

    Raises:
        InputError: no such folder or image, or the file is there already.
    """
    manifest = scan(images, class_order="bytes", options=options, digests=False, decode=False)
    if console:
        report_left_out(manifest, console)
    order = in_turns(manifest)
    if start >= len(order):
        raise InputError(f"--start {start}: {manifest.location} has {len(order):,} images")
    chosen = order[start : start + count]
    crops = centres(manifest, chosen, render)
    captions = [
        Caption(
            (class_title(manifest.classes[manifest.targets[image]]), printable(manifest.names[image].split("/", 1)[-1]))
        )
        for image in chosen
    ]
    with new_file(out) as file:
        draw_sheet(crops, captions, columns, LEGEND).save(file, format="PNG")
    return len(chosen)


def centres(manifest: Manifest, chosen: npt.NDArray[np.int64], render: RenderOptions) -> npt.NDArray[np.uint8]:
    """Some images, centre fit to one square of at most 224 pixels a side, uint8 ``[n, S, S, 3]``."""
    sides = np.minimum(manifest.heights[chosen], manifest.widths[chosen])
    spec = PlanSpec(size=min(int(sides.max()), MAX_SIDE), crop="center", flip=0.0)
    renderer = make_renderer(manifest, spec, **render.arguments)
    with closing(renderer):
        rows = Plan(spec, manifest.heights, manifest.widths).unmixed(0, chosen)
        crops: npt.NDArray[np.uint8] = renderer.render(rows).cpu().numpy()
    return crops


def in_turns(manifest: Manifest) -> npt.NDArray[np.int64]:
    """The images, the first of each class before the second of any, int64 ``[N]``."""
    counts = np.bincount(manifest.targets, minlength=len(manifest.classes))
    by_class = np.argsort(manifest.targets, kind="stable")
    places = np.empty(len(manifest), np.int64)
    places[by_class] = np.concatenate([np.arange(count) for count in counts])
    return np.lexsort([manifest.targets, places])
