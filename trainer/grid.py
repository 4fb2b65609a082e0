"""The cells of a sweep: every combination of the values that a TOML file lists for flags of `build` and `train`.

All cells are checked here, before any starts; nothing here reads images, weights or stores.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from itertools import product
from pathlib import Path
from typing import Any

from labelstore.command.config_file import keys_of, read_document, read_value, takes_list, words_of
from labelstore.command.flags import Flag, flags_of, from_flags, meant
from labelstore.errors import InputError
from pipeline.build import recipe as build_recipe
from pipeline.config import BuildConfig
from pipeline.recipes import recipe_of
from pipeline.recipes.flags import without_replaced
from pipeline.recipes.setting import Flags, Setting
from trainer import recipes as train_recipe
from trainer.config import TrainConfig

CONFIGS: dict[str, Any] = {"build": BuildConfig, "train": TrainConfig}
# Placeholders in [train]: the store of the cell's build, and the images of that store.
STORE, IMAGES = "{store}", "{images}"
# Flags that the sweep sets itself, or with which a command would not run a cell.
TAKEN = {"build": ("store", "json", "dry_run", "metrics_port"), "train": ("run_folder", "json")}
MAX_NAME = 100  # characters of a folder name; file systems allow 255 bytes
_UNSAFE = re.compile(r"[^A-Za-z0-9._+-]+")


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One command of a sweep.

    Attributes:
        command: ``build`` or ``train``.
        name: name of its folder; unique among the tasks of the command.
        folder: folder of its store or run.
        values: values of its flags by key, including the folder.
        needs: folder of the store that must be built first; None for none.
    """

    command: str
    name: str
    folder: Path
    values: Mapping[str, Any]
    needs: Path | None = None

    @property
    def words(self) -> list[str]:
        """The command line, without the program name."""
        return [self.command, *words_of(self.values, flags_of(CONFIGS[self.command]))]

    @property
    def log(self) -> Path:
        """The file with the output of the command."""
        return self.folder.with_name(f"{self.name}.log")

    @property
    def done(self) -> Path:
        """The file whose existence marks the task as done."""
        return self.folder.with_name(f"{self.name}.done.json")

    @property
    def work(self) -> float:
        """The amount of work, comparable between tasks of the same command: views, or epochs of all seeds."""
        values = with_recipe(self.command, self.values)
        if self.command == "build":
            return float(values.get("views", 1))
        return float(values.get("epochs", 1)) * len(values.get("seeds") or (0,))


@dataclass(frozen=True, slots=True)
class _Part:
    """The flags of one command in a cell, and their parts of its name."""

    values: Mapping[str, Any]
    names: Sequence[str]


def read_grid(file: Path, folder: Path) -> list[Task]:
    """Read and check the tasks of a sweep: builds first, each store once.

    Args:
        file: the TOML file: tables ``build`` and ``train`` of flags, and any number of ``[[cell]]``.
        folder: folder of the sweep.

    Raises:
        InputError: names the cell with a flag or value that a command refuses.
    """
    document = read_document(file, str(file))
    if unknown := [name for name in document if name not in (*CONFIGS, "cell")]:
        tables = {name: name for name in (*CONFIGS, "cell")}
        raise InputError(
            f"{file}: expected [build], [train] and [[cell]], found {unknown[0]}{meant(unknown[0], tables)}"
        )
    rows = document.get("cell", [{}])
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{file}: cell: expected [[cell]], a table for each row, found another value")
    builds: dict[str, Task] = {}
    trains: dict[str, Task] = {}
    for number, row in enumerate(rows, 1):
        place = f"{file} [[cell]] {number}" if "cell" in document else str(file)
        for build, train in _combined(document, row, place):
            _add(build, train, folder, builds, trains, place)
    if not builds and not trains:
        raise InputError(f"{file}: expected flags in [build] or [train], found none")
    used = {task.needs for task in trains.values()}
    if builds and trains and used == {None}:
        raise InputError(f'{file} [train]: expected {STORE} in a flag, as in store = "{STORE}", found it in none')
    return [*(task for task in builds.values() if not trains or task.folder in used), *trains.values()]


