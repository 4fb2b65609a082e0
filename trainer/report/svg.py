"""Plots as inline SVG. Colours are variables of the page's style, so that they follow its light or dark mode."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from trainer.report.page import Curve, Histogram, LinePlot

WIDTH, HEIGHT = 420.0, 250.0  # of the drawing, which the page scales
RIGHT, TOP, BOTTOM = 10.0, 10.0, 42.0  # margins
CHARACTER = 7.4  # width of a digit of a tick
LABEL = 18.0  # width of the label of the y axis
COLOURS = 8  # variables of the page's style: --c0 to --c7
DASHES = ("", "5 3", "1.5 2.5", "7 2.5 1.5 2.5")
TICKS = 5
MOST_DOTS = 40


@dataclass(frozen=True, slots=True)
class Axis:
    """A range of numbers on a line of the drawing.

    Attributes:
        low: number at ``start``.
        high: number at ``end``.
        start: coordinate in the drawing.
        end: coordinate in the drawing.
        log: whether it is logarithmic.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def place(self, value: float) -> float:
        """The coordinate of a number."""
        low, high, value = (math.log10(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers within the range."""
        return log_ticks(self.low, self.high) if self.log else linear_ticks(self.low, self.high)


def linear_ticks(low: float, high: float, about: int = TICKS) -> list[float]:
    """Multiples of 1, 2 or 5 times a power of ten from ``low`` to ``high``: about ``about`` of them."""
    rough = (high - low) / about
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [number * step for number in range(first, last + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten from ``low`` to ``high``, with other round numbers between them where they are few."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5), (1, 2, 3, 4, 5, 6, 8)):
        found = [factor * 10.0**power for power in powers for factor in factors]
        inside = [value for value in found if low * 0.999 <= value <= high * 1.001]
        if len(inside) > 2:
            step = -(-len(inside) // (TICKS + 1))
            return inside[::step]
    return linear_ticks(low, high)


def axis(values: Iterable[float], start: float, end: float, *, log: bool = False, zero: bool = False) -> Axis:
    """An axis for all values, with a small margin."""
    found = [value for value in values if math.isfinite(value) and (value > 0 or not log)]
    low, high = (min(found), max(found)) if found else (1.0, 10.0) if log else (0.0, 1.0)
    if log:
        return (
            Axis(low / 1.1, high * 1.1, start, end, log=True)
            if high > low
            else Axis(low / 2, low * 2, start, end, True)
        )
    if high == low:
        low, high = low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10
    margin = (high - low) * 0.05
    return Axis(0.0 if zero else low - margin, high + margin, start, end)


def left_of(y: Axis) -> float:
    """The coordinate of the left edge, which leaves room for the ticks and the label of the y axis."""
    return LABEL + 8 + CHARACTER * max((len(number(value)) for value in y.ticks()), default=0)


def number(value: float) -> str:
    """The text of a tick, with no more digits than needed."""
    if value and (abs(value) >= 1e5 or abs(value) < 1e-3):
        mantissa, _, power = f"{value:.0e}".partition("e")
        return f"{mantissa}e{int(power)}"
    return f"{value:,.10g}" if abs(value) >= 1 else f"{value:.3g}"


def colour(style: int) -> str:
    """The page's colour of a style."""
    return f"var(--c{style % COLOURS})"


def dash(style: int) -> str:
    """The dashes of a style: plain for the first 8 colours, then others."""
    return DASHES[style // COLOURS % len(DASHES)]


def line_plot(plot: LinePlot) -> Markup:
    """The drawing of curves."""
    curves = [_drawable(curve, plot) for curve in plot.curves]
    curves = [curve for curve in curves if curve.points]
    heights = [y for curve in curves for y in (*(y for _, y in curve.points), *curve.low, *curve.high)]
    y = axis(heights, HEIGHT - BOTTOM, TOP, log=plot.log_y)
    x = axis((x for curve in curves for x, _ in curve.points), left_of(y), WIDTH - RIGHT, log=plot.log_x)
    drawn = [_frame(x, y, plot.x_label, plot.y_label)]
    drawn += [_band(curve, x, y) for curve in curves if curve.low]
    drawn += [_line(curve, x, y, dots=plot.dots) for curve in curves]
    return _drawing(plot.title, drawn)


def histogram(plot: Histogram) -> Markup:
    """The drawing of stacked columns."""
    totals = [sum(counts) for counts in zip(*(part.counts for part in plot.parts), strict=True)]
    y = axis([0, *totals] if any(totals) else [0, 1], HEIGHT - BOTTOM, TOP, zero=True)
    x = Axis(plot.edges[0], plot.edges[-1], left_of(y), WIDTH - RIGHT)
    drawn = [_frame(x, y, plot.x_label, plot.y_label)]
    below = [0.0] * len(totals)
    for part in plot.parts:
        for column, count in enumerate(part.counts):
            if count:
                drawn.append(
                    _column(plot, column, (below[column], below[column] + count), part.style, (x, y), part.name)
                )
            below[column] += count
    return _drawing(plot.title, drawn)


def _drawable(curve: Curve, plot: LinePlot) -> Curve:
    """The curve without points that the axes cannot show, such as 0 on a logarithmic one."""
    band = len(curve.low) == len(curve.points) and len(curve.high) == len(curve.points)

    def shown(values: Sequence[float]) -> bool:
        return all(map(math.isfinite, values))

    kept = [
        index
        for index, (x, y) in enumerate(curve.points)
        if shown((x, y)) and (x > 0 or not plot.log_x) and (y > 0 or not plot.log_y)
    ]
    edges: list[tuple[float, ...]] = (
        [
            tuple(
                values[index]
                if shown((values[index],)) and (values[index] > 0 or not plot.log_y)
                else curve.points[index][1]
                for index in kept
            )
            for values in (curve.low, curve.high)
        ]
        if band
        else [(), ()]
    )
    return Curve(curve.name, [curve.points[index] for index in kept], edges[0], edges[1], curve.style)


def _drawing(title: str, parts: Sequence[Markup]) -> Markup:
    """The SVG element."""
    return Markup('<svg viewBox="0 0 {:g} {:g}" role="img" aria-label="{}">{}</svg>').format(
        WIDTH, HEIGHT, title, Markup("").join(parts)
    )


def _frame(x: Axis, y: Axis, x_label: str, y_label: str) -> Markup:
    """Grid, ticks and labels of both axes."""
    parts = []
    for value in y.ticks():
        at = y.place(value)
        parts.append(Markup('<path class="g" d="M{:.1f} {:.1f}H{:.1f}"/>').format(x.start, at, WIDTH - RIGHT))
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" class="e">{}</text>').format(x.start - 6, at + 4, number(value))
        )
    for value in x.ticks():
        at = x.place(value)
        parts.append(Markup('<path class="k" d="M{:.1f} {:.1f}v4"/>').format(at, HEIGHT - BOTTOM))
        parts.append(
            Markup('<text x="{:.1f}" y="{:.1f}" class="m">{}</text>').format(at, HEIGHT - BOTTOM + 17, number(value))
        )
    parts.append(Markup('<path class="k" d="M{:.1f} {:.1f}H{:.1f}"/>').format(x.start, HEIGHT - BOTTOM, WIDTH - RIGHT))
    middle = (x.start + WIDTH - RIGHT) / 2
    parts.append(Markup('<text x="{:.1f}" y="{:.1f}" class="m l">{}</text>').format(middle, HEIGHT - 6, x_label))
    up = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(Markup('<text transform="translate(11 {:.1f}) rotate(-90)" class="m l">{}</text>').format(up, y_label))
    return Markup("").join(parts)


def _path(points: Iterable[tuple[float, float]], x: Axis, y: Axis) -> str:
    """The coordinates of a path through points."""
    return "L".join(f"{x.place(at):.1f} {y.place(value):.1f}" for at, value in points)


def _band(curve: Curve, x: Axis, y: Axis) -> Markup:
    """The area between the edges of a curve's band."""
    ats = [at for at, _ in curve.points]
    there, back = list(zip(ats, curve.low, strict=True)), list(zip(ats, curve.high, strict=True))[::-1]
    return Markup('<path d="M{}Z" style="fill:{}" class="b"/>').format(
        _path([*there, *back], x, y), colour(curve.style)
    )


def _line(curve: Curve, x: Axis, y: Axis, *, dots: bool) -> Markup:
    """The line of a curve, with a dot and a hint at each point if they are few."""
    dashes = Markup(' stroke-dasharray="{}"').format(dash(curve.style)) if dash(curve.style) else Markup("")
    line = Markup('<path d="M{}" style="stroke:{}"{} class="c"><title>{}</title></path>').format(
        _path(curve.points, x, y), colour(curve.style), dashes, curve.name
    )
    if len(curve.points) > 1 and (not dots or len(curve.points) > MOST_DOTS):
        return line
    marks = [
        Markup(
            '<circle cx="{:.1f}" cy="{:.1f}" r="2.4" style="fill:{}"><title>{}: {:.6g}, {:.6g}</title></circle>'
        ).format(x.place(at), y.place(value), colour(curve.style), curve.name, at, value)
        for at, value in curve.points
    ]
    return line + Markup("").join(marks)


def _column(
    plot: Histogram, column: int, ends: tuple[float, float], style: int, axes: tuple[Axis, Axis], name: str
) -> Markup:
    """One part of one bin, with a hint."""
    x, y = axes
    left, right = x.place(plot.edges[column]), x.place(plot.edges[column + 1])
    top, bottom = y.place(ends[1]), y.place(ends[0])
    hint = f"{number(plot.edges[column])} to {number(plot.edges[column + 1])}: {ends[1] - ends[0]:,.6g}"
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="fill:{}"><title>{}</title></rect>'
    ).format(left, top, max(right - left - 1, 0.5), bottom - top, colour(style), f"{name}, {hint}" if name else hint)


def swatch(style: int, *, line: bool) -> Markup:
    """The symbol of a style in the legend: a short line, or a square."""
    if not line:
        return Markup('<i style="background:{}"></i>').format(colour(style))
    dashes = Markup(' stroke-dasharray="{}"').format(dash(style)) if dash(style) else Markup("")
    return Markup(
        '<svg viewBox="0 0 26 10" aria-hidden="true"><path d="M1 5H25" style="stroke:{};stroke-width:3"{}/></svg>'
    ).format(colour(style), dashes)
