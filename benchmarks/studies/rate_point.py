"""What the rate-distortion claim measures of a contender: a point of its picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Point:
    """One contender at one rate: its family, which of them it is, and its figures by metric."""

    mixed: bool
    family: str
    label: str
    figures: Mapping[str, float]
