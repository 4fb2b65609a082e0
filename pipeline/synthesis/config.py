"""The flags of `synthesize`: those of every method, and those of each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from labelstore.command.flags import Choices, Group
from labelstore.command.output import Output
from labelstore.errors import InputError
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
    """sre2l: steps of Adam on each batch of images; published are 1000 (CIFAR) and 4000."""
    lr: float = 0.25
    """sre2l: learning rate of the first step; it falls to 0 along half a cosine."""
    betas: tuple[float, float] = (0.5, 0.9)
    """sre2l: of Adam."""
    bn_weight: float = 0.01
    """sre2l: weight of the distance between the batch's statistics and those of the teacher's batch norms, beside a
    cross-entropy of weight 1."""
    first_bn: float = 10.0
    """sre2l: weight of the first batch norm within that distance, where the others have 1; 10 is the authors' code's, 1
    the plain sum of the paper."""
    tv_weight: float = 0.0
    """sre2l: weight of the total variation of what the teacher is shown; the published sets have none."""
    l2_weight: float = 0.0
    """sre2l: weight of the norm of what the teacher is shown; the published sets have none."""
    crop_scale: tuple[float, float] | None = None
    """sre2l: range of the share of an image's area that a step shows, stretched to the whole. Left out, 0.08 1, and of
    images below 64 px all of it, as the authors' code for CIFAR does."""
    jitter: int | None = None
    """sre2l: largest shift of what a step shows, in pixels; what leaves at one side comes in at the other. Left out, a
    seventh of the side: 32 at 224 px and 4 at 32 px, as published."""
    start: Start = "noise"
    """sre2l: images begin as noise or as real images."""
    statistics: Statistics = "batch"
    """sre2l: batches take classes in turn and match the teacher's running statistics (batch), or hold one class and
    match that class's own (class, as LPLD)."""

    def __post_init__(self) -> None:
        """Refuse numbers that nothing can be optimised with."""
        low, high = self.crop_scale or (1.0, 1.0)
        for name, right, expected in (
            ("iterations", 1 <= self.iterations < 2**31, "at least 1 step"),
            ("lr", 0 < self.lr < math.inf, "a number above 0"),
            ("betas", all(0 <= beta < 1 for beta in self.betas), "two numbers from 0 to below 1"),
            ("bn_weight", 0 <= self.bn_weight < math.inf, "a number that is not negative"),
            ("first_bn", 0 <= self.first_bn < math.inf, "a number that is not negative"),
            ("tv_weight", 0 <= self.tv_weight < math.inf, "a number that is not negative"),
            ("l2_weight", 0 <= self.l2_weight < math.inf, "a number that is not negative"),
            ("crop_scale", 0 < low <= high <= 1, "two shares of the area, 0 < low <= high <= 1"),
            ("jitter", self.jitter is None or 0 <= self.jitter <= 65_535, "pixels, 0 or more"),
        ):
            if not right:
                raise InputError(f"--{name.replace('_', '-')}: expected {expected}, found {getattr(self, name)}")


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
