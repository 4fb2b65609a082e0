"""The description of a store: the identity, which never changes, and the state, which grows (P3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Integral
from types import MappingProxyType
from typing import Literal, TypeAlias

from labelstore.errors import InputError, MismatchError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
FORMAT = 2
READABLE = (1, 2)  # formats that this version reads; it writes the last

MAX_POSITIONS = 16_384
MAX_BLOCK_BYTES = 64 << 20
SMALL_BLOCK_ROWS = 3_072  # crops of a block of several views: seconds of a teacher's work; fewer compress worse
BATCH_ROWS = 128  # crops of a teacher's batch; blocks of fewer would be padded to it
MAX_ROUNDING = 0.1  # of the requested views, that whole blocks may add
MAX_COLUMNS = 65_535
MAX_IMAGES = 2**32
MAX_VERSIONS = 2**20
MAX_BLOCKS = 2**24  # 300 views of ImageNet-21K's 14.2 million images are 2.8 million
ORIGINS, CONTENTS = ("built", "adopted"), ("logits", "topk")
MADE_BY = ("teacher", "engine", "plan", "renderer")  # what adopted labels may lack
MAX_SHOWN = 100  # characters of a value that an error names


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockShape:
    """The unit of work: ``views`` consecutive views x ``positions`` consecutive positions (whole groups)."""

    views: int
    positions: int

    @classmethod
    def choose(cls, images: int, columns: int, group: int = 1, views: int = 1) -> BlockShape:
        """The block shape that P4 prescribes for a store whose first build requests V views.

        Positions: as many whole groups as 16,384 positions and 64 MiB of float16 hold. Views, where a block holds all
        positions: as many as 3,072 crops and half of V hold, or 128 crops, a batch, where that is more. Down to half
        as many if whole blocks then exceed V by less, and down to one where they exceed it by more than a tenth.

        Args:
            images: N.
            columns: columns C of a label.
            group: positions that mix with each other.
            views: V.
        """
        limit = min(MAX_POSITIONS, MAX_BLOCK_BYTES // (2 * columns))
        whole = -(-images // group) * group
        positions = min(max(limit // group, 1) * group, whole)
        most = min(SMALL_BLOCK_ROWS // images, max(views // 2, BATCH_ROWS // images), views)
        if positions < images or most < 2:
            return cls(views=1, positions=positions)
        fitting = [v for v in range(1, most + 1) if -views % v <= MAX_ROUNDING * views]
        large = [v for v in fitting if 2 * v >= most] or fitting[-1:]
        return cls(views=min(large, key=lambda v: (-views % v, -v)), positions=positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """The identity of a store, which never changes.

    Attributes:
        images: number of images N.
        classes: class names in target order.
        columns: number of columns C of a label.
        size: side of the square crops, in pixels.
        seed: seed of the plan; None if the store is adopted and no plan drew its crops.
        group: positions that may mix with each other (1: no mixing).
        manifest: SHA-256 of the (class name, image digest) rows in order, hex.
        skipped: relative paths of broken images that were left out.
        teacher: what made the labels: architecture, arguments, weights digest, preprocessing, columns; of an ensemble
            or a projector, its description. None if the store is adopted and the teacher is unknown, as below.
        engine: what makes the teacher's bytes; resuming on another one needs consent. Or None.
        plan: every number of the augmentation, without the number of views. Or None: crops cannot be made again.
        crop_columns: names of the stored columns of a crop row, in order.
        encoding: name and parameters of the label encoding.
        renderer: what makes the pixels' bytes. Or None: nothing is known of the teacher's pixels.
        block: the block shape.
        class_columns: the column of each class in a label, where labels keep others too; empty: column k is class k.
        origin: ``built`` by this software, or ``adopted``: the labels were made elsewhere.
        content: ``logits``, or ``topk``: columns that hold the encoding's masked value are not known.
        format: number of the format that the store is written in.
    """

    images: int
    classes: tuple[str, ...]
    columns: int
    size: int
    seed: int | None
    group: int
    manifest: str
    skipped: tuple[str, ...]
    teacher: Mapping[str, Json] | None
    engine: Mapping[str, Json] | None
    plan: Mapping[str, Json] | None
    crop_columns: tuple[str, ...]
    encoding: Mapping[str, Json]
    renderer: Mapping[str, Json] | None
    block: BlockShape
    class_columns: tuple[int, ...] = ()
    origin: Literal["built", "adopted"] = "built"
    content: Literal["logits", "topk"] = "logits"
    format: int = FORMAT

    def __post_init__(self) -> None:
        """Refuse what cannot be a store."""
        for name in ("images", "columns", "size", "group"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise InputError(f"{name}: expected at least 1, found {value!r}")
        if self.columns > MAX_COLUMNS:
            raise InputError(
                f"columns: expected at most {MAX_COLUMNS}, found {self.columns}; choose columns of the teacher"
            )
        if self.block.positions % self.group and self.block.positions < self.images:
            raise InputError(f"block of {self.block.positions} positions: expected whole groups of {self.group}")
        for name, known in (("origin", ORIGINS), ("content", CONTENTS)):
            if getattr(self, name) not in known:
                raise InputError(f"{name}: expected one of {', '.join(known)}, found {getattr(self, name)!r}")
        unknown = [name for name in MADE_BY if getattr(self, name) is None]
        if unknown and self.origin == "built":
            raise InputError(f"{unknown[0]}: expected what made the labels, found none; only adopted labels lack that")
        if self.seed is None and self.origin == "built":
            raise InputError("seed: expected the plan's, found none; only adopted labels lack that")
        chosen = self.class_columns
        if chosen and (len(chosen) != len(self.classes) or len({*chosen} & {*range(self.columns)}) != len(chosen)):
            raise InputError(
                f"class_columns: expected another column below {self.columns} for each of {len(self.classes)} classes, "
                f"found {list(chosen)}"
            )

    @property
    def label_columns(self) -> tuple[int, ...]:
        """The column of each class in a label, in target order."""
        return self.class_columns or tuple(range(len(self.classes)))

    @property
    def column_names(self) -> dict[int, str]:
        """The class of each column that has one."""
        return dict(zip(self.label_columns, self.classes, strict=True))

    def require(self, name: Literal["teacher", "engine", "plan", "renderer"]) -> Mapping[str, Json]:
        """The labeller.

        Raises:
            InputError: when that is not known, of adopted labels.
        """
        value: Mapping[str, Json] | None = getattr(self, name)
        if value is None:
            raise InputError(f"{name}: the labels of this store were made elsewhere, and their {name} is not known")
        return value

    def to_json(self) -> dict[str, Json]:
        """As the JSON object stored under ``identity``."""
        plain = asdict(self)
        del plain["format"]  # is stored beside the identity
        for name in ("classes", "skipped", "crop_columns", "class_columns"):
            plain[name] = list(plain[name])
        if not self.class_columns:
            del plain["class_columns"]
        if self.format == 1:
            del plain["origin"], plain["content"]
        return plain


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """The state of a store, which grows.

    Attributes:
        views_target: requested views, whole blocks.
        views_sealed: views whose blocks all are published and listed in a seal.
        versions: what made the views: ``first_view``, ``engine``, ``renderer``, and ``converted_from`` where labels
            came from another store.
        missing: blocks ``(i, j)`` of sealed views that a repair has removed, and that are not sealed again yet.
        views_before: while the store is extended, the views that arrays may still have in their metadata.
    """

    views_target: int
    views_sealed: int
    versions: tuple[Mapping[str, Json], ...]
    missing: tuple[tuple[int, int], ...] = ()
    views_before: int | None = None

    def to_json(self, format_number: int = FORMAT) -> dict[str, Json]:
        """As the JSON object stored under ``state``."""
        plain: dict[str, Json] = {
            "views_target": self.views_target,
            "views_sealed": self.views_sealed,
            "versions": [dict(version) for version in self.versions],
        }
        if format_number == 1:
            return plain
        return {**plain, "missing": [list(block) for block in self.missing], "views_before": self.views_before}


def require_integer(name: str, value: object) -> int:
    """An integer, one of numpy's too, as Python's, which never overflows.

    Raises:
        InputError: when it is none; True and 1.0 are none.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise InputError(f"{name}: expected an integer, found {value!r}")
    return int(value)


