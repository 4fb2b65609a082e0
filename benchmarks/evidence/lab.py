"""Run the commands of cells in this process, each step once, and check beforehand that they can run."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.evidence.cells import DATA, FOLDER, Cell, Job, cells_of, commands_of
from benchmarks.evidence.lines import commit
from benchmarks.evidence.peers import PEERS
from benchmarks.evidence.suite import Part
from benchmarks.studies.in_process import run_build, run_synthesize, run_train
from labelstore.command.command_line import read_command
from labelstore.errors import GiftwrapError, InputError
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.config import json_object
from pipeline.networks import build_network
from trainer.__main__ import COMMANDS as TRAINER
from trainer.__main__ import without_more
from trainer.config import TrainConfig

CLASSES, SIDE = 10, 32  # of the student that is constructed to check its flags
RUNS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "synthesize": run_synthesize,
    "build": run_build,
    "train": run_train,
}
OWN: Mapping[str, str] = {
    name: f"benchmarks.evidence.canaries:{name.replace('-', '_')}"
    for name in ("copy", "shift-labels", "shift-classes", "choose-classes", "untrained", "refused")
} | {name: f"benchmarks.evidence.peers:{name}" for name in ("plain", "ddranking")}
"""Further commands that cells may run: name -> module:function, which takes words and returns fields of a line."""


class Lab:
    """Runs cells.

    Args:
        parts: the parts of the cells.
        folder: folder of the sets, stores and runs.
        data: folder of the data sets; None where GIFTWRAP_DATA is not set.
    """

    def __init__(self, parts: Sequence[Part], folder: Path, data: Path | None) -> None:
        self.folder, self.data = folder, data
        self._parts = {part.name: part for part in parts}

    def commands(self, cell: Cell) -> list[Job]:
        """The commands of a cell in the order in which they run: its steps, then its own."""
        return commands_of(self._parts[cell.part], dict(cell.choices), cell.seed)

    def place(self, out: str) -> Path:
        """The folder that ``out`` of a command stands for."""
        return Path(out.replace(FOLDER, str(self.folder)))

    def real(self, command: str) -> str:
        """A command with its folders filled in, quoted for a shell."""
        data = shlex.quote(str(self.data)) if self.data else DATA
        return command.replace(FOLDER, shlex.quote(str(self.folder))).replace(DATA, data)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Run or continue a cell; returns the fields of its line."""
        start, version = time.monotonic(), commit()
        *steps, own = self.commands(cell)
        try:
            for step in steps:
                self._do(step, again=step.command.startswith(("build ", "train ")))
            values = result_of(self._do(own, again=True), self.place(own.out))
        except GiftwrapError as error:
            error.args = (f"{cell.name}: {error}",)
            raise
        return {
            **values,
            "steps_before": [step.command for step in steps],
            "commit": version,
            "seconds": round(time.monotonic() - start, 1),
        }

    def _do(self, job: Job, *, again: bool) -> Mapping[str, Any]:
        """Run a command; without ``again`` not where its folder exists, which is then complete."""
        place = self.place(job.out)
        if place.exists() and not again:
            return {}
        place.parent.mkdir(parents=True, exist_ok=True)
        name, *words = shlex.split(self.real(job.command))
        return program(name)(*words)


def program(name: str) -> Callable[..., Mapping[str, Any]]:
    """The function that runs a command, by the command's first word; it takes the other words.

    Raises:
        InputError: cells cannot run such a command.
    """
    if name in RUNS:
        return RUNS[name]
    if name in OWN:
        module, _, function = OWN[name].partition(":")
        own: Callable[..., Mapping[str, Any]] = getattr(import_module(module), function)
        return own
    raise InputError(f"run: expected one of {', '.join([*RUNS, *OWN])}, found {name!r}")


def typed(command: str) -> str:
    """A cell's command as a user types it into a shell, in the root of this project."""
    name, _, words = command.partition(" ")
    if name == "refused":
        return f"giftwrap {words}  # is refused"
    if name not in OWN:
        return f"giftwrap {command}"
    module, _, function = OWN[name].partition(":")
    code = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
    return f"python -c '{code}' {words}"


