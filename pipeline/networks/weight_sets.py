"""The sets of weights in a checkpoint: finding them, the one that is meant, and the names that a network gives them."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from labelstore.errors import InputError
from pipeline.networks.file_kinds import shown

WRAPPED_BY = frozenset({"module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Of several sets a running mean is preferred, as in timm, then the names in this order, then the order of the file.
ORDER = (
    *("state_dict", "model", "model_state_dict", "model_state", "net", "network", "params", "weights", "module"),
    *("online", "encoder_q", "generator", "teacher", "student", "target", "encoder_k"),
)
AVERAGED = frozenset({"averaged", "average", "avg", "polyak", "swa", "shadow", *(f"{name}ema" for name in ORDER)})
COUNTERS = frozenset({"num_batches_tracked", "n_averaged", "num_updates", "initted", "step", "updates", "decay"})
_NOT_WEIGHTS = re.compile("optim(?!al)|sched|scaler|rng|exp_avg|momentum_buffer|hyper_param")
_DEPTH = 4
_MEMBERS = 64  # of a list
LISTED = 8


@dataclass(frozen=True, eq=False)
class WeightSet:
    """One set of weights within a file.

    Attributes:
        path: the keys that lead to it.
        tensors: by name.
        foreign: names of entries that are no dense tensors.
        outside: names of tensors beside it that belong to no part of the network.
    """

    path: tuple[str, ...]
    tensors: Mapping[str, Tensor]
    foreign: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """The value for ``--weights-key``; empty for the file itself."""
        return ".".join(self.path)

    @property
    def rank(self) -> tuple[bool, list[int]]:
        """Sets of a lower one are preferred."""
        words = [word for part in self.path for word in re.split("[^a-z0-9]+", part.lower())]
        averaged = any(word in AVERAGED or word.startswith("ema") for word in words)
        return not averaged, [_place(part) for part in self.path]


def _place(part: str) -> int:
    """The rank of a key in the order: its own, else that of its first known word, else last."""
    if part in ORDER:
        return ORDER.index(part)
    words = [ORDER.index(word) for word in re.split("[^a-z0-9]+", part.lower()) if word in ORDER]
    return len(ORDER) + min(words, default=len(ORDER))


@dataclass(frozen=True, eq=False)
class Choice:
    """The set that is taken.

    Attributes:
        chosen: the set, with the network's names where it fits.
        notes: what was read, where it was not the only way.
        warnings: what else might have been meant.
    """

    chosen: WeightSet
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


def choose_set(content: object, place: str, key: str | None, own: Mapping[str, Tensor] | None) -> Choice:
    """The set of weights that is meant.

    Args:
        content: what the file holds.
        place: the file, for messages.
        key: keys that lead to the set, joined by dots; None takes the first by ``WeightSet.rank``.
        own: the network's own tensors; sets that have all of their names come before all others. None when unknown.

    Raises:
        InputError: names what was found where there is no such set.
    """
    if isinstance(content, list | tuple) and any(isinstance(one, Mapping) for one in content):
        content = {str(index): one for index, one in enumerate(content)}
    if not isinstance(content, Mapping):
        raise InputError(f"{place}: expected a state dict, found {shown(type(content).__name__)}")
    sets = list(_sets(content))
    fitting: list[WeightSet] = []
    for shapes in (True, False) if own is not None else ():
        fitting = fitting or [part for whole in sets for part in parts_for(whole, own or {}, shapes=shapes)]
    largest = max((len(found.tensors) for found in sets), default=0)
    found = fitting or [one for one in sets if 2 * len(one.tensors) >= largest]
    if key:
        found = _named(key, found, content, place)
    if not found:
        raise InputError(
            f"{place}: expected a state dict of dense tensors (or one under a key such as state_dict or model), "
            f"found other values: {listed(map(str, content)) or 'nothing'}"
        )
    chosen = min(found, key=lambda one: one.rank)  # the first of equal ones
    if chosen.foreign:
        raise InputError(
            f"{place}: expected a state dict of dense tensors (or one under a key such as state_dict or model), "
            f"found other values: {listed(chosen.foreign)}"
        )
    return _with_notes(chosen, found, place, key)


def _with_notes(chosen: WeightSet, found: list[WeightSet], place: str, key: str | None) -> Choice:
    """The choice, with its notes and warnings."""
    notes, warnings = [], []
    others = [one.key or "the file itself" for one in found if one is not chosen]
    name = f"those under '{shown(chosen.key)}'" if chosen.path else "those of the file itself"
    if others and not key:
        warnings.append(
            f"{place}: holds {len(found)} sets of weights; taken: {name}; also there: {listed(others)}; "
            "--weights-key KEY takes another"
        )
    elif chosen.path:
        notes.append(f"{place}: {name} are taken")
    if chosen.outside:
        warnings.append(f"{place}: not of the network and left out: {listed(chosen.outside)}")
    return Choice(chosen, tuple(notes), tuple(warnings))


def _named(key: str, found: list[WeightSet], content: Mapping[Any, Any], place: str) -> list[WeightSet]:
    """The sets that a key names: exactly, or within it, or what it leads to though it does not fit."""
    exact = [one for one in found if one.key == key]
    within = [one for one in found if one.key.startswith(f"{key}.")]
    if exact or within:
        return exact or within
    held = next((value for path, value in _mappings(content) if ".".join(path) == key), None)
    if held is not None and (one := _set(held, tuple(key.split(".")), ())):
        return [one]
    keys = [one.key or "the file itself, without a key" for one in found]
    raise InputError(f"{place}: --weights-key {shown(key)}: no such set of weights; found: {listed(keys) or 'none'}")


def _mappings(content: Mapping[Any, Any], path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """All dicts within a dict, and in lists within it, by the keys that lead to them."""
    yield path, content
    if len(path) < _DEPTH:
        for key, value in content.items():
            if isinstance(key, str) and isinstance(value, list | tuple):
                value = {str(index): one for index, one in enumerate(value[:_MEMBERS]) if isinstance(one, Mapping)}
            if isinstance(key, str) and isinstance(value, Mapping):
                yield from _mappings(value, (*path, key))


def _sets(content: Mapping[Any, Any]) -> Iterator[WeightSet]:
    """All dicts of tensors, except the state of optimisers and the like, outermost first."""
    found = {
        path: held
        for path, held in _mappings(content)
        if not any(_NOT_WEIGHTS.search(part.lower()) for part in path)
        and any(isinstance(name, str) and is_plain(value) for name, value in held.items())
    }
    for path, held in found.items():
        inner = [other[len(path)] for other in found if len(other) > len(path) and other[: len(path)] == path]
        if one := _set(held, path, inner):
            yield one


def _set(held: Mapping[Any, Any], path: tuple[str, ...], inner: Iterable[str]) -> WeightSet | None:
    """A dict as a set of weights; ``inner`` are keys of sets within it, which do not belong to it."""
    tensors = {name: value.detach() for name, value in held.items() if isinstance(name, str) and is_plain(value)}
    foreign = tuple(str(name) for name in held if name not in tensors and name not in inner)
    return WeightSet(path, tensors, foreign) if tensors else None


def is_plain(value: Any) -> bool:
    """Whether this is a dense tensor."""
    return isinstance(value, Tensor) and value.layout == torch.strided and not value.is_quantized


def parts_for(whole: WeightSet, own: Mapping[str, Tensor], *, shapes: bool) -> list[WeightSet]:
    """The parts of a set that have all tensors of a network, with ``shapes`` of its shapes, with the network's names.

    A part is what follows one prefix (``model.``, ``backbone.``); wrappers may be anywhere in a name. Tensors
    after a prefix that the network lacks stay, so that they are refused where they are loaded.
    """
    wanted = plain_names(name for name in own if not is_counter(name))
    names = plain_names(whole.tensors)
    if not wanted or whole.foreign:
        return []
    anchor = max(wanted, key=lambda name: (name.count("."), len(name)))
    prefixes = [name[: -len(anchor)] for name in names if name == anchor or name.endswith(f".{anchor}")]
    parts = {
        prefix: part
        for prefix in prefixes
        if (part := {name.removeprefix(prefix): names[name] for name in names if name.startswith(prefix)}).keys()
        >= wanted.keys()
        and all(not shapes or _could_be(own[wanted[name]], whole.tensors[part[name]]) for name in wanted)
    }
    found = []
    for prefix, part in parts.items():
        apart = [other for other in parts if other != prefix and other.startswith(prefix)]
        kept = {
            wanted.get(name, name): whole.tensors[source]
            for name, source in part.items()
            if name in wanted
            or not (any(f"{prefix}{name}".startswith(other) for other in apart) or _counts(whole, source))
        }
        outside = tuple(
            source
            for name, source in names.items()
            if not any(name.startswith(other) for other in parts) and not _counts(whole, source)
        )
        steps = (prefix.rstrip("."),) if prefix and len(part) < len(names) else ()
        found.append(replace(whole, path=(*whole.path, *steps), tensors=kept, outside=outside if prefix else ()))
    return found


def plain_names(names: Iterable[str]) -> dict[str, str]:
    """Names without wrappers (``module.`` of DataParallel, ``_orig_mod.`` of torch.compile) -> the names.

    Names that would become equal all stay as they are.
    """
    whole = list(names)
    plain = [".".join(part for part in name.split(".") if part not in WRAPPED_BY) or name for name in whole]
    return dict(zip(plain if len(set(plain)) == len(whole) else whole, whole, strict=True))


def is_counter(name: str) -> bool:
    """Whether this counts batches, as batch norms do."""
    return name.rpartition(".")[2] == "num_batches_tracked"


def _counts(whole: WeightSet, name: str) -> bool:
    return name.rpartition(".")[2] in COUNTERS and whole.tensors[name].numel() == 1


def _could_be(own: Tensor, found: Tensor) -> bool:
    """Whether a tensor fits, or would with another number of classes."""
    return own.ndim == found.ndim and own.shape[1:] == found.shape[1:]


def listed(items: Iterable[object]) -> str:
    """The first of these, for a message of one line."""
    names = list(items)
    more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
    return ", ".join(shown(name) for name in names[:LISTED]) + more
