"""Runs on disk: find their folders, read their descriptions, and group runs that differ only in their seed.

Nothing here imports torch, so that tables and pictures of runs are fast.
"""

from __future__ import annotations

import glob
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from labelstore.command.names import natural_key
from labelstore.errors import InputError, reason
from trainer.file_names import CONFIG, LOG

STORE_ROOT = "zarr.json"
# The parts of a description that are read here, and their types.
KINDS: Mapping[str, type[Any] | tuple[type[Any], ...]] = {
    **dict.fromkeys(("run", "versions", "store", "store.identity", "store.identity.engine"), dict),
    **dict.fromkeys(("crops", "crops.plan", "labels", "loss", "test"), dict),
    **dict.fromkeys(("store.identity.images", "crops.images", "run.batch_size"), (int, float)),
    **dict.fromkeys(("store.identity.manifest", "crops.manifest"), str),
}
MAY_BE_NULL = ("loss", "test")
AVERAGED = ("test_top1", "crops_per_second")
PLACES, MEASURED = ("epoch", "step"), ("loss", "lr", "test_top1", "test_top5", "test_loss", "crops_per_second")
# Parts of a description that do not count as differences: place and speed of the run.
_PLACE = ("versions", "replay_renderer", "format", "test", "engine")
_PLACE_FLAGS = ("seed", "threads", "processes", "device", "compile")
_PLACE_STORE = ("engine", "renderer", "block", "skipped")
# Values that follow from flags or from choices for a store; shown only if nothing else differs.
_FOLLOWS = ("student.", "code.", "loss.", "optimizer.", "schedule.", "store.", "labels.")
_CHOSEN = ("store.teacher.", "store.plan.", "store.encoding.", "store.dtype", "store.views", "labels.teacher.")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What the folder of a run holds.

    Attributes:
        folder: of the run.
        made_of: everything that determines the result of the run; empty if there is no config.json.
        made_with: the paths of its store and images.
        entries: entries of its log, one for each epoch.
    """

    folder: Path
    made_of: Mapping[str, Any]
    made_with: Mapping[str, Any]
    entries: Sequence[Mapping[str, Any]]

    @property
    def epochs(self) -> int:
        """Epochs of the whole run."""
        return int(self.flags.get("epochs", len(self.entries)))

    @property
    def epochs_done(self) -> int:
        """Number of trained epochs."""
        return int(self.entries[-1]["epoch"]) + 1 if self.entries else 0

    @property
    def finished(self) -> bool:
        """Whether all epochs are trained."""
        return self.epochs_done >= self.epochs

    @property
    def flags(self) -> Mapping[str, Any]:
        """The flags in effect, by key; phases take the place of the loss."""
        flags = dict(self.made_of.get("run") or {})
        if "phase" in flags:
            flags["loss"] = flags.pop("phase")
        return flags

    @property
    def stores(self) -> list[str]:
        """The stores that a run was trained from."""
        first = self.made_with.get("store")
        return [str(first), *map(str, self.made_with.get("more_stores") or ())] if first else []

    @property
    def top1(self) -> list[float]:
        """Test top-1 in percent, of each evaluation."""
        return [entry["test_top1"] for entry in self.entries if entry.get("test_top1") is not None]

    @property
    def test_digest(self) -> str | None:
        """Digest of the test images; None if there were none."""
        test = self.made_of.get("test")
        return json.dumps([test["digest"], test["skipped"]]) if test else None

    @property
    def steps_per_second(self) -> float | None:
        """Steps a second without evaluations, from rates, since epochs that were continued lack some time."""
        rates = [entry["crops_per_second"] for entry in self.entries if entry.get("crops_per_second")]
        if not rates:
            return None
        per_epoch = self.entries[-1]["step"] / self.epochs_done
        images = (self.made_of.get("crops") or _identity(self)).get("images")
        crops = images or per_epoch * self.flags.get("batch_size", 1)
        return float(per_epoch * len(rates) / sum(crops / rate for rate in rates))

    @property
    def plan_seed(self) -> int | None:
        """Seed of the plan of fresh crops: the run's seed unless it was given; None for stored crops."""
        seed: int | None = self.made_of.get("crops", {}).get("plan", {}).get("seed")
        return seed

    def settings(self) -> dict[str, Any]:
        """Everything in which two runs can differ except their seeds, by flag name or dotted name."""
        own = {key.replace("_", "-"): value for key, value in self.flags.items() if key not in _PLACE_FLAGS}
        own.setdefault("relabel", [])  # left out by a run without operators
        rest = {key: value for key, value in self.made_of.items() if key not in (*_PLACE, "run", "store")}
        labels = dict(rest.pop("labels", {}))
        of_images = labels.pop("store", None)  # this store has a label for each image, and no crops
        identity = _identity(self) or of_images or {}
        store = {key: value for key, value in identity.items() if key not in _PLACE_STORE}
        if identity.get("engine"):  # unknown for adopted labels
            store["dtype"] = identity["engine"].get("dtype")
        if "store" in self.made_of:
            store["views"] = self.made_of["store"].get("views")
        found = own | dict(_flat({"store": store, **rest, "labels": labels}))
        found.pop("crops.plan.seed", None)
        return found


