"""A contact sheet: stored crops as the student sees them, with the teacher's first choices for each."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import numpy.typing as npt

from labelstore.command.names import printable
from labelstore.durable.newfile import new_file
from labelstore.errors import InputError
from labelstore.operations.opening import open_store
from labelstore.store import LabelBatch
from pipeline.config import ShowConfig
from pipeline.device.faults import device_faults
from pipeline.replay.sheet import Caption, draw_sheet
from pipeline.replay.source import Replayer, check_pixels, open_source
from pipeline.teacher.column_names import column_titles, title_of

LEGEND = (
    "Below each crop: its target, the teacher's first three choices (softmax at temperature 1), and its image. "
    "Red: the first choice is not the target."
)


@device_faults("crops are rendered", "a smaller --cache-gib")
def show(config: ShowConfig) -> int:
    """Write the sheet; returns the number of crops on it."""
    assert config.store is not None  # noqa: S101  the caller's condition
    source = open_source(
        open_store(config.store, config.store_cache),
        config.images,
        **config.render.arguments,
        options=config.source,
    )
    with closing(source):
        return write_sheet(source, config)


def write_sheet(source: Replayer, config: ShowConfig) -> int:
    """Draw the crops that the flags name; returns their number."""
    check_pixels(source)
    images = source.store.identity.images
    stop = min(config.start + config.count, images)
    if config.start >= images:
        raise InputError(f"--start {config.start}: the store has {images} positions a view")
    crops = source.crops(config.view, config.start, stop).cpu().numpy()
    group = source.store.identity.group
    first, last = config.start // group * group, min(-(-stop // group) * group, images)  # mixed within groups
    every = captions(source, source.store.read(config.view, slice(first, last)))
    with new_file(config.out) as file:
        some = every[config.start - first : stop - first]
        draw_sheet(crops, some, config.columns, LEGEND).save(file, format="PNG")
    return len(crops)


def captions(source: Replayer, labels: LabelBatch) -> list[Caption]:
    """The targets of each crop of whole groups, the teacher's top-3 with its confidence (T = 1), and the image."""
    names, files = column_titles(source.store.identity), source.manifest.names
    shown, targets = [], labels.targets
    mates = targets[labels.rows.partners(source.store.identity.group)] if labels.rows.mixed else targets
    for row, (image, logits) in enumerate(zip(labels.rows.image, labels.logits, strict=True)):
        own = dict.fromkeys((int(targets[row]), int(mates[row])))
        confidence = softmax(logits)
        best = np.argsort(-confidence, kind="stable")[:3].tolist()
        choices = [f"{title_of(names, column)}: {100 * confidence[column]:.1f} %" for column in best]
        target = " + ".join(names[column] for column in own)
        file = printable(files[image].split("/", 1)[-1])  # its class is the target
        shown.append(Caption((f"target {target}", *choices, file), agrees=best[0] in own))
    return shown


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Softmax of one row, float64 ``[C]``."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum()
    return probabilities
