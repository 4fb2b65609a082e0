"""The folder of a run: its description, and what may change when the run is resumed."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from labelstore.command.config_file import to_toml
from labelstore.command.flags import changed, flags_of
from labelstore.durable.newfile import write_new, write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError, MismatchError
from labelstore.spec import Json, first_difference, require_same, shorten
from labelstore.version import __version__
from pipeline.config import json_object
from pipeline.images.manifest import Manifest
from pipeline.images.source_table import ImageOptions
from pipeline.networks.trained import Trained
from pipeline.networks.weights import state_digest
from trainer.checkpoint import elsewhere
from trainer.code_digests import code_of, layout_of
from trainer.config import TrainConfig
from trainer.file_names import CONFIG, FLAGS
from trainer.label_choices import CROP_FLAGS, TEACHER_FLAGS
from trainer.optimisers import optimiser_of
from trainer.run_config import RunConfig, trained_by
from trainer.schedules import SCHEDULES

if TYPE_CHECKING:
    from trainer.material import Material

FORMAT = 2  # of a run; format 1 had no digests of code and test images, and no random states of numpy and Python
VERSIONS = ("torch", "torchvision", "numpy", "numcodecs")
# Flags that do not identify a run: places, speed, and what the recorded identity of the store already contains.
NOT_THE_RUN = (
    "run_folder",
    "seeds",
    "ray",
    "workers",
    "gpus_per_worker",
    "json",
    "store",
    "more_stores",
    "more_images",
    "cache_dir",
    "store_cache_gib",
    "images",
    "images_format",
    "class_names",
    "test_images",
    "test_images_format",
    "test_class_names",
    "cache_gib",
    "checkpoint_every",
    "checkpoint_steps",
    "keep_every",
    "keep",
    "follow",
    "views",
    "decoder",
    "augmenter",
    "tensorboard",
    "skip_broken",
    "anyway",
    "log_every",
    "student_weights",
    *CROP_FLAGS,  # described by crops, labels and engine
    *TEACHER_FLAGS,
    "exact",
    "label_view",
)
# What may have changed when a run continues with --anyway: it affects the results, but the run still works.
CHANGES = {
    "code": "the code of the student has changed since the run started",
    "test": "these are not the test images with which the run started",
    "versions": "other versions than those with which the run started",
    "replay_renderer": "another renderer than the one with which the run started",
    "engine": "the teacher runs on another engine than the one with which the run started",
}


def made_of(
    config: TrainConfig, material: Material, student: nn.Module, test: Manifest | None, processes: int = 1
) -> dict[str, Json]:
    """Everything that determines the result of a run: equal descriptions give equal students.

    Args:
        config: configuration of the run, of one process.
        material: the training data.
        student: what it trains.
        test: the test images.
        processes: number of training processes.
    """
    plain = {name: value for name, value in config.in_effect().items() if name not in NOT_THE_RUN}
    size = material.loader.size
    # Differences are searched in this order, so that causes are reported before their consequences.
    described: dict[str, Json] = {
        "format": FORMAT,
        **{name: value for name, value in material.made_of.items() if name not in CHANGES},
        "run": plain
        | {
            "device": torch.device(config.render.device).type,
            "size": size,
            "threads": torch.get_num_threads(),
            "processes": processes,
            "test_resize": config.test_resize or size,
        },
        "student": {
            "layout": layout_of(student),
            **({"begins": state_digest(student.state_dict())} if config.student_weights else {}),
        },
        "loss": config.loss_to_json(),
        "optimizer": optimiser_of(config.optimiser).to_json(),
        "schedule": config.schedule.to_json(),
    }
    losses = [loss.name for loss in config.losses]
    described["code"] = code_of(student, config.student, *losses, config.optimiser.name)
    described["replay_renderer"] = dict(material.renderer)
    if "engine" in material.made_of:
        described["engine"] = material.made_of["engine"]
    described["versions"] = {name: version(name) for name in VERSIONS}
    if test:
        described["test"] = {"images": len(test), "skipped": list(test.skipped), "digest": test.digest}
    as_stored: dict[str, Json] = json.loads(json.dumps(described))
    return as_stored


def described_in(path: Path) -> Any:
    """The description of a run in its config.json; None if there is no file."""
    if not path.exists():
        return None
    try:
        made = json.loads(path.read_text())["made_of"]
        int(made["run"]["epochs"])
        form = made.get("format", 1)
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the config.json of a run, found another file; give another --run-folder"
        ) from error
    if form != FORMAT:
        raise InputError(
            f"{path}: expected a run of format {FORMAT}, found format {form}; continue it with the version of giftwrap "
            f"that started it, or give another --run-folder"
        )
    return made


def test_images_of(folder: Path) -> Path | None:
    """The test images with which a run started; None if there were none."""
    try:
        named = json.loads((folder / CONFIG).read_text())["made_with"]["test_images"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(named) if isinstance(named, str) else None


def test_source_of(folder: Path) -> ImageOptions:
    """The source options of a run's test images."""
    try:
        return ImageOptions(**json.loads((folder / CONFIG).read_text())["made_with"]["test_source"])
    except (OSError, ValueError, KeyError, TypeError):
        return ImageOptions()


