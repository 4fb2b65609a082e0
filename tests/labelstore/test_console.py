"""What commands print."""

from __future__ import annotations

import warnings
from importlib import import_module

import pytest

from labelstore.command.console import quantity, run_command
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


@pytest.mark.parametrize(
    ("count", "noun", "text"),
    [
        (0, "epoch", "0 epochs"),
        (1, "epoch", "1 epoch"),
        (1200, "class", "1,200 classes"),
        (2, "sealed view", "2 sealed views"),
    ],
)
def test_counts_are_in_singular_or_plural(count: int, noun: str, text: str) -> None:
    assert quantity(count, noun) == text


def test_a_package_that_is_not_installed_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    def command() -> int:
        return int(import_module("nowhere_installed.inside").number)

    assert run_command(command) == 2
    assert capsys.readouterr().err.startswith("error: nowhere_installed: not installed, and this command needs it; ")


def test_a_module_that_is_missing_in_a_package_is_a_fault_of_that_package() -> None:
    with pytest.raises(ModuleNotFoundError):
        run_command(lambda: import_module("labelstore.nowhere").number)
