"""What a store says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from labelstore.errors import InputError
from labelstore.operations.convert import convert
from labelstore.operations.info import info, lines
from tests.labelstore.making import Content, build, make_identity


def text_of(values: dict[str, Any]) -> dict[str, str]:
    return {line[:16].strip(): line[17:] for line in lines(values)}


def test_sizes_stand_beside_float16_and_the_teacher(tmp_path: Path) -> None:
    store = build(tmp_path / "store", Content(make_identity(images=64, columns=500, block=(2, 64)), 4), 4)
    weights = tmp_path / "weights"
    weights.write_bytes(b"x" * 2500)
    values = info(store, weights)
    assert values == json.loads(json.dumps(values))
    sizes = store.bytes_per_label()
    assert 500 < sizes["labels"] < 510
    assert values["as_float16"] == {
        "labels": 1000, "columns": sizes["columns"], "side": 0,
        "ratio": round(1000 / (sizes["labels"] + sizes["side"]), 2),
    }  # fmt: skip
    assert values["teacher_bytes"] == 2500
    assert "teacher_bytes" not in info(store)
    told = text_of(values)
    assert told["encoding"] == "int8, codec raw"
    assert told["views"] == "4 of 4 sealed, complete"
    assert told["as float16"] == f"1000.0 for labels: {values['as_float16']['ratio']} times as many"
    assert told["teacher bytes"] == "2.5 kB"
    assert "64 rows" in told["fidelity"]
    with pytest.raises(InputError, match="expected a file"):
        info(store, tmp_path)


def test_an_unfinished_store_says_what_is_missing(tmp_path: Path) -> None:
    store = build(tmp_path / "store", Content(make_identity(), 4), 4, 0)
    values = info(store)
    assert (values["complete"], values["missing_blocks"], values["fidelity"]) == (False, 6, None)
    assert values["as_float16"]["ratio"] is None
    told = text_of(values)
    assert told["views"] == "0 of 4 sealed, 6 blocks missing"
    assert told["fidelity"] == "not measured before the first block"
    assert "as float16" not in told


def test_a_converted_store_says_from_what(tmp_path: Path) -> None:
    first = build(tmp_path / "a", Content(make_identity(encoding="float16"), 2), 2)
    last = convert(convert(first, tmp_path / "b", {"name": "int8"}), tmp_path / "c", {"name": "float16"})
    values = info(last)
    assert values["converted_from"]["converted_from"]["encoding"] == {"name": "float16"}
    assert text_of(values)["converted from"].startswith("int8, whose own fidelity was unmixed ")
    assert "; that one from float16" in text_of(values)["converted from"]
    assert info(first)["converted_from"] is None
