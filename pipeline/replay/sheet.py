"""Contact sheets: crops in a grid, each with its caption."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

LINE_HEIGHT = 12
MARGIN = 6
MIN_SIDE = 128
FRAME = 3
MARK = "red"


@dataclass(frozen=True, slots=True)
class Caption:
    """The caption of a crop.

    Attributes:
        lines: a line each: its target, the teacher's first choices with their probabilities, then its image.
        agrees: whether the first choice is the target, of a mixed crop one of its two; else it is marked.
    """

    lines: tuple[str, ...]
    agrees: bool = True


def draw_sheet(crops: npt.NDArray[np.uint8], captions: Sequence[Caption], columns: int, legend: str) -> Image.Image:
    """Lay crops ``[n, S, S, 3]`` out in a grid below a legend, each with its caption; small crops are enlarged."""
    lines = max(len(caption.lines) for caption in captions)
    scale = max(1, -(-MIN_SIDE // crops.shape[1]))
    side = crops.shape[1] * scale
    cell = (side + MARGIN, side + MARGIN + lines * LINE_HEIGHT)
    rows = -(-len(crops) // columns)
    width, font = columns * cell[0] + MARGIN, ImageFont.load_default(size=10)
    above = wrapped(legend, width - 2 * MARGIN, font)
    head = 2 * MARGIN + len(above) * LINE_HEIGHT
    sheet = Image.new("RGB", (width, head + rows * cell[1]), "white")
    pen = ImageDraw.Draw(sheet)
    for line, text in enumerate(above):
        pen.text((MARGIN, MARGIN + line * LINE_HEIGHT), text, "black", font=font)
    for number, (crop, caption) in enumerate(zip(crops, captions, strict=True)):
        left, top = MARGIN + number % columns * cell[0], head + number // columns * cell[1]
        if not caption.agrees:
            around = (left - FRAME, top - FRAME, left + side + FRAME - 1, top + side + FRAME - 1)
            pen.rectangle(around, outline=MARK, width=FRAME)
        sheet.paste(Image.fromarray(crop).resize((side, side), Image.Resampling.NEAREST), (left, top))
        for line, text in enumerate(caption.lines):
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
