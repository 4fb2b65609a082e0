"""The flags that choose an encoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from labelstore.command.encoding_options import encoding_parameters
from labelstore.command.flags import flags_of
from labelstore.config import CheckConfig, ConvertConfig
from labelstore.encodings import ENCODINGS, make_encoding
from labelstore.errors import InputError


def choices() -> tuple[str, ...]:
    return get_args(flags_of(ConvertConfig)["encoding"].kind)


def test_every_encoding_can_be_chosen_and_one_that_is_added_too(monkeypatch: pytest.MonkeyPatch) -> None:
    assert choices() == tuple(ENCODINGS)
    monkeypatch.setitem(ENCODINGS, "no-such", "elsewhere:Encoding")  # a place: nothing is imported for its name
    assert choices() == tuple(ENCODINGS)
    assert choices()[-1] == "no-such"


@pytest.mark.parametrize("name", ["int8", "float16"])
def test_the_codec_of_an_encodings_own_is_not_named(name: str) -> None:
    assert make_encoding(encoding_parameters(name, codec="raw"), 3).to_json() == {"name": name}
    assert make_encoding(encoding_parameters(name, codec="zstd"), 3).to_json() == {"name": name, "codec": "zstd"}


@pytest.mark.parametrize(
    ("name", "flags", "message"),
    [
        ("transform", {"fidelity": 0.9, "step": 1.0}, "found both"),
        ("int8", {"fidelity": 0.9}, "--fidelity: belongs to --encoding transform"),
        ("float16", {"step": 0.5}, "--step: belongs to --encoding transform"),
        ("transform", {"fidelity": 1.0}, "above 0 and below 1, found 1.0"),
        ("transform", {"step": 0.0}, "above 0, found 0.0"),
        ("transform", {"step": float("nan")}, "found nan"),
        ("int8", {"mean_steps": 8}, "--mean-steps: belongs to --encoding transform"),
        ("int8", {"keep_top1": True}, "--keep-top1: belongs to --encoding transform"),
        ("int8", {"codec": "pcodec"}, "expected raw or zstd, found 'pcodec'"),
        ("no-such", {}, "found 'no-such'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(name: str, flags: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_encoding(encoding_parameters(name, **flags), 100)


def test_numbers_are_handed_on() -> None:
    assert encoding_parameters("transform", fidelity=0.95) == {"name": "transform", "fidelity": 0.95}
    assert encoding_parameters("transform", mean_steps=8) == {"name": "transform", "mean_steps": 8}
    assert encoding_parameters("transform", keep_top1=True) == {"name": "transform", "keep_top1": True}
    assert encoding_parameters("transform", codec="zstd", step=2) == {"name": "transform", "codec": "zstd", "step": 2}


def test_a_lease_is_taken_over_by_a_repair_alone() -> None:
    with pytest.raises(InputError, match="--take-over: belongs to --repair"):
        CheckConfig(store=Path("s"), take_over=True)
