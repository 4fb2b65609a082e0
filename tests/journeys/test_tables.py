"""What tables name exists, and has what its protocol asks for: entries are places, which mypy does not look into."""

from __future__ import annotations

from typing import Any

import pytest

from labelstore.encodings import ENCODINGS
from labelstore.encodings.base import EncodingClass
from labelstore.tables import Table
from pipeline.adopt import FORMATS
from pipeline.adopt.labels import Format
from pipeline.images.source_table import SOURCES, SourceKind
from pipeline.plan import augment
from pipeline.recipes import RECIPES, Recipe
from trainer.relabel import OPERATORS, Operator
from trainer.schedules import SCHEDULES, Schedule

TABLES: list[tuple[Table[Any], type]] = [
    (ENCODINGS, EncodingClass),
    (RECIPES, Recipe),
    (OPERATORS, Operator),
    (SCHEDULES, Schedule),
    (SOURCES, SourceKind),
    (FORMATS, Format),
    (augment.REARRANGEMENTS, augment.Rearrangement),
    (augment.PIXELS, augment.PixelAugmentation),
    (augment.MIXES, augment.Mix),
    (augment.INPUTS, augment.Input),
]


@pytest.mark.parametrize(("table", "protocol"), TABLES, ids=[protocol.__name__ for _, protocol in TABLES])
def test_every_entry_has_what_its_protocol_asks_for(table: Table[Any], protocol: type) -> None:
    asked = [name for name in vars(protocol) if not name.startswith("_")]
    assert asked
    for name, entry in table.items():
        assert [member for member in asked if not hasattr(entry, member)] == [], name


def test_names_are_listed_without_importing_anything() -> None:
    table: Table[Any] = Table({"one": "no.such.module", "two": "math:pi"})
    assert list(table) == ["one", "two"]
    assert "one" in table
    assert len(table) == 2
    assert table["two"] == 3.141592653589793
    with pytest.raises(ModuleNotFoundError, match="no"):
        table["one"]
    with pytest.raises(KeyError):
        table["three"]
    table["three"] = 3
    assert table["three"] == 3
