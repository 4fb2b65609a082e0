"""What cells of suites do: their commands in this process, each step once; and whether they can be done at all."""

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

from benchmarks.evidence.cells import DATA, FOLDER, Cell, Work, cells_of, commands_of
from benchmarks.evidence.lines import commit
from benchmarks.evidence.peers import PEERS
from benchmarks.evidence.suite import Part
from benchmarks.studies.in_process import run_build, run_synthesize, run_train
from labelstore.command.program import read_command
from labelstore.errors import GiftwrapError, InputError
from pipeline.__main__ import COMMANDS as PIPELINE
from pipeline.config import json_object
from pipeline.networks import build_network
from trainer.__main__ import COMMANDS as TRAINER
from trainer.__main__ import without_more
from trainer.config import TrainConfig

CLASSES, SIDE = 10, 32  # for which a student is constructed, to see whether it can be
RUNS: Mapping[str, Callable[..., Mapping[str, Any]]] = {
    "synthesize": run_synthesize,
    "build": run_build,
    "train": run_train,
}
OWN: Mapping[str, str] = {
    name: f"benchmarks.evidence.canaries:{name.replace('-', '_')}"
    for name in ("copy", "shift-labels", "shift-classes", "choose-classes", "untrained", "refused")
} | {name: f"benchmarks.evidence.peers:{name}" for name in ("plain", "ddranking")}
"""Programs of this folder that cells may run besides: name -> module:function, called with words; its values."""


class Lab:
    """Does cells.

    Args:
        parts: of the suite.
        folder: for sets, stores and runs.
        data: folder of the data sets; None where GIFTWRAP_DATA is not set.
    """

    def __init__(self, parts: Sequence[Part], folder: Path, data: Path | None) -> None:
        self.folder, self.data = folder, data
        self._parts = {part.name: part for part in parts}

    def commands(self, cell: Cell) -> list[Work]:
        """What a cell runs, in this order; its own command is the last."""
        return commands_of(self._parts[cell.part], dict(cell.choices), cell.seed)

    def place(self, out: str) -> Path:
        """The folder of a step."""
        return Path(self.real(out))

    def real(self, command: str) -> str:
        """A command with real folders, quoted as a shell reads them."""
        data = shlex.quote(str(self.data)) if self.data else DATA
        return command.replace(FOLDER, shlex.quote(str(self.folder))).replace(DATA, data)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Do a cell, or continue it; what is found, for its line."""
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

    def _do(self, work: Work, *, again: bool) -> Mapping[str, Any]:
        """Run a command; one whose folder is published whole is not run again."""
        place = self.place(work.out)
        if place.exists() and not again:
            return {}
        place.parent.mkdir(parents=True, exist_ok=True)
        name, *words = shlex.split(self.real(work.command))
        return program(name)(*words)


def program(name: str) -> Callable[..., Mapping[str, Any]]:
    """What runs the words of a command.

    Raises:
        InputError: for a name that no cell can run.
    """
    if name in RUNS:
        return RUNS[name]
    if name in OWN:
        module, _, function = OWN[name].partition(":")
        own: Callable[..., Mapping[str, Any]] = getattr(import_module(module), function)
        return own
    raise InputError(f"run: expected one of {', '.join([*RUNS, *OWN])}, found {name!r}")


def typed(command: str) -> str:
    """A cell's command as it is typed into a shell, in the root of this project."""
    name, _, words = command.partition(" ")
    if name == "refused":
        return f"giftwrap {words}  # is refused"
    if name not in OWN:
        return f"giftwrap {command}"
    module, _, function = OWN[name].partition(":")
    code = f"import sys; from {module} import {function}; {function}(*sys.argv[1:])"
    return f"python -c '{code}' {words}"


def result_of(found: Mapping[str, Any], place: Path) -> dict[str, Any]:
    """What a line has of a command: of a training the scores, and which test images they are of."""
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
    """Find a cell that cannot run before the first one starts, by its words and its network, of the first seed.

    Raises:
        InputError: names the cell.
    """
    known: set[tuple[str, ...]] = set()  # commands and networks that were found to be right
    with TemporaryDirectory() as folder:
        trial = Lab([part], Path(folder), lab.data)
        for cell in all_cells(part, 1):
            _require_cell(cell, trial, known)


def _require_cell(cell: Cell, trial: Lab, known: set[tuple[str, ...]]) -> None:
    """The same of one cell, whose folders are empty ones, since paths that are read must exist."""
    for work in trial.commands(cell):
        if (work.command,) in known:
            continue
        known.add((work.command,))
        for path in re.findall(r"\$DIR(/[\w./-]+)", work.command.replace(work.out, "")):
            (trial.folder / path[1:]).mkdir(parents=True, exist_ok=True)
        try:
            config = parsed(trial.real(work.command))
            if isinstance(config, TrainConfig) and (config.student, config.student_args) not in known:
                known.add((config.student, config.student_args))
                arguments = json_object("--student-args", config.student_args)
                build_network(config.student, arguments, CLASSES, size=config.size or SIDE)
        except GiftwrapError as error:
            raise InputError(f"{cell.name} cannot run: {error}") from error


def all_cells(part: Part, seeds: int | None) -> list[Cell]:
    """The cells of a part; where some depend on results, those of one outcome with the others."""
    known = cells_of(part, {}, None)
    outcome = {cell: float(number) for number, cell in enumerate(known)}
    return cells_of(part, outcome if any(grid.pick for grid in part.grids) else {}, seeds)


def parsed(command: str) -> Any:
    """The flags of a command.

    Raises:
        InputError: when it is none, or its flags do not go together.
    """
    try:
        words = shlex.split(command)
    except ValueError as error:
        raise InputError(f"run: expected a command as a shell reads it, found {command!r} ({error})") from error
    if not words:
        raise InputError("run: expected a command, found none")
    # A recipe becomes flags by the images and the store, which are not there yet; so words stay as they are typed.
    known = {**PIPELINE, "train": replace(TRAINER["train"], typed=without_more)}
    tables = {name: known[name] if name == "train" else replace(known[name], typed=tuple) for name in RUNS}
    if words[0] not in tables:
        program(words[0])
        return None
    try:
        return read_command(tables[words[0]], words[0], words).config
    except SystemExit as stopped:
        raise InputError(f"`giftwrap {words[0]}` does not take these flags: {command}") from stopped


def left_out(part: Part, data: Path | None, *, drawn: bool) -> str:
    """Why the cells of a part cannot run here: what is missing; empty where nothing is.

    Args:
        part: with what it needs.
        data: folder of the data sets, where there is one.
        drawn: whether images and weights are drawn, so that no data are needed.
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
