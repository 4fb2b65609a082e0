"""The networks of a teacher, and how they run: a frozen dataclass."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from labelstore.errors import InputError
from labelstore.spec import Json
from pipeline.networks.normalisation import IMAGENET_MEAN, IMAGENET_STD, require_normalisation

DTypeName = Literal["float32", "bfloat16", "float16"]
EngineDType = Literal["float32", "tf32", "bfloat16", "float16"]
# Largest error, as a share of the largest logit, that another order of summation explains. TF32 and float16 round to as
# many bits.
MAX_RELATIVE_ERROR: Mapping[str, float] = {"float32": 2e-3, "tf32": 1e-2, "bfloat16": 5e-2, "float16": 1e-2}
CompileMode = Literal["off", "on", "require"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One network of a teacher.

    Attributes:
        name: network, as ``build_network`` takes it.
        weights: a file, ``torchvision:ENUM`` or ``timm:pretrained``.
        args: keyword arguments of its constructor.
        share: of its logits in the teacher's; those of all members sum to 1.
        key: of several sets of weights in the file, the one to take; None takes the usual one, which is reported.
    """

    name: str
    weights: str
    args: Mapping[str, Json] = field(default_factory=dict)
    share: float = 1.0
    key: str | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class TeacherSpec:
    """A teacher, and how it runs.

    Attributes:
        members: its networks; several make an ensemble.
        classes: columns to keep, as ``select_columns`` takes them; None keeps all.
        class_columns: of those that are kept, the columns of the class folders, likewise; None if all are.
        mean: channel means of the pixels in [0, 1]; see ``require_normalisation``.
        std: channel standard deviations of the pixels in [0, 1].
        plan: means and standard deviations of the images that the plan's augmentations of normalised images (DSA) work
            on, where they are others than ``mean`` and ``std``.
        plan_size: side of the crops that the plan was drawn for, where the teacher takes another one.
        dtype: precision of weights and activations; float32 means float32, and tf32 float32 with products in TF32.
        batch: crops a batch; fewer are padded, so that the shape never changes. None finds one that memory takes.
        device: "cpu", "cuda" or "cuda:N".
        threads: CPU threads of torch; None leaves torch's number.
        channels_last: memory format of weights and activations, where all networks take it; else contiguous.
        fold: fold batch norms into the layers before them.
        compile: by torch.compile; "on" runs uncompiled, with a warning, where that fails, "require" refuses to.
        cuda_graph: replay the batch as one CUDA graph.
    """

    members: tuple[Member, ...]
    classes: str | None = None
    class_columns: str | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    plan: tuple[tuple[float, ...], tuple[float, ...]] | None = None
    plan_size: int | None = None
    dtype: EngineDType = "float32"
    batch: int | None = None
    device: str = "cpu"
    threads: int | None = None
    channels_last: bool = True
    fold: bool = False
    compile: CompileMode = "off"
    cuda_graph: bool = False

    def __post_init__(self) -> None:
        """Refuse what cannot be run."""
        if not self.members:
            raise InputError("teacher: expected at least one network, found none")
        if self.dtype not in get_args(EngineDType):
            raise InputError(f"dtype: expected one of {', '.join(get_args(EngineDType))}, found {self.dtype!r}")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != 3:
                raise InputError(f"{name}: expected three numbers, found {values}")

        require_normalisation(self.mean, self.std)
        for name, number in (("batch", self.batch), ("threads", self.threads)):
            if number is not None and number < 1:
                raise InputError(f"--{name}: expected at least 1, found {number}")
        if self.cuda_graph and not self.device.startswith("cuda"):
            raise InputError(f"--cuda-graph: expected --device cuda, found {self.device}")

    @property
    def products(self) -> Literal["ieee", "tf32"]:
        """Precision of float32 products: see `pipeline.teacher.engine.precision`."""
        return "tf32" if self.dtype == "tf32" else "ieee"

    @property
    def name(self) -> str:
        """Of its networks, for messages."""
        return " + ".join(member.name for member in self.members)

    def like(self, engine: Mapping[str, Any]) -> TeacherSpec:
        """This spec with the batch and layout that were found for ``engine``, and compiled exactly when that was.

        So a build that is resumed gives the same bytes, and a compile that fails then is an error (P4).
        """
        compiled: CompileMode = "off" if engine.get("compile", "none") == "none" else "require"
        return replace(
            self,
            batch=self.batch or engine.get("batch"),
            channels_last=self.channels_last and engine.get("channels_last", True),
            compile=compiled if self.compile == "on" else self.compile,
        )


def make_members(
    names: Sequence[str],
    weights: Sequence[str],
    args: Sequence[Mapping[str, Json]],
    shares: Sequence[float] = (),
    keys: Sequence[str] = (),
) -> tuple[Member, ...]:
    """The members that flags name.

    Args:
        names: of the networks; one name is that of all weights.
        weights: of each network.
        args: of each network, or one for all.
        shares: of each network's logits, in any scale; none given is equal shares.
        keys: of each network's set of weights in its file, or one for all; an empty one chooses nothing.
    """
    names = every_name(names, weights)
    count = len(names)
    for flag, given, allowed in (
        ("--weights", weights, {count}),
        ("--teacher-args", args, {1, count}),
        ("--teacher-weights", shares, {0, count}),
        ("--weights-key", keys, {0, 1, count}),
    ):
        if len(given) not in allowed:
            raise InputError(f"{flag}: expected one for each of the {count} networks of --teacher, found {len(given)}")
    parts = list(shares or [1.0] * count)
    if not all(math.isfinite(part) and part > 0 for part in parts):
        raise InputError(f"--teacher-weights: expected numbers above 0, found {parts}")
    every = list(args) * (count if len(args) == 1 else 1)
    total = sum(parts)
    return tuple(
        Member(name=name, weights=file, args=keywords, share=part / total, key=key)
        for name, file, keywords, part, key in zip(names, weights, every, parts, every_key(keys, count), strict=True)
    )


def every_name(names: Sequence[str], weights: Sequence[str]) -> Sequence[str]:
    """The name of the network of each of some weights: one name is that of all."""
    return [*names] * len(weights) if len(names) == 1 and weights else names


def every_key(keys: Sequence[str], count: int) -> list[str | None]:
    """The key of each of so many networks, where there is one for each, one for all, or none."""
    return [key or None for key in (list(keys) * count if len(keys) == 1 else keys or [""] * count)]