def accepted(stored: Any, made: Mapping[str, Json], *, anyway: bool) -> Any:
    """The description of a run, updated with what may change; everything else must equal ``made``.

    Args:
        stored: description of the run.
        made: description of this call.
        anyway: whether other code, test images, versions, renderers and engines are accepted.

    Raises:
        InputError: when the number of epochs has changed, and the schedule or the evaluations do not allow that.
        MismatchError: when only code, test images and the like have changed, without ``anyway``.
    """
    taken = lengthened(elsewhere(stored, made), made)
    kept = {key: value for key, value in taken.items() if key not in CHANGES}
    if not anyway and not first_difference(kept, {key: made[key] for key in made if key not in CHANGES}):
        for key, what in CHANGES.items():
            if difference := first_difference({key: taken.get(key)}, {key: made.get(key)}):
                place, theirs, ours = difference
                raise MismatchError(
                    f"{what}: {place} was {shorten(theirs)} and is {shorten(ours)}; restore it, give "
                    f"another --run-folder, or continue with the change by --anyway, which {CONFIG} records"
                )
    return {**kept, **{key: made[key] for key in CHANGES if key in made}}


def lengthened(stored: Any, made: Mapping[str, Json]) -> Any:
    """The description of a run, with the new number of epochs if that does not affect the epochs trained so far.

    Raises:
        InputError: names the flag because of which the beginning of a run depends on its length.
    """
    ours: Any = made.get("run", {})
    theirs = stored.get("run", {})
    before, now = theirs.get("epochs", 0), ours.get("epochs", 0)
    if now <= before:
        return stored
    lengthened_schedules = [name for name, each in SCHEDULES.items() if each.can_be_lengthened]
    because = {
        f"--schedule {theirs['schedule']}": theirs["schedule"] not in lengthened_schedules,
        f"--eval-from {theirs['eval_from']}": theirs["eval_from"] > 0,
    }
    for flag, forbids in because.items():
        if forbids:
            raise InputError(
                f"--epochs {now}: the run started with {before}, and {flag} depends on the length of the whole run; "
                f"keep --epochs {before}, or give another --run-folder (a run of --schedule "
                f"{' or '.join(lengthened_schedules)} can be lengthened)"
            )
    return {**stored, "run": {**theirs, "epochs": now}}


def with_its_interval(config: TrainConfig) -> TrainConfig:
    """Keep the evaluation interval of a run that is continued, even if lengthened, unless a flag sets it."""
    stored = described_in(config.run / CONFIG)
    if stored is None or config.eval_every is not None or config.epochs < stored["run"]["epochs"]:
        return config
    return changed(config, eval_every=stored["run"].get("eval_every"))  # runs of generators have none


@dataclass(frozen=True, slots=True)
class Begun:
    """Values that a run keeps if flags leave them open.

    Attributes:
        views: number of views of the store that it plays; the store may have more by now.
        engine: engine of its teacher, if labels are made online.
    """

    views: int | None = None
    engine: Mapping[str, Any] | None = None


def begun_with(folder: Path) -> Begun:
    """The values with which the run in a folder started; empty if there is none."""
    stored = described_in(folder / CONFIG) or {}
    return Begun(stored.get("store", {}).get("views"), stored.get("engine"))


def kept_weights(epoch: int) -> str:
    """The name of the file with the weights after an epoch, counted from 1."""
    return f"epoch-{epoch:04d}.safetensors"


def trained_as(made: Mapping[str, Any], source: str) -> Trained:
    """The record for weights of a run, from its description.

    Args:
        made: description of the run, from ``made_of`` or config.json.
        source: its origin, for messages.

    Raises:
        InputError: when it is not the description of a run, or the run does not train a classifier.
    """
    if "objective" in made:
        raise InputError(f"{source}: expected a run that trains a student, found one that trains {trained_by(made)}")
    try:
        run, plan = made["run"], plan_of(made)
        identity = made["store"]["identity"] if "store" in made else made["crops"]
        normal = (identity["teacher"] or {}) if "store" in made else identity
        columns = made.get("labels", identity)
        record = {
            "version": __version__,
            "network": run["student"],
            "args": dict(json_object("--student-args", run["student_args"])),
            "size": run["size"],
            "mean": normal.get("mean"),
            "std": normal.get("std"),
            "resize": run["test_resize"],
            "interpolation": plan.get("interpolation"),
            "columns": columns["columns"],
            "classes": identity["classes"],
            "class_columns": columns.get("class_columns") or (),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source}: expected the description of a run, found another one ({error!r})") from error
    return Trained.of_json(record, source)


