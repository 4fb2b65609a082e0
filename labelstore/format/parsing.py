"""Identity and state of a store from the JSON of its root, field by field."""

from __future__ import annotations

from typing import Any, cast

from labelstore.durable.documents import Fields
from labelstore.format.blocks import BlockGrid
from labelstore.format.columns import IMAGE_COLUMNS
from labelstore.spec import (
    CONTENTS,
    MADE_BY,
    MAX_BLOCKS,
    MAX_COLUMNS,
    MAX_IMAGES,
    MAX_VERSIONS,
    ORIGINS,
    BlockShape,
    Identity,
    Json,
    State,
)

MAX_SIDE = 2**16  # pixels of a crop
MAX_ORIGINS = 64  # conversions one after the other
MAX_NAMES = 2**24  # classes and left-out files


def read_identity(fields: Fields, format_number: int) -> Identity:
    """The identity of a store of a format.

    Raises:
        DamagedError: names the file and the field that is not what it must be.
        InputError: when the fields do not go together.
    """
    images, columns = fields.integer("images", 1, MAX_IMAGES), fields.integer("columns", 1, MAX_COLUMNS)
    block = fields.fields("block")
    origin, content = (
        (_choice(fields, "origin", ORIGINS), _choice(fields, "content", CONTENTS))
        if format_number > 1
        else ("built", "logits")
    )
    made_by: dict[str, Any] = {
        name: None if origin == "adopted" and fields.any(name) is None else fields.plain(name) for name in MADE_BY
    }
    identity = Identity(
        images=images,
        classes=_names(fields, "classes"),
        columns=columns,
        size=fields.integer("size", 1, MAX_SIDE),
        seed=None if origin == "adopted" and fields.any("seed") is None else fields.integer("seed", 0, 2**63 - 1),
        group=fields.integer("group", 1, 2**20),
        manifest=fields.text("manifest"),
        skipped=_names(fields, "skipped"),
        crop_columns=_names(fields, "crop_columns"),
        encoding=fields.plain("encoding"),
        block=BlockShape(views=block.integer("views", 1), positions=block.integer("positions", 1)),
        class_columns=tuple(fields.integers("class_columns", 0, columns - 1)) if "class_columns" in fields else (),
        origin=cast("Any", origin),
        content=cast("Any", content),
        format=format_number,
        **made_by,
    )
    block.end()
    fields.end()
    names = identity.crop_columns
    if len(set(names)) != len(names) or not set(IMAGE_COLUMNS) <= set(names):
        raise fields.wrong("crop_columns", f"different names, {IMAGE_COLUMNS} among them", list(names))
    return identity


def read_state(fields: Fields, identity: Identity) -> State:
    """The state of a store of this identity.

    Raises:
        DamagedError: names the file and the field that is not what it must be.
    """
    grid = BlockGrid.of(identity)
    target = fields.integer("views_target", 0, MAX_BLOCKS // grid.runs * identity.block.views)
    sealed = fields.integer("views_sealed", 0, target)
    for name, views in (("views_target", target), ("views_sealed", sealed)):
        if views % identity.block.views:
            raise fields.wrong(name, f"whole blocks of {identity.block.views} views", views)
    versions = fields.objects("versions")
    if not 0 < len(versions) <= MAX_VERSIONS:
        raise fields.wrong("versions", "at least one", [])
    missing = tuple(_block(fields, place, grid, sealed) for place in _missing(fields, identity))
    if list(missing) != sorted(set(missing)):
        raise fields.wrong("missing", "blocks in stored order", missing)
    extended = identity.format > 1 and fields.any("views_before") is not None
    state = State(
        views_target=target,
        views_sealed=sealed,
        versions=tuple(_version(one) for one in versions),
        missing=missing,
        views_before=fields.integer("views_before", 0, target) if extended else None,
    )
    fields.end()
    return state


def read_fidelity(fields: Fields, name: str) -> Json:
    """The fidelity of an encoding as a marker, a seal or a version holds it: of unmixed rows and of mixed ones.

    Raises:
        DamagedError: names the file and the field that is not what it must be.
    """
    if fields.any(name) is None:
        return None
    kinds = fields.fields(name)
    for kind in ("unmixed", "mixed"):
        if kinds.any(kind) is not None:
            _kind(kinds.fields(kind))
    kinds.end()
    return fields.plain(name)


def _kind(fields: Fields) -> None:
    fields.integer("rows", 1)
    for figure in ("mean", "p1"):
        fields.number(figure, -2, 2)
    if "kl_1" in fields:  # not in format 1
        for figure in ("kl_1", "kl_20"):
            fields.number(figure)
        fields.number("top1", 0, 1)
    fields.end()


def _missing(fields: Fields, identity: Identity) -> list[Any]:
    if identity.format == 1:
        return []
    value = fields.any("missing")
    if not isinstance(value, list):
        raise fields.wrong("missing", "a list", value)
    return value


def _block(fields: Fields, place: object, grid: BlockGrid, sealed: int) -> tuple[int, int]:
    right = isinstance(place, list) and len(place) == 2 and all(type(number) is int for number in place)
    if right:
        i, j = cast("list[int]", place)
        if 0 <= i < sealed // grid.shape.views and 0 <= j < grid.runs:
            return i, j
    raise fields.wrong("missing", "blocks [i, j] of sealed views", place)


def _version(fields: Fields) -> dict[str, Json]:
    """A version; what else it holds is provenance."""
    fields.integer("first_view")
    for name in ("engine", "renderer"):
        if fields.any(name) is not None:
            fields.plain(name)
    if "converted_from" in fields:
        _origin(fields.fields("converted_from"), MAX_ORIGINS)
    return {name: fields.any(name) for name in fields.names()}


def _origin(fields: Fields, depth: int) -> None:
    """The source of a converted store."""
    fields.fields("encoding").text("name")
    read_fidelity(fields, "fidelity")
    if "converted_from" in fields:
        if not depth:
            raise fields.wrong("converted_from", f"at most {MAX_ORIGINS} conversions", "more")
        _origin(fields.fields("converted_from"), depth - 1)
    fields.end()


def _choice(fields: Fields, name: str, known: tuple[str, ...]) -> str:
    value = fields.text(name)
    if value not in known:
        raise fields.wrong(name, f"one of {', '.join(known)}", value)
    return value


def _names(fields: Fields, name: str) -> tuple[str, ...]:
    """Strings that can be written as UTF-8."""
    values = fields.texts(name)
    try:
        "".join(values).encode()
    except UnicodeEncodeError as error:
        raise fields.wrong(name, "strings of Unicode", error.object[error.start : error.end]) from error
    if len(values) > MAX_NAMES:
        raise fields.wrong(name, f"at most {MAX_NAMES} names", len(values))
    return tuple(values)
