"""What a store must contain for a published protocol, as flags of `build`; how students train: `trainer.recipes`.

gift: GIFT (arXiv 2405.14736): factor crop, of two cells a side for RDED's ImageNet-1K set and its ResNet-18 alone, then
DSA on the normalised image. The flip of DSA is the plan's.
rded: RDED (CVPR 2024): patch shuffle of the collages of 128 px and more, resized crop, flip, CutMix with one weight and
box a training batch; ImageNet's mean and deviation for every set.
sre2l: SRe2L (NeurIPS 2023): resized crop, flip, CutMix with one weight and box a batch of 1024.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from labelstore.errors import InputError, MismatchError
from labelstore.spec import Identity, Json, first_difference
from pipeline.class_folder import list_images
from pipeline.config import IMAGENET_MEAN, IMAGENET_STD, BuildConfig

Value: TypeAlias = "Json | tuple[float, ...] | tuple[str, ...]"
Flags: TypeAlias = dict[str, Value]

# ImageNet-1K and Tiny-ImageNet are known by their number of classes, as the papers' own code knows them by name.
IMAGENET, TINY, CIFAR100 = 1_000, 200, 100
COLLAGE_SIDE = 128  # from here on RDED's images are collages of 2 x 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the numbers of a recipe depend on.

    Attributes:
        images: number of images N.
        classes: number of class folders C.
        size: side of the crops.
        student: the network that is trained; the teacher's where it is not known yet.
        teacher: the network that made the labels.
        epochs: of the run, where they are given; else the recipe has them.
    """

    images: int
    classes: int
    size: int
    student: str
    teacher: str
    epochs: int | None = None

    @classmethod
    def of(cls, identity: Identity, student: str, epochs: int | None = None) -> Setting:
        """Of a store, a student, and the epochs that it is trained for."""
        return cls(
            images=identity.images,
            classes=len(identity.classes),
            size=identity.size,
            student=student,
            teacher=str(identity.require("teacher").get("name")),
            epochs=epochs,
        )

    @property
    def per_class(self) -> int:
        """Images a class, rounded up."""
        return -(-self.images // self.classes)

    @property
    def architecture(self) -> str:
        """The student's name without its library."""
        return self.student.rpartition(":")[2]

    @property
    def conv3(self) -> bool:
        """RDED's exception: ConvNet-D3 from ConvNet-D3 on CIFAR-100."""
        return self.classes == CIFAR100 and self.student == self.teacher == "convnet-d3"


def rded_batch(setting: Setting) -> int:
    """10, 50, 100 for up to 1, 10 and more images a class; twice for 100 and 1000 classes; 100 for Tiny; at most N."""
    batch = next((batch for most, batch in ((1, 10), (10, 50)) if setting.per_class <= most), 100)
    if setting.classes in (CIFAR100, IMAGENET):
        batch *= 2
    if setting.classes == TINY:
        batch = 100
    return min(25 if setting.conv3 else batch, setting.images)


def gift(_setting: Setting) -> Flags:
    """Factor crop and DSA."""
    return {"crop": "factor", "factor": 1, "augment": ("dsa",), "flip": 0.5, "mix": "none"}


def rded(setting: Setting) -> Flags:
    """Patch shuffle, resized crop and CutMix."""
    factor = 2 if setting.size >= COLLAGE_SIDE else 1
    shuffle: Flags = {"augment": (f"patch-shuffle={factor}",)} if factor > 1 else {}
    return {
        **shuffle,
        "crop": "resized",
        "scale": (1 / factor, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "mix": "cutmix",
        "alpha": 1.0,
        "group": max(rded_batch(setting), 2),
        "mix_per": "group",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


def sre2l(setting: Setting) -> Flags:
    """Resized crop and CutMix."""
    return {
        "crop": "resized",
        "scale": (0.08, 1.0),
        "ratio": (3 / 4, 4 / 3),
        "flip": 0.5,
        "mix": "cutmix",
        "alpha": 1.0,
        "group": max(min(1_024, setting.images), 2),
        "mix_per": "group",
        "mean": IMAGENET_MEAN,
        "std": IMAGENET_STD,
    }


RECIPES: dict[str, Callable[[Setting], Flags]] = {"gift": gift, "rded": rded, "sre2l": sre2l}
FIRST = ("crop", "mix", "augment")  # what other differences follow from
NORMALISATION = ("mean", "std")  # of the teacher; the other flags are the plan's


def flags_of(table: Mapping[str, Callable[[Setting], Flags]], name: str, setting: Setting) -> Flags:
    """The flags of a recipe in a setting."""
    if name not in table:
        raise InputError(f"--recipe: expected one of {', '.join(table)}, found {name!r}")
    return table[name](setting)


def require_store(name: str, identity: Identity, student: str) -> None:
    """Refuse a store that does not contain what a recipe trains on.

    Raises:
        MismatchError: names the first difference, and the recipe's two halves.
    """
    flags = flags_of(RECIPES, name, Setting.of(identity, student))
    if name == "gift" and len(identity.classes) == IMAGENET and identity.require("plan").get("factor") == 2:
        flags["factor"] = 2
    from pipeline.plan import PlanSpec  # takes seconds to import

    plain = asdict(PlanSpec(size=identity.size))
    wanted: dict[str, Any] = {**plain, **flags}
    teacher = identity.require("teacher")
    stored = {**plain, **identity.require("plan"), **{key: teacher[key] for key in NORMALISATION}}
    names = dict.fromkeys((*FIRST, *flags, "mix_per"))
    difference = first_difference({key: wanted[key] for key in names}, {key: stored[key] for key in names})
    if difference:
        place, wants, has = difference
        raise MismatchError(
            f"--recipe {name} trains on a store with {place} {wants!r}, this one has {has!r}; build one with "
            f"`pipeline build --recipe {name}` and nothing in its place, or leave --recipe out and give the values of "
            f"its other half as flags"
        )


def typed(arguments: Sequence[str]) -> list[str]:
    """The arguments of `build` with the flags of their recipe put first, so that those that are given count.

    Raises:
        GiftwrapError: when there is no such recipe, or no class folder.
    """
    known = given(arguments, "build", "--recipe", "--images", "--size", "--teacher")
    if known is None:
        return list(arguments)
    listing = list_images(Path(known["--images"]), "bytes")  # counted, in whatever order
    if not known["--size"].isdecimal():
        return list(arguments)  # said by the command's own parser
    setting = Setting(
        images=len(listing.paths),
        classes=len(listing.classes),
        size=int(known["--size"]),
        student=known["--teacher"],
        teacher=known["--teacher"],
    )
    return ["build", *words(flags_of(RECIPES, known["--recipe"], setting)), *arguments[1:]]


def given(arguments: Sequence[str], command: str, *flags: str, also: str | None = None) -> dict[str, str] | None:
    """The values of flags of a command; None when it is another one, or one of them is not given, but for ``also``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in filter(None, (*flags, also)):
        parser.add_argument(flag, dest=flag)
    try:
        known = vars(parser.parse_known_args(arguments[1:])[0])
    except argparse.ArgumentError:
        return None  # said by the command's own parser
    return known if arguments[:1] == [command] and all(known[flag] for flag in flags) else None


def words(flags: Mapping[str, Value]) -> list[str]:
    """Flags as they are typed."""
    every: list[str] = []
    for name, value in flags.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            every.append(f"--{flag}" if value else f"--no-{flag}")
        else:
            every += [f"--{flag}", *map(str, value if isinstance(value, tuple) else (value,))]
    return every


def said(config: BuildConfig, images: int, classes: int) -> str:
    """Every value of a build's recipe, and what was given instead."""
    name, teacher = config.recipe or "", config.teacher[0]
    setting = Setting(images=images, classes=classes, size=config.size, student=teacher, teacher=teacher)
    return describe(name, flags_of(RECIPES, name, setting), config)


def describe(name: str, flags: Flags, config: object) -> str:
    """Every value of a recipe, and what was given instead."""
    parts = []
    for flag, value in flags.items():
        used = getattr(config, flag)
        instead = "" if used == value else f" (the recipe has {value})"
        parts.append(f"{flag.replace('_', '-')} {used}{instead}")
    return f"recipe {name}: {', '.join(parts)}"
