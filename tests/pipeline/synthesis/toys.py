"""A method of the tests' own, and sets made of small folders in this process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from labelstore.command.console import Console
from labelstore.command.flags import from_flags
from labelstore.durable.newfile import new_version
from labelstore.spec import Json
from pipeline.synthesis import METHODS
from pipeline.synthesis.config import SynthesizeConfig
from pipeline.synthesis.method import Job, Made, Pixels, Setting, StopRequestedError, Working
from pipeline.synthesis.synthesize import synthesize

SIDE = 8
STEPS = 3


def draw_folder(root: Path, classes: Sequence[str] = ("ant", "bee"), per_class: int = 6) -> Path:
    """A class folder of PNG noise."""
    generator = np.random.default_rng(0)
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(per_class):
            pixels = generator.integers(0, 256, (10 + number, 12, 3), np.uint8)
            Image.fromarray(pixels).save(root / name / f"{number:02d}.png")
    return root


class Toy:
    """Images of one colour that grows in steps, saved after each; a job is one number of every class."""

    def __init__(self, setting: Setting) -> None:
        self._seed = setting.config.seed
        targets = setting.targets
        self.jobs = [
            Job(f"images {number}", targets, np.full(len(targets), number, np.int64))
            for number in range(setting.config.ipc)
        ]
        self.teacher = None
        self.steps = 0

    @property
    def parameters(self) -> Mapping[str, Json]:
        return {"steps": STEPS}

    def make(self, job: Job, working: Working, /) -> Made:
        level = int(working.file.read_bytes()) if working.file.exists() else 0
        while level < STEPS:
            if working.stopping():
                raise StopRequestedError
            level += 1
            self.steps += 1
            with new_version(working.file, working.proof) as file:
                file.write(str(level).encode())
            working.progress(level, STEPS)
        colours = (job.targets * 20 + job.numbers * 7 + level + self._seed)[:, None]
        return Made(self.again({"colours": colours}), {"colours": colours})

    def again(self, pieces: Mapping[str, np.ndarray[Any, Any]], /) -> Sequence[Pixels | int]:
        return [np.full((SIDE, SIDE, 3), colour, np.uint8) for colour in pieces["colours"][:, 0]]

    def close(self) -> None:
        pass


METHODS["toy"] = Toy  # as a program of a user's would


def config_of(images: Path, out: Path, method: str = "toy", ipc: int = 2, **flags: Any) -> SynthesizeConfig:
    """The flags of a command."""
    return from_flags(SynthesizeConfig, method=method, images=images, out=out, ipc=ipc, **flags)


def make(images: Path, out: Path, method: str = "toy", ipc: int = 2, **flags: Any) -> Mapping[str, Json]:
    """Run the command in this process; the summary."""
    return synthesize(config_of(images, out, method, ipc, **flags), Console(silent=True))


def tree(root: Path) -> dict[str, bytes | None]:
    """All that lies in a folder; links are not followed."""
    return {
        path.relative_to(root).as_posix(): path.read_bytes() if path.is_file() and not path.is_symlink() else None
        for path in sorted(root.rglob("*"))
    }


def own_files(folder: Path) -> set[str]:
    """Names in a folder, hidden ones too."""
    return {path.name for path in folder.iterdir()}
