"""A run's folder: what the run was made of, its log, and the lock that keeps a second process out."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import torch
from torch import nn

from labelstore import __version__
from labelstore.errors import InputError, LeaseError
from labelstore.newfile import write_new, write_over
from labelstore.removing import Proof
from labelstore.spec import Json, require_same
from pipeline.config import json_object
from pipeline.manifest import Manifest
from pipeline.networks.trained import Trained
from trainer.checkpoint import elsewhere
from trainer.config import TrainConfig
from trainer.replay import Replay

VERSIONS = ("torch", "torchvision", "numpy", "zarr", "numcodecs")
# Where and how fast a run is made does not change what it is; what is recorded of the store has views and decoder.
NOT_THE_RUN = (
    "run",
    "json",
    "store",
    "images",
    "test_images",
    "cache_gib",
    "checkpoint_every",
    "checkpoint_steps",
    "follow",
    "views",
    "decoder",
    "tensorboard",
)
LOCK, LOG = ".lock", "log.jsonl"


@contextmanager
def hold(folder: Path) -> Iterator[None]:
    """Keep other processes out of a run's folder; the system lets go of it however this process ends.

    Raises:
        InputError: when there is something else than a run.
        LeaseError: when another process trains there.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder}: expected a folder, found a file in its place; give another --run") from error
    if not (folder / "config.json").exists() and any(path.name != LOCK for path in folder.iterdir()):
        raise InputError(f"{folder}: expected an empty folder or a run, found other files; give another --run")
    with _open_lock(folder / LOCK) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LeaseError(
                f"{folder}: another process trains in this folder; wait for it, or give another --run"
            ) from error
        yield


def _open_lock(path: Path) -> IO[bytes]:
    """The file that is locked; whatever is in it stays."""
    try:
        return os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "rb", buffering=0)
    except OSError as error:
        raise InputError(f"{path}: cannot be locked ({error.strerror}); give another --run") from error


def made_of(config: TrainConfig, replay: Replay, test: Manifest | None, processes: int = 1) -> dict[str, Json]:
    """Everything that decides what a run comes to: the same here means the same student.

    Args:
        config: of the run, as one process has it.
        replay: what it plays.
        test: the test images.
        processes: how many train together.
    """
    plain = {name: value for name, value in asdict(config).items() if name not in NOT_THE_RUN}
    identity = replay.store.identity
    # In this order differences are looked for: what others follow from comes first.
    described: dict[str, Json] = {
        "store": {"identity": identity.to_json(), "views": replay.order.views},
        "run": plain
        | {
            "device": torch.device(config.device).type,
            "view_order": config.play_order,
            "size": replay.size,
            "threads": torch.get_num_threads(),
            "processes": processes,
            "eval_every": config.evaluation_interval,
            "test_resize": config.test_resize or replay.size,
        },
        "loss": config.loss_spec().to_json(),
        "optimizer": config.optimiser_spec().to_json(),
        "schedule": config.schedule_spec().to_json(),
    }
    described["replay_renderer"] = dict(replay.source.renderer.id)
    described["versions"] = {name: version(name) for name in VERSIONS}
    if test:
        names = "\n".join(test.paths).encode()
        described["test"] = {"images": len(test), "paths": hashlib.sha256(names).hexdigest()}
    as_stored: dict[str, Json] = json.loads(json.dumps(described))
    return as_stored


def described_in(path: Path) -> Any:
    """What the run whose config.json this is was made of; None when there is none."""
    if not path.exists():
        return None
    try:
        made = json.loads(path.read_text())["made_of"]
        int(made["store"]["views"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path}: expected the config.json of a run, found another file; give another --run"
        ) from error
    return made


