"""Pages with everything that a page can hold, and what their HTML has."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from typing import Any

import numpy as np

from trainer.report.page import (
    Bar,
    BarPlot,
    Card,
    Cell,
    Claim,
    Column,
    Commands,
    Counts,
    Curve,
    Facts,
    Folded,
    Histogram,
    LinePlot,
    Matrix,
    Page,
    Plots,
    Section,
    Shares,
    Sheet,
    Table,
    Text,
    Tile,
)

CHOICES = {"kind", "verdict", "mark"}  # fields whose texts are not free
TABLE = Table(
    [Column("loss", hint="hint"), Column("top-1", True)],
    [
        [Cell("b"), Cell("9.5", 9.5, hint="three")],
        [Cell("d"), Cell.mean(9.5, 0.5, 3)],
        [Cell("a", hint="x"), Cell.number(10.25)],
        [Cell("c"), Cell.number(None)],
    ],
    "caption",
)
CURVES = LinePlot(
    "curves", "epoch", "top-1, %", [Curve("one", [(1, 2), (2, 3)], [1, 2], [3, 4]), Curve("two", [(1, 5)])]
)
BARS = BarPlot(
    "bars", [Bar("first", 0.5, "half", 0.4, 0.6), Bar("second", 1.0, "whole", mark="bad")], 1.0, 0.1, "chance"
)


def full_page(tiles: Sequence[Tile] = ()) -> Page:
    """A page with every kind of item, one claim of each verdict, and a card."""
    pixels = np.zeros((4, 4, 3), np.uint8)
    items = [
        Text("plain"),
        Text("careful", "warning"),
        Facts([("name", "value")]),
        TABLE,
        Plots(
            [CURVES, Histogram("counts", "x", "n", [0, 1, 2], [Counts("right", [1, 2]), Counts("wrong", [0, 3], 1)])]
        ),
        Plots(
            [BARS, Matrix("matrix", "target", "choice", ["a", "b"], [[1, 0], [0.5, 0.5]], [["1", ""], ["0.5", "0.5"]])]
        ),
        Shares("bytes", [("labels", 3.0, "3 B"), ("rows", 1.0, "1 B")]),
        Sheet([Tile(pixels, "cat", ["cat 90 %"], True), Tile(pixels, "dog", ["cat 80 %"], False), *tiles], "sheet"),
        Commands(["giftwrap build"], "typed"),
        Folded("more", [Text("inside", "note"), CURVES]),
    ]
    claim = Claim(
        sentence="It holds.",
        verdict="holds",
        rule="by this rule",
        table=TABLE,
        plots=[CURVES],
        items=[Text("beside")],
        commands=["giftwrap train"],
        versions={"torch": "2"},
        machine="2 cores",
        contradicts=["Three seeds are few."],
    )
    claims = [
        claim,
        Claim(sentence="It does not.", verdict="does not hold"),
        Claim(sentence="?", verdict="not measured here"),
    ]
    return Page(
        title="title",
        lead="lead",
        sections=[
            Section("Claims", "text", [*claims, Text("between")]),
            Section("Stores", "", [Card("store", "store", "sub", items)]),
        ],
        made=[("made", "today")],
    )


def with_texts(value: Any, change: Callable[[str], str]) -> Any:
    """The same data with every free text changed."""
    if isinstance(value, str):
        return change(value)
    if is_dataclass(value) and not isinstance(value, type):
        free = [each.name for each in fields(value) if each.name not in CHOICES or isinstance(value, Card)]
        return replace(value, **{name: with_texts(getattr(value, name), change) for name in free})
    if isinstance(value, list | tuple):
        return type(value)(with_texts(each, change) for each in value)
    if isinstance(value, dict):
        return {change(key): with_texts(each, change) for key, each in value.items()}
    return value


class Elements(HTMLParser):
    """The elements of a document: names with the names of their attributes, and texts."""

    def __init__(self, html: bytes) -> None:
        super().__init__()
        self.found: list[tuple[str, tuple[str, ...]]] = []
        self.attributes: list[tuple[str, str]] = []
        self.text = ""
        self.feed(html.decode())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, tuple(name for name, _ in attrs)))
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.text += f"{data} "

    def values(self, name: str) -> Iterator[str]:
        """The values of an attribute, in order."""
        return (value for key, value in self.attributes if key == name)
