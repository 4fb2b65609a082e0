"""Render a page to one HTML file, which contains its styles, script, plots and pictures, and loads nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from labelstore.command.names import printable
from labelstore.durable import removing
from labelstore.durable.newfile import write_new, write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from labelstore.version import __version__
from trainer.report import svg
from trainer.report.page import (
    BarPlot,
    Card,
    Claim,
    Folded,
    Histogram,
    Item,
    LinePlot,
    Page,
    Plot,
    Sheet,
    Verdict,
)
from trainer.report.pictures import LEVELS, Level, Shown, encoded, kept

HERE = Path(__file__).parent
LIMIT = 3_000_000
HEAD_BYTES = 2_048  # bytes of a page within which its generator is named
GENERATOR = "giftwrap report"
VERDICTS: dict[str, str] = {"holds": "holds", "does not hold": "not", "not measured here": "unmeasured"}


@dataclass(frozen=True, slots=True)
class Rendered:
    """A page as a file.

    Attributes:
        html: content of the file, UTF-8.
        notes: what was reduced to limit its size; the page has the same notes.
    """

    html: bytes
    notes: tuple[str, ...] = ()


def render(page: Page, limit: int = LIMIT) -> Rendered:
    """Render a page to fewer than ``limit`` bytes; pictures are made smaller, then fewer, until it fits.

    Raises:
        InputError: the page is too large even without pictures.
    """
    size = 0
    for level in LEVELS:
        notes = (level.note,) if level is not LEVELS[0] and has_pictures(page) else ()
        html = _document(page, level, notes)
        size = len(html)
        if size < limit:
            return Rendered(html, notes)
        if not has_pictures(page):
            break
    raise InputError(
        f"the page: expected fewer than {limit:,} bytes, found {size:,} without its pictures; name fewer things"
    )


def has_pictures(page: Page) -> bool:
    """Whether a page has any pictures."""

    def inside(items: Sequence[Item]) -> Iterator[Item]:
        for item in items:
            yield item
            if isinstance(item, Folded):
                yield from inside(item.items)

    parts = [part for section in page.sections for part in section.parts]
    items = [item for part in parts for item in (part.items if isinstance(part, Card | Claim) else (part,))]
    return any(isinstance(item, Sheet) and item.tiles for item in inside(items))


def _document(page: Page, level: Level, notes: Sequence[str]) -> bytes:
    """The file, UTF-8, with pictures as ``level`` draws them."""
    contents = []
    claims = []
    for number, section in enumerate(page.sections, 1):
        anchors = [(part, f"s{number}-{place}") for place, part in enumerate(section.parts, 1)]
        claims += [(part, anchor) for part, anchor in anchors if isinstance(part, Claim)]
        cards = [(part.title, anchor) for part, anchor in anchors if isinstance(part, Card)]
        contents.append((section.title, f"s{number}", cards))
    tally = [(name, sum(claim.verdict == name for claim, _ in claims)) for name in get_args(Verdict)]
    environment = _environment()
    environment.filters["tiles"] = lambda sheet: shown_tiles(sheet, level)
    text = environment.get_template("page.html.jinja").render(
        page=page,
        notes=notes,
        contents=contents if len(contents) > 1 or any(cards for _, _, cards in contents) else [],
        claims=claims,
        tally=[(name, count) for name, count in tally if count],
        generator=f"{GENERATOR} {__version__}",
        style=Markup((HERE / "page.css").read_text()),  # noqa: S704  a file of this package
        script=Markup((HERE / "page.js").read_text()),  # noqa: S704
    )
    # Names may contain characters that do not print; they are escaped, as in a terminal.
    return ("\n".join(map(printable, text.strip().split("\n"))) + "\n").encode()


def _environment() -> Environment:
    """The environment of the template, which escapes all text but the markup made here."""
    environment = Environment(
        loader=FileSystemLoader(HERE),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    environment.filters |= {
        "kind": lambda each: type(each).__name__,
        "parts": lambda each: each.items,  # in a template `.items` of some types is a method
        "draw": draw,
        "colour": svg.colour,
        "legend": legend,
        "share": share,
        "bar_end": bar_end,
        "verdict_class": VERDICTS.__getitem__,
    }
    return environment


def draw(plot: LinePlot | Histogram) -> Markup:
    """The SVG of a plot."""
    return svg.line_plot(plot) if isinstance(plot, LinePlot) else svg.histogram(plot)


def legend(plots: Sequence[Plot]) -> list[tuple[str, Markup]]:
    """The names of all curves and histogram parts with their swatches, each once."""
    found: dict[tuple[str, int, bool], None] = {}
    for plot in plots:
        if isinstance(plot, LinePlot):
            found |= dict.fromkeys((curve.name, curve.style, True) for curve in plot.curves if curve.points)
        elif isinstance(plot, Histogram):
            found |= dict.fromkeys((part.name, part.style, False) for part in plot.parts)
    return [(name, svg.swatch(style, line=line)) for name, style, line in found if name]


def bar_end(plot: BarPlot) -> float:
    """The value at the right end of a bar plot."""
    values = [value for bar in plot.bars for value in (bar.value, bar.high or 0.0)]
    return plot.end or max([*values, plot.line or 0.0]) or 1.0


def share(value: float, end: float) -> str:
    """A value as a percentage of ``end``, from 0 to 100, for a style."""
    return f"{min(max(100 * value / end, 0.0), 100.0):.2f}"


def shown_tiles(sheet: Sheet, level: Level) -> list[Shown]:
    """The tiles of a sheet as a level draws them."""
    return [encoded(tile, level) for tile in kept(sheet.tiles, level)]


def require_page(path: Path, *, replace: bool = False) -> None:
    """Refuse a path to which `write_page` would refuse to write.

    Raises:
        InputError: a file exists that is not to be replaced, or is no page of this software.
    """
    if not os.path.lexists(path):
        return
    if not replace:
        raise InputError(
            f"{path}: exists already, and nothing is overwritten; give another name, or --replace where it is a page "
            f"that `report` made"
        )
    removing.require(path, PAGE)


def write_page(page: Page, path: Path, *, replace: bool = False, limit: int = LIMIT) -> Rendered:
    """Render a page and write it atomically; returns the rendered page.

    Args:
        page: the page.
        path: the file to write.
        replace: whether an existing page of this software is replaced.
        limit: largest size in bytes, exclusive.

    Raises:
        InputError: as of `require_page` and `render`.
    """
    require_page(path, replace=replace)
    rendered = render(page, limit)
    if replace and os.path.lexists(path):
        write_over(path, rendered.html, PAGE)
    else:
        write_new(path, rendered.html)
    return rendered


def is_page(path: Path) -> bool:
    """Whether a file is a page that `write_page` made."""
    try:
        with path.open("rb") as file:
            return f'<meta name="generator" content="{GENERATOR}'.encode() in file.read(HEAD_BYTES)
    except OSError:
        return False


PAGE = Proof("a page that `giftwrap report` made", is_page)