def test_images_of(folder: Path) -> Path | None:
    """The test images that a run began with; None when there were none."""
    try:
        named = json.loads((folder / "config.json").read_text())["made_with"]["test_images"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return Path(named) if isinstance(named, str) else None


def begun_with(folder: Path) -> int | None:
    """The views of a run that is continued: fixed when it began, though the store may have more by now."""
    stored = described_in(folder / "config.json")
    return stored["store"]["views"] if stored else None


def trained_as(made: Mapping[str, Any], source: str) -> Trained:
    """What the weights of a run are trained with, from what the run is made of.

    Args:
        made: as ``made_of`` gives it, or the run's config.json holds it.
        source: where it comes from, for messages.

    Raises:
        InputError: when it is no description of a run.
    """
    try:
        run, identity = made["run"], made["store"]["identity"]
        teacher, plan = identity["teacher"] or {}, identity["plan"] or {}
        record = {
            "version": __version__,
            "network": run["student"],
            "args": dict(json_object("--student-args", run["student_args"])),
            "size": run["size"],
            "mean": teacher.get("mean"),
            "std": teacher.get("std"),
            "resize": run["test_resize"],
            "interpolation": plan.get("interpolation"),
            "columns": identity["columns"],
            "classes": identity["classes"],
            "class_columns": identity.get("class_columns") or (),
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{source}: expected the description of a run, found another one ({error!r})") from error
    return Trained.of_json(record, source)


def describe(config: TrainConfig, made: Mapping[str, Json], student: nn.Module) -> None:
    """Write config.json of a new run; refuse to continue a run that was another one.

    Raises:
        MismatchError: names the first difference between the run folder and this run.
    """
    path = config.run / "config.json"
    stored = described_in(path)
    if stored is not None:
        advice = f"give the flags of {path}, or another --run"
        require_same("run", elsewhere(stored, made), dict(made), advice, holder="the folder")
        return
    kinds = {type(layer).__name__ for layer in student.modules()}
    norms: Json = [name for name in sorted(kinds) if "Norm" in name]
    where: dict[str, Json] = {
        "versions": {
            "giftwrap": __version__,
            "python": platform.python_version(),
        },
        "store": str(config.store),
        "images": str(config.images),
        "test_images": str(config.test_images) if config.test_images else None,
        "norm_layers": norms,
        "reported": "top-1 and top-5 in percent, after the last epoch and at the best evaluated epoch",
        "labels": "raw logits of the teacher, made after mixing",
        "parameters": sum(parameter.numel() for parameter in student.parameters()),
    }
    config.run.mkdir(parents=True, exist_ok=True)
    write_new(path, json.dumps({"made_of": dict(made), "made_with": where}, indent=2).encode())


@contextmanager
def open_log(
    folder: Path, epoch: int, warn: Callable[[str], object], *, tensorboard: bool = False
) -> Iterator[Callable[[Mapping[str, Any]], None]]:
    """What takes the entry of each epoch: a line of log.jsonl, and with ``tensorboard`` its numbers as scalars.

    Args:
        folder: of the run.
        epoch: the next one; what was said of it and of later ones, after the last checkpoint, is dropped.
        warn: told when epochs before it are missing.
        tensorboard: whether scalars are wanted.
    """
    path = folder / LOG
    kept = {number: line for number, line in lines_of(path).items() if number < epoch}
    if len(kept) < epoch:
        warn(f"{path}: expected a line for each of {epoch} epochs, found {len(kept)}; the others are not made again")
    if path.exists():
        content, others = path.read_bytes(), Proof("the log of a run", lambda found: found.is_file())
        if (lines := without(content, epoch)) != content:
            write_over(path, lines, others)  # a line that is not the run's is kept
    scalars = _scalars(folder / "tensorboard", epoch) if tensorboard else None

    def log(entry: Mapping[str, Any]) -> None:
        with path.open("a") as file:
            file.write(json.dumps(entry) + "\n")
        for name, value in entry.items():
            if scalars and name != "epoch" and value is not None:
                scalars.add_scalar(name, value, entry["epoch"])

    try:
        yield log
    finally:
        if scalars:
            scalars.close()


def _scalars(folder: Path, epoch: int) -> Any:
    """TensorBoard's writer."""
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise InputError(
            "--tensorboard: tensorboard is not installed; install the extra: pip install 'giftwrap[tensorboard]'"
        ) from error
    writer: Any = SummaryWriter
    return writer(folder, purge_step=epoch)


def without(content: bytes, epoch: int) -> bytes:
    """A log without what was said of ``epoch`` and later ones, and without a last line that a crash has cut off."""
    kept = []
    *lines, last = content.split(b"\n")
    for line in lines:
        try:
            if json.loads(line)["epoch"] >= epoch:
                continue
        except (ValueError, LookupError, TypeError):
            pass
        kept.append(line + b"\n")
    begin = b'{"epoch": '
    return b"".join(kept) + (b"" if last.startswith(begin) or begin.startswith(last) else last + b"\n")


def lines_of(path: Path) -> dict[int, str]:
    """The whole lines of a log, by their epochs."""
    lines: dict[int, str] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else ():
        try:
            lines[int(json.loads(line)["epoch"])] = line
        except (ValueError, KeyError, TypeError):  # cut off by a crash, or changed since
            continue
    return lines
