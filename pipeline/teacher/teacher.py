"""The teacher: networks in eval mode that map crops to logits, the same bits every time on one engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from labelstore.errors import InputError, reason
from labelstore.format.columns import CropRows
from labelstore.spec import Json
from pipeline.device.faults import is_fault
from pipeline.networks.layout import memory_format, takes_channels_last
from pipeline.networks.load import load_network
from pipeline.networks.outputs import Logits
from pipeline.networks.trained import without_places
from pipeline.networks.weights import Weights
from pipeline.render.normalise import normalise
from pipeline.teacher.class_order import (
    CLASS_COLUMNS,
    TEACHER_CLASSES,
    Choice,
    check_classes,
    choose,
    require_known_columns,
)
from pipeline.teacher.engine.batches import Workload, require_weights_fit
from pipeline.teacher.engine.device import DTYPES, teacher_device
from pipeline.teacher.engine.ensemble import Ensemble
from pipeline.teacher.engine.folding import fold_batch_norms
from pipeline.teacher.engine.neighbours import require_independent
from pipeline.teacher.engine.padding import Padded
from pipeline.teacher.engine.precision import precision
from pipeline.teacher.engine.running import Engine, eager, enough_memory, make_engine
from pipeline.teacher.engine.spec import Member, TeacherSpec, every_key, make_members
from pipeline.teacher.labeller import Pending

__all__ = ["Member", "Teacher", "TeacherSpec", "make_members", "make_teacher", "stored_members"]

FOLDING_CROPS = PROBE_CROPS = 2
NOTHING_FOLDED = "--fold: no batch norm of the teacher follows a convolution alone, nothing is folded"


@dataclass(frozen=True, eq=False, kw_only=True)
class Teacher:
    """Networks ready to label crops, a `Labeller`; made by ``make_teacher``.

    Attributes:
        spec: what it was made from.
        run: what runs its networks.
        size: side S of the crops in pixels.
        selected: columns of the networks that are kept, in order; None keeps all.
        columns: number of columns C of a label.
        class_names: their class names, where known.
        class_columns: the column of each class folder in a label; empty where folder k has column k.
        identity: what the teacher is (P3).
        warnings: what the user should look at before trusting the labels.
        notes: which of the weights in its files it has, and which columns are the folders', where that was looked up.
    """

    spec: TeacherSpec
    run: Engine
    size: int
    selected: tuple[int, ...] | None
    columns: int
    class_names: tuple[str, ...] | None
    class_columns: tuple[int, ...]
    identity: Mapping[str, Json]
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def mean(self) -> tuple[float, float, float]:
        """Channel means of its normalisation, of pixels in [0, 1]."""
        return self.spec.mean

    @property
    def std(self) -> tuple[float, float, float]:
        """Channel standard deviations of its normalisation, of pixels in [0, 1]."""
        return self.spec.std

    @property
    def augments(self) -> bool:
        """It applies the plan's augmentations of normalised images."""
        return True

    @property
    def batch(self) -> int:
        """The largest number of crops that ``logits`` takes."""
        return self.run.batch

    @property
    def device(self) -> torch.device:
        """The device."""
        return self.run.device

    @property
    def engine(self) -> Mapping[str, Json]:
        """The engine (P4)."""
        return self.run.description

    @cached_property
    def _kept(self) -> Tensor | None:
        """`selected` on the device, copied once: a GPU would be waited for at every batch."""
        with torch.inference_mode(False):
            return None if self.selected is None else torch.tensor(self.selected, device=self.device)

    def logits(self, pixels: Tensor, rows: CropRows | None = None) -> Tensor:
        """Label crops.

        Args:
            pixels: uint8 ``[n, S, S, 3]``, n at most ``batch``; the rest of the batch is filled with zeros.
            rows: of the crops, for augmentations after the normalisation; None when there are none.

        Returns:
            float32 ``[n, C]`` on the CPU.

        Raises:
            BrokenLogitsError: when a logit is NaN or infinite; names the first.
        """
        return self.start(pixels, rows).result().cpu()

    def start(self, pixels: Tensor, rows: CropRows | None = None) -> Pending:
        """Begin to label crops, as ``logits`` does, and do not wait for a GPU; the logits stay on the device."""
        shape = (self.size, self.size, 3)
        count = len(pixels)
        if pixels.dtype != torch.uint8 or pixels.shape[1:] != shape or count > self.batch:
            raise InputError(
                f"crops: expected uint8 [at most {self.batch}, {', '.join(map(str, shape))}], "
                f"found {pixels.dtype} {list(pixels.shape)}"
            )
        if count < self.batch:
            padding = pixels.new_zeros(self.batch - count, *shape)
            pixels = torch.cat([pixels, padding])
        with enough_memory(self.batch):
            logits = self.run.logits(pixels, rows)[:count]
        if self._kept is not None:
            logits = logits.index_select(1, self._kept)
        return Pending(self.spec.name, logits)