def plan_of(made: Mapping[str, Any]) -> Mapping[str, Any]:
    """The plan of the crops of a run, stored or fresh; empty if unknown."""
    crops = made["store"]["identity"] if "store" in made else made["crops"]
    return crops["plan"] or {}


def describe(
    config: RunConfig, made: Mapping[str, Json], student: nn.Module, flags: object | None = None
) -> list[Json]:
    """Write config.json of a new run; refuse to continue a different run.

    Args:
        config: of the run.
        made: description of this run.
        student: what it trains.
        flags: dataclass of the command's flags, if they are not those of `train`.

    Returns:
        The accepted changes since the run started: place, old value, new value.

    Raises:
        MismatchError: names the first difference between the run folder and this run.
    """
    path = config.run / CONFIG
    stored = described_in(path)
    if stored is not None and (theirs := trained_by(stored)) != (ours := trained_by(made)):
        raise MismatchError(
            f"--run-folder {config.run}: holds a run that trains {theirs}, and this one trains {ours}; give another "
            f"--run-folder"
        )
    if stored is None:
        write_new(path, _document(made, _made_with(config, student), []))
    write_flags(config, flags)
    if stored is None:
        return []
    same = accepted(stored, made, anyway=config.anyway)
    student_now: Any = made.get("student", {})
    alike = all(stored.get(key) == made.get(key) for key in ("store", "crops", "labels", "projector"))
    if alike and same.get("student", {}).get("layout") != student_now.get("layout"):
        raise MismatchError(
            f"the student has other weights than when the run started: names, shapes or types in its state dict "
            f"differ; "
            f"give the code and the arguments of {path} again, or another --run-folder"
        )
    advice = f"give the flags of {path}, or another --run-folder"
    require_same("run", same, dict(made), advice, holder="the folder", flags=flags_at(flags or config))
    theirs = elsewhere(stored, made)
    changes: list[Json] = []
    for key in (*CHANGES, "run"):
        if difference := first_difference({key: theirs.get(key)}, {key: made.get(key)}):
            place, was, now = difference
            changes.append({"at": place, "was": was, "is": now})
    return changes


def flags_at(config: object) -> dict[str, str]:
    """The flags of a command, by their place in the description of a run."""
    every = flags_of(type(config)).items()
    parts = {".".join(flag.path): f"--{flag.name}" for _, flag in every if len(flag.path) > 1}
    plan = {f"crops.plan.{key}": f"--{flag.name}" for key, flag in every}
    seed = {"crops.plan.seed": "--plan-seed" if "crops.plan.plan_seed" in plan else "--seed"}
    return {f"run.{key}": f"--{flag.name}" for key, flag in every} | parts | plan | seed


def write_flags(config: RunConfig, flags: object | None = None) -> None:
    """Write config.toml, the flags of the run in the format of --config, unless it exists."""
    path = config.run / FLAGS
    if not path.exists():
        write_new(path, to_toml(flags or config).encode())


def record_changes(config: RunConfig, made: Mapping[str, Json], changes: Sequence[Any], step: int) -> None:
    """Write the new description into config.json, and record the changes at ``step``."""
    path = config.run / CONFIG
    document = json.loads(path.read_text())
    changed = [*document.get("changed", ()), *({"step": step, **change} for change in changes)]
    write_over(path, _document(made, document["made_with"], changed), RUN)


def _document(made: Mapping[str, Json], where: Mapping[str, Json], changed: list[Json]) -> bytes:
    """The content of config.json."""
    return json.dumps(
        {"made_of": dict(made), "made_with": dict(where), **({"changed": changed} if changed else {})}, indent=2
    ).encode()


def _made_with(config: RunConfig, student: nn.Module) -> dict[str, Json]:
    """Information for readers of config.json, on which nothing depends."""
    kinds = {type(layer).__name__ for layer in student.modules()}
    norms: Json = [name for name in sorted(kinds) if "Norm" in name]
    return {
        "versions": {
            "giftwrap": __version__,
            "python": platform.python_version(),
        },
        **config.made_with,
        "norm_layers": norms,
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }


def _is_run(path: Path) -> bool:
    """Whether a file is the config.json of a run."""
    try:
        return described_in(path) is not None
    except InputError:
        return False


RUN = Proof("the config.json of a run", _is_run)
