"""What a store must contain for a published protocol, as flags of `build`; how students train: `trainer.recipes`.

gift: GIFT (arXiv 2405.14736): factor crop, of two cells a side for RDED's ImageNet-1K set and its ResNet-18 alone, then
DSA on the normalised image. The flip of DSA is the plan's.
rded: RDED (CVPR 2024): patch shuffle of the collages of 128 px and more, resized crop, flip, CutMix with one weight and
box a training batch; ImageNet's mean and deviation for every set.
sre2l: SRe2L (NeurIPS 2023): resized crop, flip, CutMix with one weight and box a batch of 1024.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from labelstore import LabelStore
from labelstore.command.flags import values_of
from labelstore.errors import GiftwrapError, InputError, MismatchError
from labelstore.spec import Identity, Json, first_difference
from pipeline.config import IMAGENET_MEAN, IMAGENET_STD, BuildConfig
from pipeline.images.class_folder import list_images

if TYPE_CHECKING:
    from pipeline.images.manifest import Manifest

Value: TypeAlias = "Json | tuple[float, ...] | tuple[str, ...]"
Flags: TypeAlias = dict[str, Value]

# ImageNet-1K and Tiny-ImageNet are known by their number of classes, as the papers' own code knows them by name.
IMAGENET, TINY, CIFAR100 = 1_000, 200, 100
COLLAGE_SIDE = 128  # from here on RDED's images are collages of 2 x 2


@dataclass(frozen=True, kw_only=True, slots=True)
class Setting:
    """What the numbers of a recipe depend on.

    Attributes:
        images: number of images N, those that do not decode included: see `listed`.
        classes: number of class folders C.
        size: side of the crops.
        student: the network that is trained; the teacher's where it is not known yet.
        teacher: the network that made the labels.
        epochs: of the run, where they are given; else the recipe has them.
        side: side of the student's crops, where it is another one.
    """

    images: int
    classes: int
    size: int
    student: str
    teacher: str
    epochs: int | None = None
    side: int | None = None

    @classmethod
    def of(cls, identity: Identity, student: str, epochs: int | None = None, side: int | None = None) -> Setting:
        """Of a store, a student, the epochs that it is trained for, and the side of its crops."""
        return cls(
            images=listed(identity.images, identity.skipped),
            classes=len(identity.classes),
            size=identity.size,
            student=student,
            teacher=str(identity.require("teacher").get("name")),
            epochs=epochs,
            side=side,
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


def listed(kept: int, skipped: Sequence[str]) -> int:
    """The number of images that a recipe's numbers follow from: of all that the set has, left out or not.

    A build must know it before it decodes, and a run finds it in the store: both count here.
    """
    return kept + len(skipped)


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
# What belongs to the choice of a flag: another choice goes without.
OWNED = {"crop": ("scale", "ratio", "pad", "resize", "factor"), "mix": ("alpha", "group", "mix_per")}
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
    from pipeline.plan.plan import PlanSpec  # takes seconds to import

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
    known = given(
        arguments, "build", "--recipe", "--images", "--size", "--teacher", also=("--store", "--crop", "--mix")
    )
    if known is None:
        return list(arguments)
    listing = list_images(Path(known["--images"]), "bytes")  # counted, in whatever order
    if not known["--size"].isdecimal():
        return list(arguments)  # said by the command's own parser
    setting = Setting(
        images=in_store(known["--store"]) or len(listing.paths),
        classes=len(listing.classes),
        size=int(known["--size"]),
        student=known["--teacher"],
        teacher=known["--teacher"],
    )
    flags = without_replaced(flags_of(RECIPES, known["--recipe"], setting), known, OWNED)
    return ["build", *words(flags), *arguments[1:]]


def without_replaced(flags: Flags, known: Mapping[str, str | None], owned: Mapping[str, Sequence[str]]) -> Flags:
    """The flags of a recipe without those that belong to a choice in whose place another one is given."""
    gone = {
        name
        for choice, names in owned.items()
        if known[f"--{choice}"] not in (None, flags.get(choice))
        for name in names
    }
    return {name: value for name, value in flags.items() if name not in gone}


def in_store(store: str | None) -> int:
    """How many images the set of a store has that is resumed or extended; 0 where there is none yet."""
    try:
        identity = LabelStore.open(store, follow=True).identity if store else None
    except (GiftwrapError, OSError):
        return 0  # said by the build
    return listed(identity.images, identity.skipped) if identity else 0


def given(arguments: Sequence[str], command: str, *flags: str, also: Sequence[str] = ()) -> dict[str, str] | None:
    """The values of flags of a command; None when it is another one, or one of them is not given, but for ``also``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for flag in (*flags, *also):
        parser.add_argument(flag, dest=flag)
    try:
        known = vars(parser.parse_known_args([with_dashes(word) for word in arguments[1:]])[0])
    except argparse.ArgumentError:
        return None  # said by the command's own parser
    return known if arguments[:1] == [command] and all(known[flag] for flag in flags) else None