def make_teacher(
    spec: TeacherSpec,
    *,
    size: int,
    classes: Sequence[str],
    flags: tuple[str, ...] = (TEACHER_CLASSES, CLASS_COLUMNS),
    work: Workload | None = None,
    pad_to: int | None = None,
) -> Teacher:
    """Load a teacher, check its columns against the class folders, and make it ready to run.

    Args:
        spec: which teacher, and how it is run.
        size: side S of the crops in pixels.
        classes: folder names in target order.
        flags: the flag that selects columns, and the one that keeps the others too, for messages.
        work: what it will be given, by which its batch is chosen where the spec has none.
        pad_to: side that normalised crops are padded to, for networks of that side; None: they are not padded.

    Raises:
        InputError: when there is no such teacher, or it cannot be run so.
    """
    work = work or Workload()
    device = teacher_device(spec.device, spec.dtype)
    if spec.threads is not None:
        torch.set_num_threads(spec.threads)
    require_weights_fit(spec, device)
    network, weights, folded = _load_folded(spec, len(classes), size, pad_to)
    with enough_memory(1):
        network = network.to(device, DTYPES[spec.dtype])
        spec, total = _lay_out(network, spec, device, size)
        plain = eager(network, spec, device, 1)
    chosen = _choose_columns(spec, _class_names(weights, total), total, classes, flags)
    with enough_memory(spec.batch or 1):
        require_independent(spec.name, network, plain.logits, size, spec.batch)
        run = make_engine(
            network,
            spec,
            device,
            size=size,
            folded=folded,
            crop_columns=work.crop_columns,
            block=work.block(chosen.count) if work.block else None,
        )
    return Teacher(
        spec=spec,
        run=run,
        size=size,
        selected=chosen.selected,
        columns=chosen.count,
        class_names=chosen.names,
        class_columns=chosen.folders,
        identity=_identity(spec, weights, chosen.selected, size, pad_to),
        warnings=(
            *(warning for found in weights for warning in found.warnings),
            *([NOTHING_FOLDED] if spec.fold and not folded else []),
            *chosen.warnings,
            *run.warnings,
        ),
        notes=(*(note for found in weights for note in found.notes), *chosen.notes),
    )


def stored_members(
    teacher: Mapping[str, Any],
    weights: Sequence[str],
    keys: Sequence[str] = (),
    args: Sequence[Mapping[str, Json]] = (),
) -> tuple[Member, ...]:
    """The members of a teacher by its identity in a store.

    Args:
        teacher: its identity.
        weights: of each member.
        keys: of each member's set of weights in its file, or one for all.
        args: of each member, or one for all, besides those in the identity.
    """
    members = teacher.get("members", [{**teacher, "share": 1.0}])
    count = len(members)
    if len(weights) != count:
        names = ", ".join(member["name"] for member in members)
        raise InputError(f"--weights: expected one for each network of the store ({names}), found {len(weights)}")
    for flag, given in (("--weights-key", keys), ("--teacher-args", args)):
        if len(given) not in {0, 1, count}:
            raise InputError(f"{flag}: expected one for each of {count} networks, found {len(given)}")
    more = list(args) * count if len(args) == 1 else args or [{}] * count
    return tuple(
        Member(name=member["name"], args={**member["args"], **own}, weights=file, share=member["share"], key=key)
        for member, file, key, own in zip(members, weights, every_key(keys, count), more, strict=True)
    )


def _load(spec: TeacherSpec, classes: int, size: int) -> tuple[nn.Module, list[Weights]]:
    """The network, in eval mode, float32, on the CPU; of several the ensemble. And the weights of each."""
    loaded = [
        load_network(member.name, member.args, member.weights, classes=classes, size=size, key=member.key)
        for member in spec.members
    ]
    networks: list[nn.Module] = [Logits(network).eval().requires_grad_(False) for network, _ in loaded]
    network = (
        networks[0] if len(networks) == 1 else Ensemble(networks, [each.share for each in spec.members], spec.products)
    )
    return network.eval(), [weights for _, weights in loaded]


def _load_folded(
    spec: TeacherSpec, classes: int, size: int, pad_to: int | None
) -> tuple[nn.Module, list[Weights], bool]:
    """The network, for crops of a side that are padded or not; its weights; whether batch norms were folded."""
    network, weights = _load(spec, classes, pad_to or size)
    if pad_to is not None:
        network = Padded(network, pad_to)
    with precision("ieee"):
        folded = spec.fold and bool(fold_batch_norms(network, _probe(spec, size)))
    return network, weights, folded


def _probe(spec: TeacherSpec, size: int) -> Tensor:
    """Images ``[n, 3, S, S]`` of random crops, float32."""
    crops = torch.randint(0, 256, (FOLDING_CROPS, size, size, 3), generator=torch.Generator().manual_seed(0))
    return normalise(crops.to(torch.uint8), spec.mean, spec.std, torch.float32, channels_last=False)


