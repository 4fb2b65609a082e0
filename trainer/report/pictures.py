"""Pictures as data URIs in WebP, in several levels of quality so that a page stays below its limit."""

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
        side: largest side in pixels.
        quality: quality of WebP, 0 to 100; None for lossless pictures up to 64 pixels a side, and 85 for larger ones.
        share: share of a sheet's tiles that are drawn, 0 to 1.
        note: the note on the page.
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
        uri: the picture as a data URI.
        small: whether the page enlarges its pixels to squares.
        shown: least width on the page, in CSS pixels.
        title: first line of its caption.
        lines: further lines of its caption.
        right: as of `Tile`.
    """

    uri: str
    small: bool
    shown: int
    title: str
    lines: Sequence[str]
    right: bool | None


def kept(tiles: Sequence[Tile], level: Level) -> list[Tile]:
    """The tiles that a level draws, spread evenly; at least one unless the level draws none."""
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
