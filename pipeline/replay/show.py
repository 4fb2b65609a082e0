"""A contact sheet: stored crops as the student sees them, with the teacher's first choices for each."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from labelstore.command.names import printable
from labelstore.durable.newfile import new_file
from labelstore.errors import InputError
from labelstore.store import LabelBatch
from pipeline.config import ShowConfig
from pipeline.device.faults import device_faults
from pipeline.replay.source import Source, check_pixels, open_source

CAPTION_LINES = 4
LINE_HEIGHT = 12
MARGIN = 6
MIN_SIDE = 128
FRAME = 3
MARK = "red"
LEGEND = (
    "Below each crop: its target and image, then the teacher's first three choices (softmax at temperature 1). "
    "Red: the first choice is not the target."
)


@device_faults("crops are rendered", "a smaller --cache-gib")
def show(config: ShowConfig) -> int:
    """Write the sheet; returns the number of crops on it."""
    if config.count < 1 or config.columns < 1 or config.start < 0:
        raise InputError("--count and --columns: expected at least 1, and --start at least 0")
    source = open_source(
        config.store,
        config.images,
        device=config.render.device,
        decoder=config.render.decoder,
        augmenter=config.render.augmenter,
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
        options=config.source,
    )
    with closing(source):
        return write_sheet(source, config)


def write_sheet(source: Source, config: ShowConfig) -> int:
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
        draw_sheet(crops, every[config.start - first : stop - first], config.columns).save(file, format="PNG")
    return len(crops)


@dataclass(frozen=True, slots=True)
class Caption:
    """What is written below a crop.

    Attributes:
        target: its target and its image.
        choices: the teacher's first choices, each with its probability.
        agrees: whether the first choice is the target; of a mixed crop, one of its two.
    """

    target: str
    choices: list[str]
    agrees: bool


def captions(source: Source, labels: LabelBatch) -> list[Caption]:
    """The targets of each crop of whole groups, and the teacher's top-3 with its confidence (softmax at T = 1)."""
    names = {column: printable(name) for column, name in source.store.identity.column_names.items()}
    shown, targets = [], labels.targets
    mates = targets[labels.rows.partners(source.store.identity.group)] if labels.rows.mixed else targets
    for row, (image, logits) in enumerate(zip(labels.rows.image, labels.logits, strict=True)):
        own = dict.fromkeys((int(targets[row]), int(mates[row])))
        confidence = softmax(logits)
        best = np.argsort(-confidence, kind="stable")[:3].tolist()
        choices = [f"{names.get(column, f'column {column}')}: {100 * confidence[column]:.1f} %" for column in best]
        target = " + ".join(names[column] for column in own)
        shown.append(Caption(f"target {target}, image {image}", choices, agrees=best[0] in own))
    return shown


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Softmax of one row, float64 ``[C]``."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum()
    return probabilities


def draw_sheet(crops: npt.NDArray[np.uint8], captions: list[Caption], columns: int) -> Image.Image:
    """Lay crops ``[n, S, S, 3]`` out in a grid below a legend, each with its caption; small crops are enlarged."""
    scale = max(1, -(-MIN_SIDE // crops.shape[1]))
    side = crops.shape[1] * scale
    cell = (side + MARGIN, side + MARGIN + CAPTION_LINES * LINE_HEIGHT)
    rows = -(-len(crops) // columns)
    width, font = columns * cell[0] + MARGIN, ImageFont.load_default(size=10)
    legend = wrapped(LEGEND, width - 2 * MARGIN, font)
    head = 2 * MARGIN + len(legend) * LINE_HEIGHT
    sheet = Image.new("RGB", (width, head + rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(legend):
        pen.text((MARGIN, MARGIN + line * LINE_HEIGHT), text, "black", font=font)
    for number, (crop, caption) in enumerate(zip(crops, captions, strict=True)):
        left, top = MARGIN + number % columns * cell[0], head + number // columns * cell[1]
        if not caption.agrees:
            around = (left - FRAME, top - FRAME, left + side + FRAME - 1, top + side + FRAME - 1)
            pen.rectangle(around, outline=MARK, width=FRAME)
        sheet.paste(Image.fromarray(crop).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate([caption.target, *caption.choices]):
            colour = MARK if line == 1 and not caption.agrees else "black"
            place = (left, top + side + FRAME + line * LINE_HEIGHT)
            pen.text(place, fit(text, side, pen, font), colour, font=font)
    return sheet


def wrapped(text: str, width: int, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> list[str]:
    """The text in lines that are no wider than ``width`` pixels, where words allow it."""
    lines: list[str] = []
    for word in text.split():
        longer = f"{lines[-1]} {word}" if lines else word
        if lines and font.getlength(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(word)
    return lines


def fit(text: str, width: int, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, shortened until it is no wider than ``width`` pixels."""
    while pen.textlength(text, font=font) > width and len(text) > 1:
        text = f"{text[:-2]}…"
    return text
