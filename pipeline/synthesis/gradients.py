"""A teacher through which gradients reach images: its networks one by one, with the statistics of their batch norms.

The same teacher labels crops elsewhere (`pipeline.teacher.teacher`), whose checks and whose choice of columns are used
here. It is run otherwise: with gradients, by autocast in bfloat16, and compiled as a graph that has a backward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor, nn

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.config import EngineOptions, TeacherOptions, require_labels
from pipeline.networks.layout import memory_format
from pipeline.render.normalise import normalise
from pipeline.synthesis.method import Setting
from pipeline.synthesis.statistics import PROBE_IMAGES, Measured, Statistics
from pipeline.synthesis.teaching import teacher_spec
from pipeline.teacher.engine.compiling import CompileError, compiled_with_gradients, compilers
from pipeline.teacher.engine.device import describe_engine
from pipeline.teacher.engine.ensemble import Ensemble
from pipeline.teacher.engine.precision import precision
from pipeline.teacher.engine.spec import MAX_RELATIVE_ERROR, TeacherSpec
from pipeline.teacher.teacher import Teacher, make_teacher

Run: TypeAlias = Callable[[Tensor], tuple[Tensor, Sequence[tuple[Tensor, Tensor]]]]


@dataclass(frozen=True, slots=True, eq=False)
class Seen:
    """The output of one network for a batch.

    Attributes:
        share: of its logits in the teacher's.
        logits: float32 ``[n, C]``, the columns that the teacher keeps.
        statistics: of what its batch norms are given.
    """

    share: float
    logits: Tensor
    statistics: Statistics


@dataclass(frozen=True, kw_only=True, eq=False)
class Networks:
    """The networks of a teacher; made by `make_networks`.

    Attributes:
        teacher: whose they are.
        measured: the networks.
        fast: the same, compiled where the flags want that.
        batch: number of images that these take.
        selected: the columns that the teacher keeps, int64 on the device; None: all.
        dtype: what convolutions and products are computed in.
        engine: what runs them (P4).
    """

    teacher: Teacher
    measured: tuple[Measured, ...]
    fast: tuple[Run, ...]
    batch: int
    selected: Tensor | None
    dtype: torch.dtype
    engine: Mapping[str, Json]

    @property
    def device(self) -> torch.device:
        """The device of the networks."""
        return self.teacher.device

    def exact(self) -> AbstractContextManager[None]:
        """A context for all computation with them: products in the requested precision, deterministic algorithms."""
        return precision(self.teacher.spec.products)

    def columns(self, targets: Tensor) -> Tensor:
        """The columns of the logits for some classes, int64 ``[n]``."""
        folders = self.teacher.class_columns
        return torch.tensor(folders, device=targets.device)[targets] if folders else targets

    def images(self, pixels: Tensor) -> Tensor:
        """Crops, uint8 ``[n, S, S, 3]``, as the networks take them: normalised, float32 ``[n, 3, S, S]``."""
        mean, std = self.teacher.mean, self.teacher.std
        return normalise(pixels.to(self.device), mean, std, torch.float32, channels_last=False)

    def see(self, images: Tensor, *, fast: bool = False) -> list[Seen]:
        """The outputs of each network for normalised images, float32 ``[n, 3, S, S]``.

        Args:
            images: any number.
            fast: use the compiled networks, where there are as many images as these were compiled for.
        """
        images = images.contiguous(memory_format=memory_format(self.teacher.spec.channels_last))
        runs: Sequence[Run] = self.fast if fast and len(images) == self.batch else self.measured
        found = []
        for member, run in zip(self.teacher.spec.members, runs, strict=True):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not torch.float32):
                logits, statistics = run(images)
            logits = logits.float()
            kept = logits if self.selected is None else logits.index_select(1, self.selected)
            found.append(Seen(member.share, kept, statistics))
        return found


def make_networks(setting: Setting, size: int, batch: int) -> Networks:
    """Load the networks that the flags name.

    Args:
        setting: of the method.
        size: side of the images in pixels.
        batch: images of most calls.

    Raises:
        InputError: when there are none such, they do not fit, have no batch norms, or cannot be run so.
    """
    require_gradients(setting.config.teacher, setting.config.engine)
    spec = replace(teacher_spec(setting, size), batch=batch)
    plain = replace(spec, dtype="tf32" if spec.dtype == "tf32" else "float32", compile="off")
    loaded = make_teacher(plain, size=size, classes=setting.manifest.classes)
    setting.console.report(loaded.notes, loaded.warnings)
    network = loaded.run.network
    parts: list[nn.Module] = [*network.networks] if isinstance(network, Ensemble) else [_module(network)]
    probe = torch.zeros(PROBE_IMAGES, 3, size, size, device=loaded.device)
    with precision(plain.products):
        measured = tuple(Measured(each.name, part, probe) for each, part in zip(spec.members, parts, strict=True))
    dtype = torch.bfloat16 if spec.dtype == "bfloat16" else torch.float32
    described = replace(spec, channels_last=loaded.spec.channels_last)
    selected = None if loaded.selected is None else torch.tensor(loaded.selected, device=loaded.device)
    networks = Networks(
        teacher=loaded, measured=measured, fast=measured, batch=batch, selected=selected, dtype=dtype, engine={}
    )
    fast, versions = _compile(networks, spec, torch.zeros(batch, 3, size, size, device=loaded.device), setting)
    found = describe_engine(described, loaded.device, batch, folded=False, compilers=versions)
    return replace(networks, fast=fast, engine=found)


def require_gradients(teacher: TeacherOptions, engine: EngineOptions) -> None:
    """Refuse flags with which no gradient reaches the images, or no statistics are left."""
    if teacher.labeller is not None:
        raise InputError(
            f"--labeller {teacher.labeller}: expected networks, through which sre2l needs gradients, found a labeller; "
            f"give --teacher and --weights"
        )
    require_labels(teacher)
    if engine.fold:
        raise InputError(
            "--fold: sre2l fits images to the statistics of batch norms, which folding removes; leave it out"
        )
    if engine.cuda_graph:
        raise InputError("--cuda-graph: replays labels, and sre2l needs gradients; leave it out, or take --compile on")
    if engine.dtype == "float16":
        raise InputError("--dtype float16: gradients of images vanish in it; give --dtype bfloat16, tf32 or float32")


def _module(network: object) -> nn.Module:
    if not isinstance(network, nn.Module):
        raise TypeError(f"expected an uncompiled network, found {type(network).__name__}")
    return network


def _require_alike(plain: Networks, compiled: Networks, example: Tensor) -> None:
    """Refuse compiled networks whose logits or statistics differ by more than another order of summation explains."""
    images = torch.randn(example.shape, generator=torch.Generator().manual_seed(0)).to(example.device)
    images = images.requires_grad_() * 1  # computed, as those of steps are, or they would compile again
    band = MAX_RELATIVE_ERROR["bfloat16" if plain.dtype is torch.bfloat16 else plain.teacher.spec.dtype]
    with plain.exact():
        for expected, found in zip(plain.see(images), compiled.see(images, fast=True), strict=True):
            values = [(expected.logits, found.logits)]
            for ours, theirs in zip(expected.statistics, found.statistics, strict=True):
                values += zip(ours, theirs, strict=True)
            values = [(ours.detach(), theirs.detach()) for ours, theirs in values]
            worst = max(float((b - a).abs().max() / a.abs().max().clamp(min=1e-12)) for a, b in values)
            if not worst <= band:
                raise CompileError(
                    f"the compiled network gives other logits or statistics: they differ by {worst:.1e} of the largest "
                    f"(at most {band:.0e})"
                )


def _compile(
    networks: Networks, spec: TeacherSpec, example: Tensor, setting: Setting
) -> tuple[tuple[Run, ...], Mapping[str, Json] | None]:
    """The compiled networks, and the versions of the compilers; unchanged networks and None if not compiled."""
    if spec.compile == "off":
        return networks.measured, None
    try:
        versions = compilers(networks.device)
        with networks.exact(), torch.autocast(example.device.type, networks.dtype, networks.dtype is torch.bfloat16):
            images = example.contiguous(memory_format=memory_format(networks.teacher.spec.channels_last))
            fast = tuple(
                compiled_with_gradients(each, images, name=f"the network {member.name}")
                for each, member in zip(networks.measured, spec.members, strict=True)
            )
        _require_alike(networks, replace(networks, fast=fast), example)
    except CompileError as error:
        if spec.compile == "require":
            raise
        setting.console.warn(f"--compile on: the teacher runs uncompiled, which is slower: {error}")
        return networks.measured, None
    return fast, versions
