"""The output options of all commands."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """The format of a command's summary."""

    json: bool = False
    """Print the summary as one JSON object on standard output, and everything else on standard error."""