def _combined(document: Mapping[str, Any], row: Mapping[str, Any], place: str) -> Iterator[tuple[_Part, _Part]]:
    """Every combination of the lists of values; flags of a row override those of the tables."""
    title = row.get("name")
    if title is not None and not isinstance(title, str):
        raise InputError(f"{place}: name: expected a string, found {title!r}")
    if unknown := [key for key in row if key not in ("name", *CONFIGS)]:
        raise InputError(f"{place}: expected name, build and train, found {unknown[0]}")
    parts = {}
    for command in CONFIGS:
        shared, own = (_table(source, command, place) for source in (document, row))
        common = {flag.key: (flag, raw) for flag, raw in shared}
        special = {flag.key: (flag, raw) for flag, raw in own}
        axes = []
        for flag, raw in {**common, **special}.values():
            values, several = _values(flag, raw, f"{place} [{command}]")
            named = several or (flag.key in special and not title)
            axes.append([(flag, value, named) for value in values])
        names = [title] if title and special else []
        parts[command] = [_part(choice, names) for choice in product(*axes)]
    return product(parts["build"], parts["train"])


def _table(source: Mapping[str, Any], command: str, place: str) -> list[tuple[Flag, Any]]:
    """The flags of a command in the file or in a row, with unparsed values."""
    table = source.get(command, {})
    if not isinstance(table, dict):
        raise InputError(f"{place}: {command}: expected a table of flags, found {table!r}")
    found = keys_of(table, CONFIGS[command], f"{place} [{command}]")
    for flag, _ in found:
        if flag.key in TAKEN[command]:
            raise InputError(f"{place} [{command}]: {flag.name}: the sweep sets it for each cell; leave it out")
    return found


def _values(flag: Flag, raw: Any, place: str) -> tuple[list[Any], bool]:
    """The values of a flag, and whether the file lists several.

    For flags whose value is itself a list, several values are a list of lists.
    """
    several = isinstance(raw, list) and (not takes_list(flag) or (bool(raw) and all(isinstance(v, list) for v in raw)))
    if several and not raw:
        raise InputError(f"{place}: {flag.name}: expected a value or a list of some, found an empty list")
    values = [read_value(each, flag, place) for each in (raw if several else [raw])]
    if len({json.dumps(value, default=str) for value in values}) < len(values):
        raise InputError(f"{place}: {flag.name}: expected different values, found one of them twice")
    return values, several


def _part(choice: Sequence[tuple[Flag, Any, bool]], names: Sequence[str]) -> _Part:
    """One combination of a command's flags; ``choice`` has for each whether it is part of the folder's name."""
    own = [f"{flag.name}={_short(value)}" for flag, value, named in choice if named]
    return _Part({flag.key: value for flag, value, _ in choice}, [*names, *own])


def _short(value: Any) -> str:
    """A value for the name of a folder; of a path the last component."""
    if isinstance(value, tuple):
        return "+".join(map(_short, value))
    text = str(value)
    return text.rpartition("/")[2] if "/" in text else text


def _add(
    build: _Part, train: _Part, folder: Path, builds: dict[str, Task], trains: dict[str, Task], place: str
) -> None:
    """Check the tasks of a cell, and add those that are new."""
    made: Task | None = None
    if build.values:
        key = _key(build.values)
        if key not in builds:
            builds[key] = _task("build", build, build.names, folder / "stores", builds)
            check(builds[key], f"{place} [build] {builds[key].name}")
        made = builds[key]
    if not train.values:
        return
    known = {STORE: made.folder, IMAGES: made.values.get("images", IMAGES)} if made else {}
    values = {name: _filled(value, known) for name, value in train.values.items()}
    needs = made.folder if made and STORE in _key(train.values) else None
    names = [*build.names, *(each for each in train.names if each not in build.names)] if needs else train.names
    key = _key(values)
    if left := [word for word in (STORE, IMAGES) if word in key]:
        raise InputError(f"{place} [train]: {left[0]} needs a build; expected flags in [build], found none")
    if made and values.get("labels", "stored") in ("stored", "image") and "store" not in values:
        raise InputError(f'{place} [train]: expected store = "{STORE}", the store of the cell\'s build, found no store')
    if key not in trains:
        task = _task("train", _Part(values, names), names, folder / "runs", trains, needs=needs)
        check(task, f"{place} [train] {task.name}")
        trains[key] = task


