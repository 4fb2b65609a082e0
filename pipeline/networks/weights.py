"""Weights: reading them without executing anything, their digest (P3), loading them completely."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor, nn

from labelstore.durable.newfile import write_over
from labelstore.durable.removing import Proof
from labelstore.errors import InputError
from pipeline.networks.file_kinds import LARGEST_HEADER, is_safetensors
from pipeline.networks.torch_files import read_content, read_safetensors
from pipeline.networks.trained import RECORD_KEY, Trained, parsed
from pipeline.networks.weight_sets import WRAPPED_BY, choose_set, is_counter, listed, plain_names

CLASSES_KEY = "classes"
PREFIXES = tuple(f"{name}." for name in sorted(WRAPPED_BY))
RUNNING = (".running_mean", ".running_var")  # of batch norm
AVERAGES = "n_averaged"  # torch's AveragedModel counts its steps


@dataclass(frozen=True, eq=False)
class Weights:
    """The state dict of a trained network, as its file has it.

    Attributes:
        source: where it came from, for messages.
        tensors: name -> tensor in the file's dtype, without ``module.`` and ``num_batches_tracked``.
        class_names: the classes of the network's columns in order; None when unknown.
        notes: how the file was read, where it was not the only way.
        warnings: what else in the file might have been meant.
    """

    source: str
    tensors: Mapping[str, Tensor]
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Bring the names into their plain form."""
        tensors = dict(self.tensors)
        while tensors and (prefix := next((p for p in PREFIXES if all(n.startswith(p) for n in tensors)), "")):
            tensors = {name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
        tensors = {name: tensor for name, tensor in tensors.items() if not is_counter(name)}
        object.__setattr__(self, "tensors", tensors)

    @cached_property
    def digest(self) -> str:
        """SHA-256 of the tensors (P3), hex."""
        return state_digest(self.tensors)


def state_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 over (name, dtype, shape, bytes) of all tensors in name order, hex.

    Text and bytes are preceded by their length; lengths, the number of dimensions and dimensions are
    64-bit little-endian, values little-endian in row-major order.
    """
    digest = hashlib.sha256()

    def number(value: int) -> None:
        digest.update(value.to_bytes(8, "little"))

    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        for text in (name, str(tensor.dtype).removeprefix("torch.")):
            encoded = text.encode()
            number(len(encoded))
            digest.update(encoded)
        number(tensor.ndim)
        for length in tensor.shape:
            number(length)
        number(tensor.nbytes)
        if tensor.numel():  # an empty one has no view as bytes
            digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def read_weights(path: Path, *, key: str | None = None, own: Mapping[str, Tensor] | None = None) -> Weights:
    """The weights in a ``.safetensors`` file or a state dict saved by torch; nothing in it is executed.

    Args:
        path: the file; its content decides how it is read, not its name.
        key: of several sets of weights the one to take: its keys, joined by dots.
        own: the network's tensors: of several sets one that has them is taken, under the network's names.

    Raises:
        InputError: names what was found instead.
    """
    place = f"weights {path}"
    require_file(path)
    if is_safetensors(path):
        found = _read_safetensors(path)
        content: object = found.tensors
    else:
        content = read_content(path, place, "save the state dict alone: torch.save(network.state_dict(), FILE)")
        found = Weights(str(path), {})
    choice = choose_set(content, place, key, own)
    tensors = choice.chosen.tensors
    if own is None and all(name.startswith("module.") for name in tensors.keys() - {AVERAGES}):
        tensors = {name: tensor for name, tensor in tensors.items() if name != AVERAGES}
    return replace(found, tensors=tensors, notes=choice.notes, warnings=choice.warnings)


def require_file(path: Path) -> None:
    """Refuse weights that are not there."""
    if not path.exists():
        raise InputError(
            f"weights {path}: no such file; give a .safetensors file, a state dict saved by torch, "
            "torchvision:NAME or timm:pretrained"
        )


def _read_safetensors(path: Path) -> Weights:
    tensors, metadata = read_safetensors(path, f"weights {path}")
    names = None
    if RECORD_KEY in metadata:
        names = parsed(metadata[RECORD_KEY], str(path)).column_names
    elif CLASSES_KEY in metadata:
        try:
            names = tuple(str(name) for name in json.loads(metadata[CLASSES_KEY]))
        except (ValueError, TypeError) as error:
            raise InputError(f"weights {path}: metadata {CLASSES_KEY!r} is not a JSON list: {error}") from error
    return Weights(str(path), tensors, names)


def load_weights(network: nn.Module, weights: Weights) -> None:
    """Copy the weights into the network; every tensor must be there, fit, and be wanted.

    Raises:
        InputError: lists missing and unexpected names and other shapes.
    """
    own = {name: tensor for name, tensor in network.state_dict().items() if not is_counter(name)}
    names = plain_names(own)
    found = {names.get(name, source): weights.tensors[source] for name, source in plain_names(weights.tensors).items()}
    problems = {
        "missing": [name for name in own if name not in found],
        "unexpected": [name for name in found if name not in own],
        "different": [
            f"{name} (network {_kind(own[name])}, weights {_kind(found[name])})"
            for name in own
            if name in found and not _fits(own[name], found[name])
        ],
    }
    if any(problems.values()):
        text = "; ".join(f"{kind}: {listed(names)}" for kind, names in problems.items() if names)
        raise InputError(
            f"weights {weights.source} do not fit the network {type(network).__name__}: {text}; {_advice(own, found)}"
        )
    network.load_state_dict(found, strict=False)  # only counters can be missing


def _advice(own: Mapping[str, Tensor], found: Mapping[str, Tensor]) -> str:
    """A remedy for weights that do not fit: the network's arguments, if it has the layers of the weights."""
    ours, theirs = ({name for name in each if name.endswith(RUNNING)} for each in (own, found))
    flags = "--teacher-args or --student-args"
    if own.keys() - ours == found.keys() - theirs:
        if ours != theirs:
            norm = "batch" if theirs else "instance"
            return f'only the norm differs: give the network\'s arguments by {flags}, such as \'{{"norm": "{norm}"}}\''
        if all(tensor.ndim == found[name].ndim for name, tensor in own.items()):
            return f"only sizes differ: give the network's arguments by {flags}, such as '{{\"width\": 64}}', or --size"
    return f"check the network's name, its arguments ({flags}) and --size"


def _fits(own: Tensor, found: Tensor) -> bool:
    return own.shape == found.shape and own.is_floating_point() == found.is_floating_point()


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {list(tensor.shape)}"


def head_classes(network: nn.Module, classes: int, weights: Weights) -> int | None:
    """How many classes the weights were trained for, if that is the only reason why they do not fit.

    ``network`` was built for ``classes``: the tensors of its head are those whose shapes differ, in their
    first dimension only. None when all fit, or something else differs too.
    """
    counts = set()
    for name, own in network.state_dict().items():
        found = weights.tensors.get(name)
        if found is None or own.shape == found.shape:
            continue
        if not found.ndim or own.shape[:1] != (classes,) or own.shape[1:] != found.shape[1:]:
            return None
        counts.add(found.shape[0])
    return counts.pop() if len(counts) == 1 else None


def save_weights(
    state_dict: Mapping[str, Tensor],
    path: Path,
    *,
    classes: Sequence[str] | None = None,
    trained: Trained | None = None,
) -> None:
    """Write a state dict as ``.safetensors``, whole or not at all.

    Args:
        state_dict: the tensors.
        path: the file; weights of the same network in it are replaced.
        classes: class names of its columns, where nothing more is known.
        trained: what it was trained with, its classes among them.

    Raises:
        InputError: when there is a file that holds no weights of this network.
    """
    content = packed(state_dict, classes, trained)
    write_over(path, content, weights_like(content))


def packed(state_dict: Mapping[str, Tensor], classes: Sequence[str] | None, trained: Trained | None = None) -> bytes:
    """The bytes of a state dict as ``.safetensors``."""
    # One key at most: safetensors writes several in an order that changes from call to call.
    metadata = None if classes is None else {CLASSES_KEY: json.dumps(list(classes))}
    if trained is not None:
        metadata = {RECORD_KEY: json.dumps(trained.to_json())}
    # clones: safetensors refuses tensors that share memory
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in state_dict.items()}
    content: bytes = save(tensors, metadata)
    return content


