"""Checkpoints that a run continues from bit for bit."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import pickle
import random
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof, may_go, remove
from labelstore.errors import DamagedError, InputError, MismatchError
from labelstore.spec import Json, first_difference

FORMAT = 1
DIGEST_BYTES = 32
LEFT = re.compile(r"\.(.+)\.[0-9a-f]{16}\.partial")  # as `labelstore.durable.newfile.new_version` names them


def save_checkpoint(path: Path, state: Mapping[str, Any], config: Mapping[str, Json]) -> None:
    """Replace the checkpoint at ``path`` atomically: a crash leaves the old or the new one, never a part.

    Args:
        path: the file.
        state: tensors, numbers, strings and None, in dictionaries, lists and tuples.
        config: the resolved configuration of the run; a run with another one cannot load the checkpoint.
    """
    content = io.BytesIO()
    torch.save({"format": FORMAT, "config": json.dumps(config), "state": dict(state)}, content)
    payload = content.getvalue()
    # torch.load does not detect most flipped bits, so the file ends with a digest of the bytes before it
    write_over(path, payload + hashlib.sha256(payload).digest(), CHECKPOINT)


def is_checkpoint(path: Path) -> bool:
    """Whether a file ends with the digest of the bytes before it."""
    data = path.read_bytes()
    return hashlib.sha256(data[:-DIGEST_BYTES]).digest() == data[-DIGEST_BYTES:]


CHECKPOINT = Proof("the checkpoint of a run", is_checkpoint)


def remove_left(folder: Path, proofs: Mapping[str, Proof]) -> None:
    """Remove temporary files of a run that killed processes left: complete, but not yet renamed.

    Args:
        folder: run folder, in which no other process trains.
        proofs: how each file is recognised, by file name.
    """
    for path in sorted(folder.glob(".*.partial")):
        left = LEFT.fullmatch(path.name)
        if left and left[1] in proofs and may_go(path, proofs[left[1]]):
            remove(path, proofs[left[1]])


def elsewhere(stored: Any, made: Any) -> Any:
    """The description of a run, for comparison when it is continued with other numbers of processes and threads."""
    ours, theirs = made.get("run", {}), stored.get("run", {})
    if theirs.get("processes") == ours.get("processes"):
        return stored
    return {**stored, "run": {**theirs, **{name: ours[name] for name in ("processes", "threads")}}}


def load_checkpoint(
    path: Path, config: Mapping[str, Json], accept: Callable[[Any, Any], Any] = elsewhere
) -> dict[str, Any]:
    """The state in a checkpoint, on the CPU, for a run with the resolved configuration ``config``.

    Args:
        path: the file.
        config: the resolved configuration of this run.
        accept: maps the checkpoint's configuration and this run's to the one that must equal this run's.

    Raises:
        InputError: there is no checkpoint, or it has another format.
        DamagedError: the file is corrupt.
        MismatchError: the run has another configuration; the message has the first difference.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise InputError(f"checkpoint {path}: {error.strerror}") from error
    payload, digest = data[:-DIGEST_BYTES], data[-DIGEST_BYTES:]
    if hashlib.sha256(payload).digest() != digest:
        raise DamagedError(
            f"checkpoint {path}: its bytes are not those that were written; "
            "remove it to start the run from its beginning"
        )
    try:
        stored = torch.load(io.BytesIO(payload), map_location="cpu", weights_only=True)
        form = stored["format"]
    except (RuntimeError, pickle.UnpicklingError, TypeError, KeyError) as error:
        raise InputError(f"checkpoint {path}: not a checkpoint of a run") from error
    if form != FORMAT:
        raise InputError(
            f"checkpoint {path}: expected format {FORMAT}, found {form}; "
            "continue the run with the version that began it"
        )
    made = json.loads(json.dumps(config))
    found = first_difference(accept(json.loads(stored["config"]), made), made)
    if found:
        place, theirs, ours = found
        raise MismatchError(
            f"different configuration ({place}): the checkpoint {path} has {theirs!r}, this run has {ours!r}; "
            "give this run the same, or another --run-folder"
        )
    state: dict[str, Any] = stored["state"]
    return state


def seed_all(seed: int) -> None:
    """Seed the global random number generators of torch, numpy and Python."""
    torch.manual_seed(seed)
    np.random.seed([seed & 0xFFFFFFFF, seed >> 32])  # noqa: NPY002  the one that networks draw from
    random.seed(seed)


def random_state(device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """The states of the global generators of torch, numpy and Python, and of ``device``."""
    state = {"cpu": torch.get_rng_state(), "numpy": _as_tensor(_numpy_state()), "python": _as_tensor(random.getstate())}
    if torch.device(device).type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random_state(state: Mapping[str, Tensor], device: torch.device | str = "cpu") -> None:
    """Restore a `random_state` of the same kind of device."""
    torch.set_rng_state(state["cpu"])
    name, key, *rest = _from_tensor(state["numpy"])
    np.random.set_state((name, np.array(key, np.uint32), *rest))  # noqa: NPY002
    version, words, gauss = _from_tensor(state["python"])
    random.setstate((version, tuple(words), gauss))
    if torch.device(device).type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)


def _numpy_state() -> list[Json]:
    """The state of numpy's global generator as plain values."""
    name, key, *rest = np.random.get_state()  # noqa: NPY002
    return [name, [int(word) for word in key], *rest]


def _as_tensor(value: Any) -> Tensor:
    """Plain values as the bytes of their JSON, which is exact for numbers of 64 bits."""
    return torch.frombuffer(bytearray(json.dumps(value).encode()), dtype=torch.uint8)


def _from_tensor(value: Tensor) -> Any:
    """Inverse of `_as_tensor`."""
    return json.loads(value.numpy().tobytes())


def packed(state: Mapping[str, Tensor]) -> dict[str, Json]:
    """A `random_state` as text, to send it to the first process and store it with those of the others."""
    return {name: base64.b64encode(value.numpy().tobytes()).decode() for name, value in state.items()}


def unpacked(state: Mapping[str, str]) -> dict[str, Tensor]:
    """Inverse of `packed`."""
    return {
        name: torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8) for name, text in state.items()
    }