def _filled(value: Any, known: Mapping[str, Path]) -> Any:
    """A value with its placeholders replaced by the paths of the store and the images of the cell's build."""
    if isinstance(value, tuple):
        return tuple(_filled(each, known) for each in value)
    for word, path in known.items():
        if isinstance(value, str | Path) and word in str(value):
            value = type(value)(str(value).replace(word, str(path)))
    return value


def _key(values: Mapping[str, Any]) -> str:
    return json.dumps(values, sort_keys=True, default=str)


def _task(
    command: str, part: _Part, names: Sequence[str], parent: Path, others: Mapping[str, Task], needs: Path | None = None
) -> Task:
    """A task and its folder, whose name is made from its values: readable, safe on any file system, and unique."""
    name = ",".join(map(_safe, names)) or {"build": "store", "train": "run"}[command]
    digest = hashlib.sha256(_key(part.values).encode()).hexdigest()[:8]
    if len(name) > MAX_NAME:
        name = f"{name[:MAX_NAME]}-{digest}"
    if name in {other.name for other in others.values()}:
        name = f"{name}-{digest}"
    place = {"build": "store", "train": "run_folder"}[command]
    values = {**part.values, place: parent / name}
    return Task(command=command, name=name, folder=parent / name, values=values, needs=needs)


def _safe(part: str) -> str:
    """Part of a name, without characters that are special to a shell or a file system."""
    flag, equals, value = part.partition("=")
    return _UNSAFE.sub("-", flag).lstrip(".-") + equals + _UNSAFE.sub("-", value)


def check(task: Task, place: str) -> None:
    """Refuse flags that the command of the task would refuse.

    Raises:
        InputError: names the cell and the error.
    """
    config = CONFIGS[task.command]
    values = with_recipe(task.command, task.values)
    absent = [flag.name for flag in flags_of(config).values() if flag.default is MISSING and flag.key not in values]
    if absent:
        raise InputError(f"{place}: expected a value for {', '.join(absent)}, found none")
    try:
        from_flags(config, **values)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def require_known(tasks: Sequence[Task], file: Path) -> None:
    """Refuse unknown networks and optimisers before the first command starts.

    Raises:
        InputError: names the run or the store, and the error.
    """
    from pipeline.networks.table import constructor_of  # takes seconds to import
    from trainer.optimisers import optimiser_of

    for task in tasks:
        values = with_recipe(task.command, task.values)
        networks = [*values.get("teacher", ()), *([values["student"]] if "student" in values else [])]
        try:
            for name in networks:
                constructor_of(name)
            if task.command == "train":
                optimiser_of(from_flags(TrainConfig, **values).optimiser)
        except InputError as error:
            raise InputError(f"{file} [{task.command}] {task.name}: {error}") from error


def with_recipe(command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The flags of a task with those of its recipe, as far as they can be determined without its images."""
    name = values.get("recipe")
    if name is None:
        return dict(values)
    teacher = next(iter(values.get("teacher", ("",))), "")
    setting = Setting(
        images=1,
        classes=10,
        size=values.get("size") or 32,
        student=values.get("student", teacher),
        teacher=teacher,
        epochs=values.get("epochs"),
    )
    module: Any = {"build": build_recipe, "train": train_recipe}[command]
    flags: Flags = getattr(recipe_of(name), command)(setting)
    given = {f"--{choice}": values.get(choice) for choice in module.OWNED}
    return {**without_replaced(flags, given, module.OWNED), **values}
