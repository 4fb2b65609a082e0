"""The flags of `synthesize`: those of every method, and those of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from labelstore.command.flags import Choices, Group
from labelstore.command.output import Output
from pipeline.config import EngineOptions, TeacherOptions
from pipeline.render.options import RenderOptions
from pipeline.synthesis import METHODS

FileFormat = Literal["png", "jpeg"]
Taking = Literal["copy", "link", "center", "crop"]
Fit = Literal["pad", "resize"]
Start = Literal["noise", "real"]
Statistics = Literal["batch", "class"]


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomOptions:
    """Which real images `random` takes, and how."""

    take: Taking = "copy"
    """random: the files as they are (copy, or link to them), or cut to --size: center, or one frozen random crop."""
    ce_decile: int | None = None
    """random: draw from one tenth of each class alone, by the teacher's cross-entropy: 1 easiest, 10 hardest."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RdedOptions:
    """The numbers of `rded` (arXiv 2312.03526)."""

    pool: int = 300
    """rded: images of each class that crops are taken from; all where there are fewer."""
    crops: int = 5
    """rded: crops of each image of the pool, of which the best is kept."""
    factor: int | None = None
    """rded: cells a side of a collage; 1 below 128 px and 2 from there on when left out."""
    fit: Fit = "pad"
    """rded: how the teacher gets a crop of --size / --factor: padded to --size as by the authors, or resized."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Sre2lOptions:
    """The numbers of `sre2l` (arXiv 2306.13092)."""

    iterations: int = 1000
    """sre2l: steps of Adam on each batch of images."""
    start: Start = "noise"
    """sre2l: images begin as noise or as real images."""
    statistics: Statistics = "batch"
    """sre2l: batches take classes in turn and match the teacher's running statistics (batch), or hold one class and
    match that class's own (class, as LPLD)."""


@dataclass(frozen=True, kw_only=True)
class SynthesizeConfig:
    """Make a small image set from a large one: a class folder with a record of what each image was made of.

    Typing the same command again continues a stopped one, to the same files.
    """

    method: Annotated[tyro.conf.Positional[str], Choices(METHODS)]
    """What makes the images."""
    out: Path
    """Class folder to make; continued when a stopped command left it."""
    images: Annotated[Path, Group("images")]
    """Class folder of real images."""
    ipc: int
    """Images a class."""
    size: int | None = None
    """Side of the square images in pixels."""
    seed: int = 0
    """Seed of all draws."""
    random: Annotated[RandomOptions, Group("random")] = field(default_factory=RandomOptions)
    rded: Annotated[RdedOptions, Group("rded")] = field(default_factory=RdedOptions)
    sre2l: Annotated[Sre2lOptions, Group("sre2l")] = field(default_factory=Sre2lOptions)
    teacher: Annotated[TeacherOptions, Group("teacher")] = field(default_factory=TeacherOptions)
    engine: Annotated[EngineOptions, Group("engine")] = field(default_factory=EngineOptions)
    render: Annotated[RenderOptions, Group("engine")] = field(default_factory=RenderOptions)
    output: Annotated[Output, Group("running")] = field(default_factory=Output)
