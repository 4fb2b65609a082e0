"""The seam between `synthesize` and what makes images: a method, which makes the images of one job after the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from labelstore.command.console import Console
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.images.manifest import Manifest
from pipeline.ranks import Ranks

if TYPE_CHECKING:
    from pipeline.synthesis.config import SynthesizeConfig

SHOWN = 5  # classes that an error names
Pixels: TypeAlias = npt.NDArray[np.uint8]
"""An image, uint8 ``[H, W, 3]``."""


class StopRequestedError(Exception):
    """A method has saved the state of a job and stops after a signal."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """The arguments of a method's constructor.

    Attributes:
        config: the flags; a method reads those that all methods share and its own.
        manifest: the images that the set is made of, those of dropped classes too: a teacher has columns for all. Of a
            method in `pipeline.synthesis.CLASSES` it has the classes, and no images.
        targets: the classes that the set has, in order: all of the manifest but those of --drop-classes, int64 ``[c]``.
        console: for notes, warnings and progress; silent on all ranks but the first.
        ranks: the processes that share the jobs.
        engine: what ran the teacher of the command that is continued, or of the first rank: it is run likewise.
        checking: only `again` is called: the flags of the teacher are left out, and none is needed.
    """

    config: SynthesizeConfig
    manifest: Manifest
    targets: npt.NDArray[np.int64]
    console: Console
    ranks: Ranks
    engine: Mapping[str, Json] | None = None
    checking: bool = False

    def images_of(self, target: int) -> npt.NDArray[np.int64]:
        """The images of a class, in order, as indexes of the manifest, int64 ``[n]``."""
        return np.flatnonzero(self.manifest.targets == target)

    def counts(
        self, what: str, *, each: int = 1, found: npt.NDArray[np.integer] | None = None
    ) -> npt.NDArray[np.int64]:
        """The number of images of each class of the set, int64 ``[c]``: --ipc, or with --allow-fewer fewer.

        Args:
            what: name of the source for the message, such as "images".
            each: of these, how many make one image.
            found: how many of these each class of the manifest has, ``[C]``; its images when None.

        Raises:
            InputError: names classes that have too few.
        """
        if found is None:
            found = np.bincount(self.manifest.targets, minlength=len(self.manifest.classes))
        have, fewer = found[self.targets], self.config.allow_fewer
        needed = each if fewer else each * self.config.ipc
        few = [f"{self.manifest.classes[target]} ({found[target]:,})" for target in self.targets[have < needed]]
        if few:
            smaller = " or ".join(["--ipc"] * (self.config.ipc > 1) + ["--factor"] * (each > 1)) or "--ipc"
            raise InputError(
                f"expected at least {needed:,} {what} in each class, found fewer in {', '.join(few[:SHOWN])}"
                f"{f' and {len(few) - SHOWN:,} more' if len(few) > SHOWN else ''}; "
                f"{'' if fewer else f'give a smaller {smaller}, or --allow-fewer to make of them what they allow, or '}"
                f"leave these classes out with --drop-classes"
            )
        return np.minimum(have // each, self.config.ipc).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Job:
    """Images that one process makes together: of a class, or a batch. They depend on nothing of other jobs.

    Attributes:
        name: for progress and messages, such as ``class tench``.
        targets: class of each of its images, int64 ``[n]``.
        numbers: number of each image within its class, from 0; with the class it names the file, int64 ``[n]``.
    """

    name: str
    targets: npt.NDArray[np.int64]
    numbers: npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Made:
    """The images of a job.

    Attributes:
        images: of each image its pixels; or the index of the image of the manifest whose file it is, unchanged.
        pieces: the pieces of each image, by name: arrays whose first axis is the images. All jobs of a method give
            the same names, types and further axes. ``sources``, int64 ``[n, P]``: manifest indexes; ``boxes``, int64
            ``[n, P, 4]``: (top, left, height, width) in pixels of the source; ``scores``, float64 ``[n, P]``.
        linked: unchanged files become hard links to those of the manifest, instead of copies.
    """

    images: Sequence[Pixels | int]
    pieces: Mapping[str, npt.NDArray[np.generic]]
    linked: bool = False


class Progress(Protocol):
    """The progress of a job."""

    def __call__(self, done: int, total: int, binding: str = "", /) -> None:
        """Report it; see `Working.progress`."""


@dataclass(frozen=True, slots=True)
class Working:
    """The working state of a long job, with which a stopped command continues within the job.

    Attributes:
        file: a file of this job only; write it by `labelstore.durable.newfile.new_version(file, proof)`, and read it
            when it is there: a call with the same flags left it. It is removed when the job is made.
        proof: that what has its name is such a file.
        progress: called with what is done of the job, and what there is to do, in any unit; and which stage takes the
            time, where that is known.
        stopping: whether to stop after a signal: the method then saves and raises `StopRequestedError`.
    """

    file: Path
    proof: Proof
    progress: Progress
    stopping: Callable[[], bool]


class Method(Protocol):
    """Makes images. What they are depends on its parameters, the images and the seed, not on the number of ranks."""

    @property
    def parameters(self) -> Mapping[str, Json]:
        """Every number in effect, by name: recorded, and compared when a stopped command is continued."""

    @property
    def teacher(self) -> Mapping[str, Json] | None:
        """Identity of the teacher (P3), and under ``engine`` what runs it; None when there is none."""

    @property
    def jobs(self) -> Sequence[Job]:
        """All jobs, the same on every rank. Each image of the set is in one of them."""

    def make(self, job: Job, working: Working, /) -> Made:
        """The images of a job.

        Raises:
            InputError: names what stops it.
            StopRequestedError: see `Working.stopping`.
        """

    def again(self, pieces: Mapping[str, npt.NDArray[np.generic]], /) -> Sequence[Pixels | int] | None:
        """Make some images again from their pieces; None if that is not possible.

        Args:
            pieces: of these images, as `Made.pieces`.
        """

    def close(self) -> None:
        """Release what renders and labels."""


MakeMethod: TypeAlias = Callable[[Setting], Method]
"""A method from the flags. Raises InputError for flags, images or a teacher that do not fit, before anything is
written."""