def weights_like(content: bytes) -> Proof:
    """The proof of a file of weights of the same network: all but the numbers in it is the same.

    Such a file may be of another version, also of one that did not record what weights were trained with.
    """
    ours = _Outline.of(content[: 8 + int.from_bytes(content[:8], "little")])

    def holds(path: Path) -> bool:
        size = path.stat().st_size
        with path.open("rb") as file:
            first = file.read(8)
            length = int.from_bytes(first, "little")
            if length > min(LARGEST_HEADER, size - 8):
                return False
            try:
                theirs = _Outline.of(first + file.read(length))
            except (ValueError, TypeError, AttributeError, RecursionError, InputError):
                return False
        same = (theirs.tensors, theirs.names) == (ours.tensors, ours.names)
        return same and size - theirs.length == len(content) - ours.length and theirs.record in (None, ours.record)

    return Proof("weights of the same network", holds)


@dataclass(frozen=True)
class _Outline:
    """The header of a ``.safetensors`` file: its tensors, the classes, and what it was trained with."""

    length: int
    tensors: Mapping[str, Any]
    names: tuple[str, ...] | None
    record: Trained | None

    @classmethod
    def of(cls, head: bytes) -> _Outline:
        """Of the first bytes; ValueError or InputError when it has other metadata than this module writes."""
        tensors = json.loads(head[8:])
        metadata = tensors.pop("__metadata__", None) or {}
        record, names = None, None
        if RECORD_KEY in metadata:
            record = replace(parsed(metadata.pop(RECORD_KEY), ""), version=None)
            names = record.column_names
        elif CLASSES_KEY in metadata:
            names = tuple(map(str, json.loads(metadata.pop(CLASSES_KEY))))
        if metadata:
            raise ValueError(f"metadata {', '.join(metadata)} of another tool")
        return cls(len(head), tensors, names, record)
