"""The numbers of a plan, and which of them go together; imported without torch and numpy."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Annotated, Any, Literal, TypeAlias, get_args

from labelstore.command.flags import Words
from labelstore.errors import FormatError, InputError
from labelstore.spec import Json
from pipeline.plan.augment import CROPS, MIXES, CropName, MixName, columns_of, known_words, mix_columns, named

MAX_SIDE = 65_535  # columns are uint16
DEFAULT_GROUP = 128
Interpolation: TypeAlias = Literal["bilinear", "bicubic"]
MixPer: TypeAlias = Literal["group", "pair"]

# Fields that have an effect only when crops are mixed.
_MIXING = ("alpha", "group", "mix_per")
# What a field is where it has no effect, besides its default.
_IDLE = {"group": (1,)}
# Fields that the first release did not have: left out of the identity at their default, so that it stays what it was.
_LATER = ("mix_per", "augment")


@dataclass(frozen=True, kw_only=True, slots=True)
class CropOptions:
    """How crops are drawn: the numbers of a plan except its size and seed; checked when a plan is constructed."""

    crop: CropName = "resized"
    """resized: RandomResizedCrop; center: the centre, after a resize of the short side; padded: a random crop after
    zero padding (CIFAR); factor: GIFT's, see --factor."""
    scale: tuple[float, float] = (0.08, 1.0)
    """resized: range of the crop's area, as a share of the image's."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """resized: range of the crop's aspect ratio, width to height."""
    pad: int = 4
    """padded: zero padding on each side, in pixels."""
    resize: int | None = None
    """center: short side before the crop, in pixels; --size when left out."""
    factor: int = 1
    """factor: with probability 1 - 1/F^2 one cell of the image's F x F grid, else the whole image."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    mix: MixName = "none"
    """Mix crops in pairs, within groups (--group); labels are made after mixing."""
    alpha: float = 1.0
    """Mixing weights are drawn from Beta(alpha, alpha)."""
    group: int = None  # type: ignore[assignment]  # a number from __post_init__ on, which depends on the mix
    """Crops in a group, whose members mix with each other: consecutive positions of a view. 128 when left out."""
    mix_per: MixPer = "group"
    """Draw one mixing weight, and one box, for each group or for each pair."""
    augment: Annotated[tuple[str, ...], Words(known_words)] = ()
    """Further augmentations (docs/GUIDE.md), each at most once, applied in a fixed order:"""
    interpolation: Interpolation = "bilinear"
    """Antialiased filter of the resize."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanSpec(CropOptions):
    """Every number of the augmentation, without the number of views."""

    size: int
    """Side S of the square crops in pixels."""
    seed: int = 0
    """Seed of all draws: order of the images in each view, boxes, flips, mixes."""

    def __post_init__(self) -> None:
        """Refuse what is not a plan."""
        if self.group is None:
            object.__setattr__(self, "group", 1 if self.mix == "none" else DEFAULT_GROUP)
        for name, known in (
            ("crop", tuple(CROPS)),
            ("mix", ("none", *MIXES)),
            ("mix_per", get_args(MixPer)),
            ("interpolation", get_args(Interpolation)),
        ):
            self._require(name, getattr(self, name) in known, f"one of {', '.join(known)}")
        for field in fields(self):
            name, value = field.name, getattr(self, field.name)
            if not self._has_effect(name) and value not in (field.default, *_IDLE.get(name, ())):
                chooser, choices = _only_with(name)
                raise InputError(
                    f"{name} {value}: has an effect only with {chooser} {' or '.join(choices)}, "
                    f"found {chooser} {getattr(self, chooser)}; leave {name} out"
                )
        low, high = self.scale
        self._require("scale", 0 < low <= high <= 1, "two shares of the area, 0 < low <= high <= 1")
        low, high = self.ratio
        self._require("ratio", 0 < low <= high < math.inf, "two ratios, 0 < low <= high")
        self._require("size", 1 <= self.size <= MAX_SIDE, f"1 to {MAX_SIDE} pixels")
        self._require("seed", 0 <= self.seed < 2**63, "0 <= seed < 2**63")
        self._require("pad", 0 <= self.effective_pad <= self.size, f"0 to {self.size} pixels (the size)")
        self._require("resize", self.resize is None or self.resize >= self.size, f"at least the size, {self.size}")
        self._require("factor", 1 <= self.factor <= self.size, f"1 to {self.size} cells a side (the size)")
        named(self.augment)
        self._require("flip", 0 <= self.flip <= 1, "a probability from 0 to 1")
        self._require("alpha", 1e-9 <= self.alpha <= 1e9, "1e-9 to 1e9")
        least = 1 if self.mix == "none" else 2
        self._require("group", least <= self.group <= 2**16, f"{least} to 65536 crops with mix {self.mix}")

    def _require(self, name: str, right: bool, expected: str) -> None:
        if not right:
            raise InputError(f"{name}: expected {expected}, found {getattr(self, name)!r}")

    def _has_effect(self, name: str) -> bool:
        """Whether a field changes any crop of this plan; those that do not are left out of a store's identity."""
        chooser, choices = _only_with(name)
        return not choices or getattr(self, chooser) in choices

    @property
    def effective_pad(self) -> int:
        """Pixels that crop boxes count from outside the image's corner."""
        return self.pad if self._has_effect("pad") else 0

    @property
    def crop_numbers(self) -> dict[str, Any]:
        """The parameters of this plan's crop, by name."""
        return {name: getattr(self, name) for name in CROPS[self.crop].parameters}

    @property
    def columns(self) -> tuple[str, ...]:
        """Names of the columns of a crop row, in stored order."""
        from labelstore.format.columns import IMAGE_COLUMNS  # takes numpy, as the files of augmentations do
        from pipeline.plan.augment import crop, flip

        own = (*crop.columns, *flip.columns, *columns_of(self.augment))
        return (*IMAGE_COLUMNS, *own, *mix_columns(self.mix))

    @property
    def unmixed(self) -> PlanSpec:
        """The same crops without mixing."""
        return dataclasses.replace(self, mix="none", alpha=1.0, group=1, mix_per="group")

    def at_side(self, size: int) -> PlanSpec:
        """The plan of the same boxes, cut at another side; its rows need `pipeline.plan.augment.sides.at_size`."""
        resize = None if self.resize is None else max(self.resize, size)
        return dataclasses.replace(self, size=size, resize=resize)

    def to_json(self) -> dict[str, Json]:
        """The fields that have an effect, as a JSON object."""
        every = {"size": self.size, "seed": self.seed, **asdict(self)}  # in the order that stores have
        values = {
            name: value
            for name, value in every.items()
            if self._has_effect(name) and not (name in _LATER and value == _DEFAULTS[name])
        }
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_json(cls, data: Mapping[str, Json]) -> PlanSpec:
        """The plan that `to_json` described; FormatError if it is not one."""
        try:
            return cls(**{name: tuple(v) if isinstance(v, list) else v for name, v in data.items()})  # type: ignore[arg-type]
        except (TypeError, ValueError) as error:
            raise FormatError(f"the plan of this store cannot be read: {error}") from error


_DEFAULTS = {field.name: field.default for field in fields(PlanSpec)}


def _only_with(name: str) -> tuple[str, tuple[str, ...]]:
    """The field and the values without which the field ``name`` has no effect; no values if it always has one."""
    if name in _MIXING:
        return "mix", tuple(MIXES)
    own = () if name == "size" else tuple(kind for kind, each in CROPS.items() if name in each.parameters)
    return "crop", own
