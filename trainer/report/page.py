"""What a page holds, before it is HTML: sections of cards and claims, made of texts, tables, plots and pictures.

Everything here is data. `trainer.report.html` makes one self-contained file of a `Page`, and escapes every text, so
that none needs to be escaped before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, TypeAlias

import numpy as np
import numpy.typing as npt

Mark: TypeAlias = Literal["", "good", "bad", "quiet"]
Verdict: TypeAlias = Literal["holds", "does not hold", "not measured here"]


@dataclass(frozen=True, slots=True)
class Text:
    """A paragraph.

    Attributes:
        text: plain, not markup.
        kind: a note is set apart; a warning more so.
    """

    text: str
    kind: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Facts:
    """Names with their values, a line each."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: as it is read.
        value: the number by which the column is sorted; None sorts by the text.
        mark: how it is coloured.
        hint: what a pointer above it shows.
    """

    text: str
    value: float | None = None
    mark: Mark = ""
    hint: str = ""

    @classmethod
    def number(cls, value: float | None, digits: int = 2, unit: str = "") -> Cell:
        """A number with as many digits after its point, and its unit; a dash where it is not known."""
        return cls("-") if value is None else cls(f"{value:,.{digits}f}{unit}", value)

    @classmethod
    def mean(cls, mean: float | None, std: float | None, count: int, digits: int = 2) -> Cell:
        """A mean with its standard deviation and the count that both are of: 61.20 ± 0.31 (3)."""
        if mean is None:
            return cls("-")
        deviation = f" ± {std:.{digits}f}" if std is not None else ""
        return cls(f"{mean:.{digits}f}{deviation} ({count})", mean)


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table.

    Attributes:
        name: its header.
        numeric: whether it is aligned to the right.
        hint: what its header means.
    """

    name: str
    numeric: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that its reader can sort.

    Attributes:
        columns: the header.
        rows: a cell for each column.
        caption: what it is; may be empty.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot, in a band.

    Attributes:
        name: in the legend.
        points: x and y.
        low: the lower edge of the band at each point; empty for no band.
        high: the upper edge.
        style: number of its colour and dash: the same number looks the same in all plots.
    """

    name: str
    points: Sequence[tuple[float, float]]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: int = 0


@dataclass(frozen=True, slots=True)
class LinePlot:
    """Curves against one axis.

    Attributes:
        title: above it.
        x_label: with its unit.
        y_label: with its unit.
        curves: a curve of no point is left out.
        log_x: a logarithmic axis; points that are not above zero are left out.
        log_y: the same of the other axis.
        dots: whether points are marked.
    """

    title: str
    x_label: str
    y_label: str
    curves: Sequence[Curve]
    log_x: bool = False
    log_y: bool = False
    dots: bool = True


@dataclass(frozen=True, slots=True)
class Counts:
    """One part of a histogram's columns: its name, a count for each column, and the number of its colour."""

    name: str
    counts: Sequence[float]
    style: int = 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """Counts between edges; several parts are stacked.

    Attributes:
        title: above it.
        x_label: with its unit.
        y_label: what is counted.
        edges: one more than there are counts, rising.
        parts: at least one.
    """

    title: str
    x_label: str
    y_label: str
    edges: Sequence[float]
    parts: Sequence[Counts]


@dataclass(frozen=True, slots=True)
class Bar:
    """A bar.

    Attributes:
        name: before it.
        value: its length.
        text: after it.
        low: the lower end of a whisker; None for none.
        high: its upper end.
        mark: its colour.
    """

    name: str
    value: float
    text: str
    low: float | None = None
    high: float | None = None
    mark: Mark = ""


@dataclass(frozen=True, slots=True)
class BarPlot:
    """Bars below each other, from zero.

    Attributes:
        title: above it.
        bars: in this order.
        end: the value that fills the width; None for the largest one.
        line: a value that is marked in all bars, as chance is; None for none.
        line_name: what that value is.
    """

    title: str
    bars: Sequence[Bar]
    end: float | None = None
    line: float | None = None
    line_name: str = ""


@dataclass(frozen=True, slots=True)
class Shares:
    """One bar, divided: name, amount and text of each part."""

    title: str
    parts: Sequence[tuple[str, float, str]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """Numbers as shades.

    Attributes:
        title: above it.
        row_label: what a row is.
        column_label: what a column is.
        names: of rows and columns alike.
        values: 0 to 1, a row each.
        texts: what is written into each cell.
    """

    title: str
    row_label: str
    column_label: str
    names: Sequence[str]
    values: Sequence[Sequence[float]]
    texts: Sequence[Sequence[str]]


@dataclass(frozen=True, slots=True, eq=False)
class Tile:
    """A picture with its caption.

    Attributes:
        pixels: uint8 ``[H, W, 3]``.
        title: the first line of the caption.
        lines: the lines below it.
        right: whether it is marked as right or wrong; None for neither.
    """

    pixels: npt.NDArray[np.uint8]
    title: str = ""
    lines: Sequence[str] = ()
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A contact sheet.

    Attributes:
        tiles: where a page grows too large they are drawn smaller, then fewer of them.
        caption: what is shown, and what the marks mean.
    """

    tiles: Sequence[Tile]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands as they are typed, a line each."""

    lines: Sequence[str]
    caption: str = ""


Plot: TypeAlias = LinePlot | Histogram | BarPlot | Shares | Matrix


@dataclass(frozen=True, slots=True)
class Plots:
    """Plots beside each other; curves and counts of one style have one line in the legend below."""

    plots: Sequence[Plot]


Item: TypeAlias = "Text | Facts | Table | Plot | Plots | Sheet | Commands | Folded"


@dataclass(frozen=True, slots=True)
class Folded:
    """What a reader unfolds."""

    title: str
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Card:
    """One thing: a store, a set, a projector.

    Attributes:
        title: its name.
        kind: what it is, in a word.
        subtitle: what it is in a sentence.
        items: from top to bottom.
    """

    title: str
    kind: str = ""
    subtitle: str = ""
    items: Sequence[Item] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """One sentence that is true, false, or not measured.

    Attributes:
        sentence: what is claimed.
        verdict: by ``rule``.
        rule: how the verdict follows from the numbers, as it was written before they were known.
        table: the numbers, with deviations and counts.
        plots: the numbers, drawn.
        items: anything else, after these.
        commands: those that made the numbers.
        versions: of the software, by name; with the commit.
        machine: what it ran on, and whether other work ran beside it.
        contradicts: what speaks against the claim, a sentence each.
    """

    sentence: str
    verdict: Verdict
    rule: str = ""
    table: Table | None = None
    plots: Sequence[Plot] = ()
    items: Sequence[Item] = ()
    commands: Sequence[str] = ()
    versions: Mapping[str, str] = field(default_factory=dict)
    machine: str = ""
    contradicts: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the page: cards, claims, and items between them."""

    title: str
    text: str = ""
    parts: Sequence[Card | Claim | Item] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A page.

    Attributes:
        title: its name.
        lead: a paragraph below it.
        sections: from top to bottom. Claims are counted and listed above them.
        made: how the page was made: name and value, such as version, date and machine.
    """

    title: str
    lead: str = ""
    sections: Sequence[Section] = ()
    made: Sequence[tuple[str, str]] = ()
