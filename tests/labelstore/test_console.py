"""How commands speak."""

from __future__ import annotations

import warnings

from labelstore.command.console import run_command
from labelstore.errors import reason


def test_warnings_of_the_code_below_a_command_are_one_line() -> None:
    before = warnings.formatwarning
    said: list[str] = []

    def command() -> None:
        said.append(warnings.formatwarning("words", UserWarning, "file.py", 1))

    assert run_command(command) == 0
    assert said == ["warning: words\n"]
    assert warnings.formatwarning is before


def test_a_reason_has_no_address_of_an_object() -> None:
    assert reason(ValueError("cannot identify image file <_io.BytesIO object at 0x7fe6b0dd6070>\nmore")) == (
        "cannot identify image file"
    )
