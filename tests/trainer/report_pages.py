"""Pages with everything that a page can hold, what their HTML has, and things to make pages of."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np

from labelstore.spec import Identity
from labelstore.store import LabelStore
from tests.labelstore.making import Content
from trainer.generator import sheet
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
    Item,
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
    items: list[Item] = [
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


def fill(path: Path, identity: Identity, views: int, written: int | None = None) -> Content:
    """A store of random labels, all sealed, or of which so many views have blocks, none is sealed."""
    content = Content(identity, views)
    store = LabelStore.create(path, identity, image_digests=content.digests, targets=content.targets, views=views)
    with store.lease() as writer:
        for block in store.missing():
            if written is None or store.grid.views(block)[0] < written:
                writer.write(block, content.block(store, block))
        if written is None:
            writer.seal()
    return content


def make_projector(folder: Path) -> Path:
    """The files of a projector, without a network that they fit."""
    folder.mkdir(parents=True)
    encoder = {
        "name": "timm:tiny",
        "args": {},
        "weights": "/models/tiny.safetensors",
        "sha256": "0" * 64,
        "bytes": 1000,
        "features": "penultimate",
        "width": 8,
    }
    record = {"format": 1, "encoder": encoder, "rank": 2, "alpha": 2.0, "head": "zero",
              "head_rank": 2, "lora_on": None, "adapt_norms": False,
              "trained": {"columns": 3, "size": 16}}  # fmt: skip
    (folder / "projector.json").write_text(json.dumps(record))
    tensors = {"head.weight": {"dtype": "F32", "shape": [10], "data_offsets": [0, 40]}}
    header = json.dumps(tensors).encode()
    (folder / "projector.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(40))
    return folder


def make_generator(folder: Path, classes: tuple[str, ...], size: int = 4) -> Path:
    """The files of a generator, without weights, with a sheet of samples: class k is of the colour k, k, k."""
    folder.mkdir(parents=True)
    described = {"format": 1, "version": "0.2.0", "classes": [*classes], "size": size,
                 "backbone": {"name": "uvit-xs", "dim": 8}, "vae": {"place": "none", "name": "none"},
                 "diffusion": {"noise_steps": 10}, "latents": {"mean": [0.5], "std": [0.5]}}  # fmt: skip
    (folder / "generator.json").write_text(json.dumps(described))
    colours = np.arange(len(classes), dtype=np.uint8)[:, None, None, None]
    (folder / "samples-000012.png").write_bytes(sheet(np.broadcast_to(colours, (len(classes), size, size, 3))))
    return folder
