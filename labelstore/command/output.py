"""How a command prints: shared by all of them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True, slots=True)
class Output:
    """How a command prints its summary."""

    json: bool = False
    """Print the summary as one JSON object on standard output, and everything else on standard error."""
