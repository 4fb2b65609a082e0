"""A contact sheet: stored crops as the student sees them, with the teacher's first choices for each."""

from __future__ import annotations

from contextlib import closing

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from labelstore.command.names import printable
from labelstore.durable.newfile import new_file
from labelstore.errors import InputError
from labelstore.store import LabelBatch
from pipeline.config import ShowConfig
from pipeline.replay.source import Source, check_pixels, open_source

CAPTION_LINES = 4
LINE_HEIGHT = 12
MARGIN = 6
MIN_SIDE = 128


def show(config: ShowConfig) -> int:
    """Write the sheet; returns the number of crops on it."""
    if config.count < 1 or config.columns < 1 or config.start < 0:
        raise InputError("--count and --columns: expected at least 1, and --start at least 0")
    source = open_source(
        config.store,
        config.images,
        device=config.render.device,
        decoder=config.render.decoder,
        threads=config.render.threads,
        cache_bytes=config.render.cache_bytes,
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
    labels = source.store.read(config.view, slice(config.start, stop))
    with new_file(config.out) as file:
        draw_sheet(crops, captions(source, labels), config.columns).save(file, format="PNG")
    return len(crops)


def captions(source: Source, labels: LabelBatch) -> list[list[str]]:
    """Four lines a crop: the target, then the teacher's top-3 with its confidence (softmax at T = 1)."""
    names = {column: printable(name) for column, name in source.store.identity.column_names.items()}
    shown = []
    for target, image, logits in zip(labels.targets, labels.rows.image, labels.logits, strict=True):
        confidence = softmax(logits)
        best = np.argsort(-confidence, kind="stable")[:3]
        best_three = [f"{names.get(int(b), f'column {b}')} {100 * confidence[b]:.1f} %" for b in best]
        shown.append([f"{names[int(target)]} #{image}", *best_three])
    return shown


def softmax(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """Softmax of one row, float64 ``[C]``."""
    shifted = np.exp(logits.astype(np.float64) - logits.max())
    probabilities: npt.NDArray[np.float64] = shifted / shifted.sum()
    return probabilities


def draw_sheet(crops: npt.NDArray[np.uint8], lines: list[list[str]], columns: int) -> Image.Image:
    """Lay crops ``[n, S, S, 3]`` out in a grid with their captions below; small crops are enlarged whole times."""
    scale = max(1, -(-MIN_SIDE // crops.shape[1]))
    side = crops.shape[1] * scale
    cell = (side + MARGIN, side + MARGIN + CAPTION_LINES * LINE_HEIGHT)
    rows = -(-len(crops) // columns)
    sheet = Image.new("RGB", (columns * cell[0] + MARGIN, rows * cell[1] + MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(size=10)
    for number, (crop, texts) in enumerate(zip(crops, lines, strict=True)):
        left, top = MARGIN + number % columns * cell[0], MARGIN + number // columns * cell[1]
        sheet.paste(Image.fromarray(crop).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(texts):
            pen.text((left, top + side + line * LINE_HEIGHT), fit(text, side, pen, font), "black", font=font)
    return sheet


def fit(text: str, width: int, pen: ImageDraw.ImageDraw, font: ImageFont.ImageFont | ImageFont.FreeTypeFont) -> str:
    """The text, shortened until it is no wider than ``width`` pixels."""
    while pen.textlength(text, font=font) > width and len(text) > 1:
        text = f"{text[:-2]}…"
    return text
