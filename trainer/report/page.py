"""The content of a page: sections of cards and claims, made of texts, tables, plots and pictures.

Everything here is data. `trainer.report.html` renders a `Page` to one file and escapes every text; no text here is
markup.
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
        kind: how much it stands out.
    """

    text: str
    kind: Literal["plain", "note", "warning"] = "plain"


@dataclass(frozen=True, slots=True)
class Facts:
    """Pairs of a name and a value, one a line."""

    pairs: Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: the text that is shown.
        value: number by which the column is sorted; None sorts by the text.
        mark: its colour.
        hint: text that appears under the pointer.
    """

    text: str
    value: float | None = None
    mark: Mark = ""
    hint: str = ""

    @classmethod
    def number(cls, value: float | None, digits: int = 2, unit: str = "") -> Cell:
        """A number with ``digits`` decimals and its unit; a dash if it is None."""
        return cls("-") if value is None else cls(f"{value:,.{digits}f}{unit}", value)

    @classmethod
    def mean(cls, mean: float | None, std: float | None, count: int, digits: int = 2) -> Cell:
        """A mean with its standard deviation and the number of values: 61.20 ± 0.31 (3)."""
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
        hint: explanation of its header.
    """

    name: str
    numeric: bool = False
    hint: str = ""


@dataclass(frozen=True, slots=True)
class Table:
    """A table that its reader can sort.

    Attributes:
        columns: its columns.
        rows: rows, each with a cell for each column.
        caption: text above it; may be empty.
    """

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of a plot, with or without a band.

    Attributes:
        name: name in the legend.
        points: pairs of x and y.
        low: lower edge of the band at each point; empty for no band.
        high: upper edge, likewise.
        style: number of its colour and dash, the same in all plots.
    """

    name: str
    points: Sequence[tuple[float, float]]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    style: int = 0


@dataclass(frozen=True, slots=True)
class LinePlot:
    """Curves in one plot.

    Attributes:
        title: title of the plot.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis, with its unit.
        curves: its curves; those without points are left out.
        log_x: whether the x axis is logarithmic; points with x of 0 or less are left out then.
        log_y: whether the y axis is logarithmic, likewise.
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
    """A part of a histogram: its name, a count for each bin, and the number of its colour."""

    name: str
    counts: Sequence[float]
    style: int = 0


@dataclass(frozen=True, slots=True)
class Histogram:
    """A histogram, in which several parts are stacked.

    Attributes:
        title: title of the plot.
        x_label: label of the x axis, with its unit.
        y_label: label of the y axis: what is counted.
        edges: edges of the bins, ascending, one more than counts.
        parts: one part or more.
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
        name: text before it.
        value: its length.
        text: text after it.
        low: lower end of its whisker; None for no whisker.
        high: upper end of its whisker, likewise.
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
        title: title of the plot.
        bars: its bars, from top to bottom.
        end: value at the right end; None for the largest one.
        line: value that is marked in all bars, such as chance; None for no mark.
        line_name: name of that value.
    """

    title: str
    bars: Sequence[Bar]
    end: float | None = None
    line: float | None = None
    line_name: str = ""


@dataclass(frozen=True, slots=True)
class Shares:
    """One bar, divided into parts, each with a name, an amount and a text."""

    title: str
    parts: Sequence[tuple[str, float, str]]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A square matrix, drawn as shades.

    Attributes:
        title: title of the plot.
        row_label: label of the rows.
        column_label: label of the columns.
        names: names of the rows, and of the columns.
        values: rows of numbers from 0 to 1.
        texts: rows of texts, one in each cell.
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
        title: first line of the caption.
        lines: further lines of the caption.
        right: True marks it as right, False as wrong, None as neither.
    """

    pixels: npt.NDArray[np.uint8]
    title: str = ""
    lines: Sequence[str] = ()
    right: bool | None = None


@dataclass(frozen=True, slots=True)
class Sheet:
    """A contact sheet.

    Attributes:
        tiles: its pictures; if the page is too large they are drawn smaller, then some are left out.
        caption: what the pictures and their marks show.
    """

    tiles: Sequence[Tile]
    caption: str = ""


@dataclass(frozen=True, slots=True)
class Commands:
    """Commands as a user types them, one a line."""

    lines: Sequence[str]
    caption: str = ""


Plot: TypeAlias = LinePlot | Histogram | BarPlot | Shares | Matrix


@dataclass(frozen=True, slots=True)
class Plots:
    """Plots beside each other, with one legend for all of them."""

    plots: Sequence[Plot]


Item: TypeAlias = "Text | Facts | Table | Plot | Plots | Sheet | Commands | Folded"


@dataclass(frozen=True, slots=True)
class Folded:
    """Items that are hidden until the reader unfolds them."""

    title: str
    items: Sequence[Item]


@dataclass(frozen=True, slots=True)
class Card:
    """A store, an image set, a model or a group of runs.

    Attributes:
        title: its name.
        kind: its kind, in a word or two.
        subtitle: its description, in a sentence.
        items: its items, from top to bottom.
    """

    title: str
    kind: str = ""
    subtitle: str = ""
    items: Sequence[Item] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """A claim in one sentence, which holds, does not hold, or is not measured.

    Attributes:
        sentence: the claim.
        verdict: the result of ``rule``.
        rule: how the verdict follows from the numbers.
        table: the numbers, with standard deviations and counts.
        plots: plots of the numbers.
        items: further items, after these.
        commands: commands that produced the numbers.
        versions: versions or commits of the software, by name.
        machine: machine that it ran on.
        contradicts: evidence against the claim, each in a sentence.
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
        title: title of the page.
        lead: paragraph below the title.
        sections: its sections, from top to bottom; their claims are counted and listed above them.
        made: how the page was made: pairs such as version, date and machine.
    """

    title: str
    lead: str = ""
    sections: Sequence[Section] = ()
    made: Sequence[tuple[str, str]] = ()