def result_of(found: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """The fields of a line: of a training in folder ``place`` its scores and the digest of its test images."""
    if "last" not in found:
        return dict(found)
    description: Any = json.loads((place / "config.json").read_text())
    tests = description.get("made_of", {}).get("tests") or {}
    best = found["best"]
    return {
        "top1": found["last"]["top1"],
        "reported": "last epoch",
        "best": best.get("top1"),
        "best_epoch": best.get("epoch", -1) + 1,
        "evaluations": found["evaluations"],
        "steps": found["steps"],
        "tests": tests.get("manifest", str(tests)),
    }


def require_runnable(part: Part, lab: Lab) -> None:
    """Check the flags and the student of every cell of the first seed, so that mistakes show before anything runs.

    Raises:
        InputError: a cell cannot run; the message names it.
    """
    known: set[tuple[str, ...]] = set()  # commands and students that were checked already
    with TemporaryDirectory() as folder:
        trial = Lab([part], Path(folder), lab.data)
        for cell in all_cells(part, 1):
            _require_cell(cell, trial, known)


def _require_cell(cell: Cell, trial: Lab, known: set[tuple[str, ...]]) -> None:
    """Check one cell. The folders that its commands read are made, empty, since flags refuse missing ones."""
    for job in trial.commands(cell):
        if (job.command,) in known:
            continue
        known.add((job.command,))
        for path in re.findall(r"\$DIR(/[\w./-]+)", job.command.replace(job.out, "")):
            (trial.folder / path[1:]).mkdir(parents=True, exist_ok=True)
        try:
            config = parsed(trial.real(job.command))
            if isinstance(config, TrainConfig) and (config.student, config.student_args) not in known:
                known.add((config.student, config.student_args))
                arguments = json_object("--student-args", config.student_args)
                build_network(config.student, arguments, CLASSES, size=config.size or SIDE)
        except GiftwrapError as error:
            raise InputError(f"{cell.name} cannot run: {error}") from error


def all_cells(part: Part, seeds: int | None) -> list[Cell]:
    """The cells of a part, also those that depend on results of others: as they are after invented results."""
    known = cells_of(part, {}, None)
    outcome = {cell: float(number) for number, cell in enumerate(known)}
    return cells_of(part, outcome if any(grid.pick for grid in part.grids) else {}, seeds)


def parsed(command: str) -> Any:
    """The flags of a command.

    Raises:
        InputError: cells cannot run such a command, or it does not take these flags.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"run: expected a command as a shell reads it, found {command!r} ({error})") from error
    if not words:
        raise InputError("run: expected a command, found none")
    # `typed` would expand recipes with the images and the store, which do not exist yet.
    tables = {name: replace(PIPELINE[name], typed=tuple) for name in RUNS if name != "train"}
    tables["train"] = replace(TRAINER["train"], typed=without_more)
    if words[0] not in tables:
        program(words[0])
        return None
    try:
        return read_command(tables[words[0]], words[0], words).config
    except SystemExit as stopped:
        raise InputError(f"`giftwrap {words[0]}` does not take these flags: {command}") from stopped


def left_out(part: Part, data: Path | None, *, drawn: bool) -> str:
    """What is missing here for the cells of a part; empty if they can run.

    Args:
        part: the part.
        data: folder of the data sets; None if GIFTWRAP_DATA is not set.
        drawn: whether the suite draws its images and weights, and so needs no data.

    Raises:
        InputError: the part needs something of an unknown kind.
    """
    for need in part.needs:
        kind, _, name = need.partition(":")
        if kind == "data" and drawn:
            continue
        if kind == "module" and importlib.util.find_spec(name) is None:
            return f"{name} is not installed"
        if kind == "data" and data is None:
            return "GIFTWRAP_DATA is not set"
        if kind == "data" and data is not None and not (data / name).exists():
            return f"{data / name} is missing"
        if kind == "peer" and not (Path(os.environ.get(PEERS, "")) / name).is_dir():
            return f"{PEERS} does not name a folder with {name}/, its own environment"
        if kind not in ("module", "data", "peer"):
            raise InputError(f"part {part.name}: needs: expected module:NAME, data:PATH or peer:NAME, found {need!r}")
    return ""


def data_folder() -> Path | None:
    """The folder that GIFTWRAP_DATA names."""
    value = os.environ.get("GIFTWRAP_DATA")
    return Path(value) if value else None