def _identity(run: RunRecord) -> Mapping[str, Any]:
    """The identity of a run's store; empty if it has none."""
    return (run.made_of.get("store") or {}).get("identity") or {}


def _manifest(run: RunRecord) -> Any:
    """Digest of the images from which crops are made."""
    return (run.made_of.get("crops") or _identity(run)).get("manifest")


def _flat(value: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested objects, by their dotted names; a list is a leaf."""
    for key, each in value.items():
        if isinstance(each, dict):
            yield from _flat(each, f"{before}{key}.")
        else:
            yield f"{before}{key}", each


def find_runs(places: Sequence[Path], *, logs: bool = False) -> list[Path]:
    """The run folders at these places, each once, in natural order within each place.

    Args:
        places: folders of runs, folders that contain some at any depth, or patterns such as ``runs/*``.
        logs: whether a log without config.json counts as a run.

    Raises:
        InputError: when a place does not exist, matches nothing, or has no run.
    """
    found: dict[Path, Path] = {}
    for place in places:
        matches = [place] if place.exists() else [Path(name) for name in sorted(glob.glob(str(place)))]  # noqa: PTH207  an absolute pattern too
        if not matches:
            why = "matches nothing" if glob.has_magic(str(place)) else "no such folder"
            raise InputError(f"{place}: {why}; give the folder of a run, or a folder of runs")
        inside = [run for match in matches for run in _runs_in(match, logs=logs)]
        if not inside:
            raise InputError(f"{place}: expected the folder of a run, or a folder of runs, found none in it")
        for run in inside:
            found.setdefault(run.resolve(), run)
    return list(found.values())


def _runs_in(folder: Path, *, logs: bool) -> list[Path]:
    """The runs at or below a folder; folders inside stores and runs are not searched."""
    runs = []
    for name, folders, files in os.walk(folder):
        folders.sort(key=natural_key)
        if STORE_ROOT in files:
            folders.clear()
        elif (LOG in files and (logs or CONFIG in files)) or (CONFIG in files and _is_run(Path(name) / CONFIG)):
            runs.append(Path(name))
            folders.clear()
    return runs


def _is_run(path: Path) -> bool:
    try:
        return "made_of" in json.loads(path.read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def read_run(folder: Path) -> RunRecord:
    """What the folder of a run holds.

    Raises:
        InputError: when its files are not those of a run.
    """
    path = folder / CONFIG
    try:
        document = json.loads(path.read_text())
        made_of, made_with = dict(document["made_of"]), dict(document.get("made_with", {}))
        _require_description(made_of)
    except FileNotFoundError:
        made_of, made_with = {}, {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path}: expected the config.json of a run ({reason(error)})") from error
    entries = read_log(folder) if (folder / LOG).exists() or not made_of else []
    return RunRecord(folder=folder, made_of=made_of, made_with=made_with, entries=entries)


def _require_description(made_of: Mapping[str, Any]) -> None:
    """Refuse a description whose parts do not have the expected types, on which all readers rely.

    Raises:
        KeyError, TypeError, ValueError, OverflowError: for the first wrong part.
    """
    for place, kind in KINDS.items():
        value: Any = made_of
        for name in place.split("."):
            value = value.get(name) if isinstance(value, dict) else None
        absent = value is None and (place in MAY_BE_NULL or "." in place or place not in made_of)
        if not absent and not isinstance(value, kind):
            raise TypeError(f"{place}: expected another value than {value!r:.40}")
    if test := made_of.get("test"):
        str(test["digest"]), test["skipped"], int(test["images"])
    if int(made_of["run"]["epochs"]) < 0:
        raise ValueError("run.epochs: expected a number from 0 on")


def _is_entry(entry: Any) -> bool:
    """Whether a value is a log entry: an epoch, with numbers as measurements."""
    return (
        isinstance(entry, dict)
        and all(type(entry.get(name, 0)) is int and entry.get(name, 0) >= 0 for name in PLACES)
        and "epoch" in entry
        and all(isinstance(entry.get(name), int | float | None) for name in MEASURED)
        and all(math.isfinite(entry.get(name) or 0) for name in AVERAGED)
    )


def read_log(run: Path) -> list[dict[str, Any]]:
    """The entries of a run's log, one for each epoch.

    Raises:
        InputError: when the folder is not a run, or the run has not finished an epoch.
    """
    path = run / LOG
    try:
        entries = [json.loads(line) for line in path.read_text().splitlines() if line.endswith("}")]
    except (OSError, ValueError, RecursionError) as error:
        why = error.strerror if isinstance(error, OSError) else reason(error)
        raise InputError(f"{path}: expected the log of a run ({why}); give folders that `train --run` made") from error
    if not entries:
        raise InputError(f"{path}: expected a line an epoch, found none; the run has finished no epoch yet")
    wrong = next((number for number, entry in enumerate(entries) if not _is_entry(entry)), None)
    if wrong is not None:
        raise InputError(
            f"{path}: expected a line an epoch, with its number and measured numbers; found another in line {wrong + 1}"
        )
    return entries


@dataclass(frozen=True, kw_only=True, slots=True)
class RunGroup:
    """Runs that differ only in their seed.

    Attributes:
        runs: at least one.
        differences: options that differ between groups, by name; the names are the same in each group.
    """

    runs: Sequence[RunRecord]
    differences: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The folder of the run, or the common folder of the group's runs."""
        folders = [str(run.folder) for run in self.runs]
        return folders[0] if len(folders) == 1 else os.path.commonpath(folders) or "."


def grouped(runs: Sequence[RunRecord]) -> list[RunGroup]:
    """Group runs that differ only in their seed, in the order of the first run of each group."""
    alike: dict[str, list[RunRecord]] = {}
    for run in runs:
        settings = {**run.settings(), "test": run.test_digest}
        key = json.dumps(settings, sort_keys=True) if run.made_of else str(run.folder)
        alike.setdefault(key, []).append(run)
    order = {id(run): place for place, run in enumerate(runs)}
    parts = [part for group in alike.values() for part in _by_plan_seed(group)]
    groups = sorted(parts, key=lambda group: order[id(group[0])])
    firsts = [group[0] for group in groups]
    shown = [
        {**group[0].settings(), **_places(group[0], firsts), **({} if _plans_follow(group) else _plan_seed(group[0]))}
        for group in groups
    ]
    names = differing(shown)
    return [
        RunGroup(runs=group, differences={name: values.get(name) for name in names})
        for group, values in zip(groups, shown, strict=True)
    ]


def _plans_follow(group: Sequence[RunRecord]) -> bool:
    """Whether the plan of each run follows the run's seed, or the run has no plan."""
    return all(run.plan_seed in (None, run.flags.get("seed")) for run in group)


def _plan_seed(run: RunRecord) -> dict[str, Any]:
    """The given seed of a run's plan, as a setting."""
    return {"plan-seed": run.plan_seed}


def _by_plan_seed(group: list[RunRecord]) -> list[list[RunRecord]]:
    """Group runs that differ only in seeds by the plan's seed; one group if each plan follows its run's seed."""
    if _plans_follow(group):
        return [group]
    seeds = dict.fromkeys(run.plan_seed for run in group)
    return [[run for run in group if run.plan_seed == seed] for seed in seeds]


def differing(settings: Sequence[Mapping[str, Any]]) -> list[str]:
    """The names of differing options. Options that follow from others are left out unless they separate more groups.

    Args:
        settings: settings of each group.
    """
    every = dict.fromkeys(name for each in settings for name in each)
    found = [name for name in every if len({json.dumps(each.get(name)) for each in settings}) > 1]
    # A number of a loss or schedule that is equal wherever it is in effect follows from the choice of loss or schedule.
    numbers = [name for name in found if len({json.dumps(each[name]) for each in settings if name in each}) == 1]
    chosen = [name for name in found if name not in numbers and _is_chosen(name)]

    def told_apart(names: Sequence[str]) -> int:
        return len({json.dumps([each.get(name) for name in names]) for each in settings})

    for name in found:
        if name not in chosen and told_apart([*chosen, name]) > told_apart(chosen):
            chosen.append(name)
    return chosen


def _is_chosen(name: str) -> bool:
    """Whether a setting is an option of the run or of its store."""
    return not name.startswith(_FOLLOWS) or name.startswith(_CHOSEN)


def _places(run: RunRecord, groups: Sequence[RunRecord]) -> dict[str, Any]:
    """The folders of a run's images, which are easier to read than digests; only where the images differ."""
    found: dict[str, Any] = {}
    if len({_manifest(each) for each in groups}) > 1:
        found["images"] = run.made_with.get("images")
    if len({each.test_digest for each in groups}) > 1:
        found["test-images"] = run.made_with.get("test_images")
    return found
