"""What a store claims to be made of: the identity that never changes, and the state that grows (P3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import TypeAlias

from labelstore.errors import FormatError, InputError, MismatchError

Json: TypeAlias = "bool | int | float | str | list[Json] | dict[str, Json] | None"
FORMAT = 2
READABLE = (1, 2)  # formats that this version reads; it writes the last

MAX_POSITIONS = 16_384
MAX_BLOCK_BYTES = 64 << 20
MIN_BLOCK_ROWS = 4_096
MAX_COLUMNS = 65_535
SAID = 100  # characters of a value that an error names


@dataclass(frozen=True, kw_only=True, slots=True)
class BlockShape:
    """The unit of work: ``views`` consecutive views x ``positions`` consecutive positions (whole groups)."""

    views: int
    positions: int

    @classmethod
    def choose(cls, images: int, columns: int, group: int = 1) -> BlockShape:
        """The block shape that P4 prescribes for N images, C columns and mixing groups of ``group``."""
        limit = min(MAX_POSITIONS, MAX_BLOCK_BYTES // (2 * columns))
        whole = -(-images // group) * group
        positions = min(max(limit // group, 1) * group, whole)
        views = 1 if images >= MIN_BLOCK_ROWS else -(-MIN_BLOCK_ROWS // images)
        return cls(views=views, positions=positions)


@dataclass(frozen=True, kw_only=True, slots=True)
class Identity:
    """What never changes in the life of a store.

    Attributes:
        images: number of images N.
        classes: class names in target order.
        columns: number of columns C of a label.
        size: side of the square crops, in pixels.
        seed: seed of the plan.
        group: positions that may mix with each other (1: no mixing).
        manifest: SHA-256 of the (class name, image digest) rows in order, hex.
        skipped: relative paths of broken images that were left out.
        teacher: architecture, arguments, weights digest, preprocessing, columns.
        engine: what makes the teacher's bytes; resuming on another one needs consent.
        plan: every number of the augmentation, without the number of views.
        crop_columns: names of the stored columns of a crop row, in order.
        encoding: name and parameters of the label encoding.
        renderer: what makes the pixels' bytes.
        block: the block shape.
        class_columns: the column of each class in a label, where labels keep others too; empty: column k is class k.
        format: number of the format that the store is written in.
    """

    images: int
    classes: tuple[str, ...]
    columns: int
    size: int
    seed: int
    group: int
    manifest: str
    skipped: tuple[str, ...]
    teacher: Mapping[str, Json]
    engine: Mapping[str, Json]
    plan: Mapping[str, Json]
    crop_columns: tuple[str, ...]
    encoding: Mapping[str, Json]
    renderer: Mapping[str, Json]
    block: BlockShape
    class_columns: tuple[int, ...] = ()
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

    def to_json(self) -> dict[str, Json]:
        """As the JSON object stored under ``identity``."""
        plain = asdict(self)
        del plain["format"]  # is stored beside the identity
        for name in ("classes", "skipped", "crop_columns", "class_columns"):
            plain[name] = list(plain[name])
        if not self.class_columns:
            del plain["class_columns"]
        return plain

    @classmethod
    def from_json(cls, data: Mapping[str, object], format_number: int = FORMAT) -> Identity:
        """From the JSON object stored under ``identity``."""
        try:
            fields = {"class_columns": (), **data, "format": format_number}
            for name in ("classes", "skipped", "crop_columns", "class_columns"):
                fields[name] = tuple(fields[name])  # type: ignore[arg-type]
            fields["block"] = BlockShape(**fields["block"])  # type: ignore[arg-type]
            return cls(**fields)  # type: ignore[arg-type]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the identity of this store cannot be read: {error}") from error


@dataclass(frozen=True, kw_only=True, slots=True)
class State:
    """What grows: views asked for, views sealed, and the engine of each range of views."""

    views_target: int
    views_sealed: int
    versions: tuple[Mapping[str, Json], ...] = field(default=())

    def to_json(self) -> dict[str, Json]:
        """As the JSON object stored under ``state``."""
        return {
            "views_target": self.views_target,
            "views_sealed": self.views_sealed,
            "versions": [dict(version) for version in self.versions],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> State:
        """From the JSON object stored under ``state``."""
        try:
            return cls(
                views_target=int(data["views_target"]),  # type: ignore[call-overload]
                views_sealed=int(data["views_sealed"]),  # type: ignore[call-overload]
                versions=tuple(data["versions"]),  # type: ignore[arg-type]
            )
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"the state of this store cannot be read: {error}") from error


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


def require_same(what: str, stored: Json, given: Json, advice: str, holder: str = "the store") -> None:
    """Raise MismatchError naming both sides and the first difference unless ``stored`` equals ``given``."""
    found = first_difference(stored, given)
    if found:
        place, ours, theirs = found
        where = f" at {place}" if place else ""
        raise MismatchError(f"another {what}{where}: {holder} has {said(ours)}, this run has {said(theirs)}; {advice}")


def said(value: Json) -> str:
    """A value as an error names it: its beginning, where it is long."""
    text = repr(value)
    return text if len(text) <= SAID else f"{text[:SAID]}..."