def first_difference(ours: Json, theirs: Json, path: str = "") -> tuple[str, Json, Json] | None:
    """The first place where two JSON values differ: (dotted path, our value, their value), or None.

    In our order, but what one of them lacks comes after what both have.
    """
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in dict.fromkeys((*(key for key in ours if key in theirs), *ours, *theirs)):
            place = f"{path}.{key}" if path else key
            found = first_difference(ours.get(key), theirs.get(key), place)
            if found:
                return found
        return None
    if isinstance(ours, list | tuple) and isinstance(theirs, list | tuple) and len(ours) == len(theirs):
        for index, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            found = first_difference(our, their, f"{path}[{index}]")
            if found:
                return found
        return None
    same = ours == theirs and isinstance(ours, bool) == isinstance(theirs, bool)
    return None if same else (path, ours, theirs)


def require_same(
    what: str,
    stored: Json,
    given: Json,
    advice: str,
    holder: str = "the store",
    flags: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Refuse to use something with another thing than its own.

    Args:
        what: is compared, for the message.
        stored: what there was.
        given: what there is now.
        advice: what to do next.
        holder: of ``stored``, for the message.
        flags: the flag that sets a value, by the place of the value.

    Raises:
        MismatchError: names the first difference, and both sides of it.
    """
    found = first_difference(stored, given)
    if found:
        place, ours, theirs = found
        raise MismatchError(
            f"different {what}{located(place, what, flags)}: {holder} has {shorten(ours)}, this run has "
            f"{shorten(theirs)}; {advice}"
        )


def located(place: str, what: str = "", flags: Mapping[str, str] = MappingProxyType({})) -> str:
    """The place of a difference for a message, or the flag that sets it; empty if it equals ``what``."""
    if place in ("", what):
        return ""
    name, bracket, index = place.partition("[")
    return f" ({flags.get(name, name)}{bracket}{index})"


def shorten(value: Json) -> str:
    """A value for an error message, shortened if it is long."""
    text = repr(value)
    return text if len(text) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..."