def _lay_out(network: nn.Module, spec: TeacherSpec, device: torch.device, size: int) -> tuple[TeacherSpec, int]:
    """Bring the network into a layout that it takes; the spec with that layout, and the network's columns."""
    columns = 0

    def trial(channels_last: bool) -> None:
        nonlocal columns
        network.to(memory_format=memory_format(channels_last))
        plain = eager(network, replace(spec, channels_last=channels_last), device, 1)
        # for a single crop, more tensors are views
        for count in range(1, min(spec.batch or PROBE_CROPS, PROBE_CROPS) + 1):
            columns = _count_columns(plain, spec, size, count)

    if spec.channels_last:
        spec = replace(spec, channels_last=takes_channels_last(trial))
    else:
        trial(False)
    return spec, columns


def _count_columns(plain: Engine, spec: TeacherSpec, size: int, count: int) -> int:
    """Columns of the network, from black crops."""
    crop = torch.zeros(count, size, size, 3, dtype=torch.uint8)
    try:
        logits: Any = plain.logits(crop)
    except Exception as error:  # a network may raise anything at a size that it does not take
        if is_fault(error):
            raise
        raise InputError(
            f"network {spec.name} gives no logits for crops of {size} x {size} px in {spec.dtype}: {reason(error)}"
        ) from error
    if logits.ndim != 2 or len(logits) != count:
        crops = "one crop" if count == 1 else f"{count} crops"
        raise InputError(f"network {spec.name}: expected logits [{count}, C] for {crops}, found {list(logits.shape)}")
    return int(logits.shape[1])


def _class_names(weights: Sequence[Weights], total: int) -> tuple[str, ...] | None:
    """The classes of the columns, where any of the weights names them."""
    known = [(found.source, found.class_names) for found in weights if found.class_names is not None]
    for source, names in known:
        if len(names) != total:
            raise InputError(f"weights {source} name {len(names)} classes, the network has {total} columns")
        if names != known[0][1]:
            first = next(column for column in range(total) if names[column] != known[0][1][column])
            raise InputError(
                f"weights {source}: expected the classes of {known[0][0]}, found {names[first]!r} instead of "
                f"{known[0][1][first]!r} in column {first}; the networks of a teacher need the same columns"
            )
    return known[0][1] if known else None


@dataclass(frozen=True, kw_only=True)
class _Columns:
    """The columns of a label: see ``Teacher``."""

    selected: tuple[int, ...] | None
    count: int
    names: tuple[str, ...] | None
    folders: tuple[int, ...]
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def _choose_columns(
    spec: TeacherSpec, names: tuple[str, ...] | None, total: int, classes: Sequence[str], flags: tuple[str, ...]
) -> _Columns:
    """The columns that the spec selects, checked against the class folders."""
    only = Choice(None) if spec.classes is None else choose(spec.classes, names, total, classes, flag=flags[0])
    kept = tuple(range(total)) if only.columns is None else only.columns
    kept_names = None if names is None else tuple(names[column] for column in kept)
    both = Choice(None)
    if spec.class_columns is not None:
        both = choose(spec.class_columns, kept_names, len(kept), classes, flag=CLASS_COLUMNS)
    elif spec.classes is None:
        require_known_columns(classes, names, total, flags)
    mapping, warning = both.mapping or only.mapping, None
    if both.columns is not None and both.mapping is None:
        warning = check_classes(both.columns, kept_names, classes, flags=(CLASS_COLUMNS,))
    elif mapping is None:
        warning = check_classes(kept, names, classes, flags=flags if only.columns is None else flags[:1])
    return _Columns(
        selected=only.columns,
        count=len(kept),
        names=kept_names,
        folders=both.columns or (),
        warnings=() if warning is None else (warning,),
        notes=() if mapping is None else (f"columns of the folders, by ImageNet's public list: {mapping.text}",),
    )


def _identity(
    spec: TeacherSpec,
    weights: Sequence[Weights],
    selected: tuple[int, ...] | None,
    size: int,
    pad_to: int | None,
) -> dict[str, Json]:
    """The identity of the teacher (P3); of ensembles, of each member."""
    members: list[dict[str, Json]] = [
        {
            "name": member.name,
            "args": dict(sorted(without_places(member.name, member.args).items())),
            "weights": found.digest,
        }
        for member, found in zip(spec.members, weights, strict=True)
    ]
    shares = [{**each, "share": member.share} for each, member in zip(members, spec.members, strict=True)]
    return {
        **(members[0] if len(members) == 1 else {"members": [dict(each) for each in shares]}),
        "mean": list(spec.mean),
        "std": list(spec.std),
        "columns": None if selected is None else list(selected),
        "size": size,
        **({} if pad_to is None else {"padded_to": pad_to}),
    }
