"""Pictures as data URIs in WebP, the small ones without loss; smaller, then fewer, where a page grows too large."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

from trainer.report.page import Tile

PIXELATED = 64  # up to this many pixels a side, a picture is enlarged in squares
SHOWN = 132  # least width of a tile on the page, in CSS pixels


@dataclass(frozen=True, slots=True)
class Level:
    """How pictures are drawn.

    Attributes:
        side: most pixels a side.
        quality: of WebP; None for no loss where a picture has at most 64 pixels a side.
        share: of the tiles of a sheet that are drawn.
        note: what the page states of it.
    """

    side: int
    quality: int | None
    share: float
    note: str


def _level(side: int, quality: int | None, share: float) -> Level:
    fewer = "" if share == 1 else f", {share:.0%} of them"
    note = f"Pictures are drawn with at most {side} pixels a side{fewer}, to keep the page small."
    return Level(side, quality, share, note if share else "Pictures were left out to keep the page small.")


LEVELS = (
    _level(192, None, 1),
    _level(160, 80, 1),
    _level(128, 70, 1),
    _level(96, 60, 1),
    _level(96, 60, 0.5),
    _level(64, 50, 0.5),
    _level(64, 50, 0.2),
    _level(64, 50, 0),
)


@dataclass(frozen=True, slots=True)
class Shown:
    """A tile as it is in the file.

    Attributes:
        uri: the picture.
        small: whether it is enlarged in squares.
        shown: least width on the page, in CSS pixels.
        title: the first line of its caption.
        lines: the lines below it.
        right: as of the tile.
    """

    uri: str
    small: bool
    shown: int
    title: str
    lines: Sequence[str]
    right: bool | None


def kept(tiles: Sequence[Tile], level: Level) -> list[Tile]:
    """The tiles that a level draws, evenly from all: at least one of every sheet unless it draws none."""
    if not tiles or not level.share:
        return []
    count = max(1, round(len(tiles) * level.share))
    return [tiles[place * len(tiles) // count] for place in range(count)]


def encoded(tile: Tile, level: Level) -> Shown:
    """A tile with its picture as a data URI."""
    picture = Image.fromarray(tile.pixels)
    small = max(picture.size) <= PIXELATED
    if max(picture.size) > level.side:
        picture.thumbnail((level.side, level.side), Image.Resampling.LANCZOS)
    out = io.BytesIO()
    if small and level.quality is None:
        picture.save(out, "WEBP", lossless=True, quality=100, method=4)
    else:
        picture.save(out, "WEBP", quality=level.quality or 85, method=4)
    uri = "data:image/webp;base64," + base64.b64encode(out.getvalue()).decode()
    return Shown(uri, small, SHOWN, tile.title, tile.lines, tile.right)
