"""The flags of each command: one frozen dataclass each, whose fields are the flags."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from labelstore.command.flags import Group, Positional
from labelstore.command.output import Output


@dataclass(frozen=True, kw_only=True)
class ListConfig:
    """Flags of `bench list`."""

    output: Annotated[Output, Group("running")] = field(default_factory=Output)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Flags of `bench run`."""

    name: Annotated[str, Positional()]
    """Name of the claim, of those that `bench list` prints."""
    out: Path | None = None
    """Folder for NAME.jsonl, one line for each figure and the summary last, and for plots; nothing is written when left
    out."""
    quick: bool = False
    """Try it out at toy size, in seconds."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)


@dataclass(frozen=True, kw_only=True)
class GpuConfig:
    """Flags of `bench gpu`."""

    out: Path | None = None
    """Folder for gpu.jsonl, a line for each figure and for the end of each part, and the summary last. Parts that an
    earlier call finished there are skipped. Nothing is written when left out."""
    only: tuple[str, ...] = ()
    """Run these parts only; all when left out."""
    seconds: float = 420
    """Seconds for all parts together; parts that do not begin in time are left to the next call."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)


@dataclass(frozen=True, kw_only=True)
class EvidenceConfig:
    """Flags of `bench evidence`."""

    out: Path
    """Folder for evidence.html."""
    suite: str = "quick"
    """quick: what fits into 20 minutes; full: everything, at most 60 minutes a call; or the path of a TOML file like
    those in benchmarks/evidence/."""
    only: tuple[str, ...] = ()
    """Run the cells of these parts only, in this order; the page has all parts."""
    minutes: float | None = None
    """Minutes for the cells of this call; the suite's when left out. A cell that would take longer than what is left is
    not started."""
    dry_run: bool = False
    """Print all cells and how long they take, and run nothing."""
    results: Path | None = None
    """File with a line for each finished cell; benchmarks/results/evidence.jsonl when left out."""
    folder: Path | None = None
    """Folder for sets, stores and runs; runs/evidence when left out."""
    output: Annotated[Output, Group("running")] = field(default_factory=Output)