def with_dashes(word: str) -> str:
    """A flag as it is named; the command takes ``--batch_size`` too."""
    name, equals, value = word.partition("=")
    return f"{name.replace('_', '-')}{equals}{value}" if word.startswith("--") else word


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


# What decides neither pixels nor labels, or is said elsewhere.
UNSAID = (
    "recipe", "images", "store", "progress_log", "metrics_port", "metrics_host", "json", "dry_run", "rehash",
    "take_over",
)  # fmt: skip


def said(config: BuildConfig, manifest: Manifest) -> str:
    """Every value of a build's recipe, what was given instead, what else is in effect, and what is not reproduced."""
    name, teacher = config.recipe or "", config.teacher.names[0]
    images = listed(len(manifest), manifest.skipped)
    setting = Setting(
        images=images, classes=len(manifest.classes), size=config.crops.size, student=teacher, teacher=teacher
    )
    plan = config.crops
    used: dict[str, Any] = values_of(config)
    idle = [name for name in asdict(plan) if name not in plan.to_json() and name in used and name not in LATER]
    return describe(
        name, flags_of(RECIPES, name, setting), {key: value for key, value in used.items() if key not in idle}, UNSAID
    )


LATER = ("mix_per", "augment")  # are left out of a plan's identity at their defaults, and yet have an effect
NOT_REPRODUCED = {
    "gift": "DSA draws one of crop, scale and rotation for each crop, where GIFT's code draws it once a batch",
    "rded": "a group of crops shares its CutMix weight and box, where RDED's code draws them for each batch",
    "sre2l": "the group of crops that CutMix mixes is a batch of 1,024 at most, and of all images in a smaller set",
}


def describe(name: str, flags: Flags, used: Mapping[str, Any], unsaid: Sequence[str]) -> str:
    """Every value of a recipe, what was given instead, all else that is in effect, and what is not reproduced.

    Args:
        name: of the recipe.
        flags: its values.
        used: every flag that has an effect, and its value.
        unsaid: flags that are no part of a protocol.
    """
    parts = []
    for flag, value in flags.items():
        now = used.get(flag, "not used")
        parts.append(f"{spelled(flag)} {shown(now)}{'' if same(now, value) else f' (the recipe has {shown(value)})'}")
    beside = [f"{spelled(key)} {shown(value)}" for key, value in used.items() if key not in (*flags, *unsaid)]
    return (
        f"recipe {name}: {', '.join(parts)}\nbeside the recipe: {', '.join(beside)}\n"
        f"not reproduced: {NOT_REPRODUCED[name]}"
    )


def spelled(flag: str) -> str:
    """A flag's name as it is typed."""
    return flag.replace("_", "-")


def shown(value: Any) -> str:
    """A value for people; those that are left to the command are none."""
    return "none" if value in (None, ()) else str(value)


def same(ours: Any, theirs: Any) -> bool:
    """Whether two values of a flag mean the same; JSON objects by their content."""
    if isinstance(ours, str) and isinstance(theirs, str) and theirs.startswith("{"):
        return bool(json.loads(ours) == json.loads(theirs))
    return bool(ours == theirs)
