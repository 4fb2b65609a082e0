"""Checks and encoding before a block is published; no files are used here."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.access.records import AuditRows, BlockData
from labelstore.durable.publish import Described
from labelstore.encodings import Encoding, Pairs
from labelstore.encodings.fidelity import ROWS, quality, summarize
from labelstore.errors import InputError
from labelstore.format.arrays import AUDIT_BLOCK, StoreLayout
from labelstore.format.blocks import BlockGrid, BlockIndex
from labelstore.format.columns import IMAGE_COLUMNS, CropRows
from labelstore.format.seals import HEX_64
from labelstore.format.shards import described
from labelstore.spec import Identity, Json

MAX_FLOAT16 = 65504.0


def require_block_data(identity: Identity, encoding: Encoding, block: BlockIndex, data: BlockData) -> None:
    """Refuse data that is not a block of this store.

    Raises:
        InputError: names what, where, expected and found.
    """
    grid, layout = BlockGrid.of(identity), StoreLayout.of(identity)
    extent = grid.extent(block)
    count, run = extent["view"], extent["position"]
    if data.largest is None:
        _require(block, "logits", data.logits, "float32", (count, run, identity.columns))
    else:
        _require_largest(encoding, block, data, data.largest)
    _require(block, "rows", data.rows, "uint16", (count, len(identity.crop_columns), run))
    if not HEX_64.fullmatch(data.pixels_digest):
        raise InputError(f"block {block}: pixels_digest: expected 16 hex digits, found {data.pixels_digest!r}")
    if (data.audit is not None) != (block == AUDIT_BLOCK):
        raise InputError(f"block {block}: audit rows belong to block {AUDIT_BLOCK}, and to no other")
    if data.audit is not None:
        for array, rows in zip(layout.audit, _arrays(data.audit), strict=True):
            _require(block, array.name, rows, array.dtype, array.shape)
    for name, codes in (data.codes or {}).items():
        (kind,) = (kind for kind in encoding.arrays if kind.name == name)
        shape = (count, run) if kind.width is None else (count, run, codes.shape[-1] if kind.planar else kind.width)
        _require(block, f"codes {name}", codes, kind.dtype, shape)
    first = grid.views(block)[0], grid.positions(block)[0]
    images = images_of(identity, data.rows)
    _require_different(identity, block, images, first[0])
    if "partner" in identity.crop_columns:
        _require_mixing(identity, block, data.rows)
    if data.audit is not None:
        _require_finite(data.audit.logits[None], MAX_FLOAT16, images, first)
    if data.largest is None:
        _require_finite(data.logits, encoding.limit, images, first)


def _require_largest(encoding: Encoding, block: BlockIndex, data: BlockData, largest: float) -> None:
    """Refuse codes of logits that the encoding cannot represent; the logits themselves are not available here."""
    if data.codes is None or block == AUDIT_BLOCK:
        raise InputError(f"block {block}: expected its logits, found only their largest magnitude, {largest}")
    if not largest <= encoding.limit:
        raise InputError(
            f"block {block}: logits: expected numbers of at most {encoding.limit:g}, found {largest}; look at the "
            f"teacher's weights, its --dtype and --mean/--std"
        )


def images_of(identity: Identity, rows: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint32]:
    """Image index of each crop of a block, uint32 ``[v, p]``."""
    low, high = (rows[:, identity.crop_columns.index(name)] for name in IMAGE_COLUMNS)
    images: npt.NDArray[np.uint32] = low + (high.astype(np.uint32) << np.uint32(16))
    return images


def _require_different(identity: Identity, block: BlockIndex, images: npt.NDArray[np.uint32], first_view: int) -> None:
    """Refuse a view that shows an image twice, or one that is not there: reading by image relies on permutations."""
    if images.max() >= identity.images:
        raise InputError(f"block {block}: image index: expected below {identity.images}, found {images.max()}")
    ordered = np.sort(images, axis=1)
    views, places = np.nonzero(ordered[:, 1:] == ordered[:, :-1])
    if len(views):
        raise InputError(
            f"block {block}: expected every image at most once in a view, found image {ordered[views[0], places[0]]} "
            f"twice in view {first_view + int(views[0])}"
        )


def _require_mixing(identity: Identity, block: BlockIndex, rows: npt.NDArray[np.uint16]) -> None:
    """Refuse partners outside of their group, and boxes that reach beyond the crop: weights would not be shares."""
    columns = {name: rows[:, place].astype(np.int64) for place, name in enumerate(identity.crop_columns)}
    count = rows.shape[2]
    start = np.arange(count) // identity.group * identity.group
    limits = {"partner": np.minimum(identity.group, count - start)}  # a view's last group may be smaller
    found = {"partner": columns["partner"]}
    if "mix_width" in columns:
        for side, length in (("mix_top", "mix_height"), ("mix_left", "mix_width")):
            found[f"{side} + {length}"] = columns[side] + columns[length]
            limits[f"{side} + {length}"] = np.full(count, identity.size + 1)
    for name, values in found.items():
        bad = np.argwhere(values >= limits[name])
        if len(bad):
            view, place = (int(index) for index in bad[0])
            raise InputError(
                f"block {block}: {name}: expected at most {limits[name][place] - 1}, found {values[view, place]} at "
                f"view {view}, position {place} of the block"
            )


def encode_block(identity: Identity, encoding: Encoding, block: BlockIndex, data: BlockData) -> dict[str, Described]:
    """A block's shards, by array."""
    layout = StoreLayout.of(identity)
    codes = dict(data.codes or encoding.encode(data.logits, pairs_of(identity, data.rows)))
    for array in encoding.arrays:
        if array.planar:
            codes[array.name] = np.moveaxis(codes[array.name], -1, 1)
    values = {**codes, layout.rows.name: data.rows}
    if data.audit is not None:
        values |= {array.name: rows for array, rows in zip(layout.audit, _arrays(data.audit), strict=True)}
    return {array.name: described(array, values[array.name]) for array in layout.of_block(block)}


def fidelity_of(identity: Identity, encoding: Encoding, data: BlockData, targets: npt.NDArray[np.int64]) -> Json:
    """The quality of the encoding on the first rows of the first view of a block, mixed and unmixed separately."""
    exact = data.logits[0, :ROWS]
    pairs = pairs_of(identity, data.rows[:1]).take((0, slice(ROWS)))
    known = {name: codes[0, :ROWS] for name, codes in (data.codes or {}).items()}
    decoded = encoding.decode(known or encoding.encode(exact, pairs), pairs)
    found = quality(exact, decoded, targets[pairs.images], targets[pairs.partners], pairs.weights)
    weights = pairs.weights
    return {"unmixed": summarize(found.of(weights == 1)), "mixed": summarize(found.of(weights < 1))}


def pairs_of(identity: Identity, rows: npt.NDArray[np.uint16]) -> Pairs:
    """The images of the crops of a block; rows of whole groups, uint16 ``[v, K, p]`` -> ``[v, p]``."""
    each = []
    for values in rows:
        crops = CropRows(identity.crop_columns, values)
        images = crops.image.astype(np.int64)
        partners = images[crops.partners(identity.group)] if crops.mixed else images
        each.append((images, partners, crops.weights(identity.size).astype(np.float64)))
    return Pairs(*map(np.stack, zip(*each, strict=True)))


def _arrays(audit: AuditRows) -> tuple[npt.NDArray[Any], ...]:
    return audit.crops, audit.logits


def _require(block: BlockIndex, name: str, array: npt.NDArray[np.generic], dtype: str, shape: tuple[int, ...]) -> None:
    if array.dtype != dtype or array.shape != shape:
        raise InputError(
            f"block {block}: {name}: expected {dtype} {list(shape)}, found {array.dtype} {list(array.shape)}"
        )


def _require_finite(
    logits: npt.NDArray[np.floating], limit: float, images: npt.NDArray[np.uint32], first: tuple[int, int]
) -> None:
    """Refuse NaN, Inf and what the encoding cannot hold; the maximum of a row with NaN is NaN, so this sees it."""
    if logits.max() <= limit and logits.min() >= -limit:
        return
    v, p, c = (int(places[0]) for places in np.nonzero(~(np.abs(logits) <= limit)))
    raise InputError(
        f"logit of image {images[v, p]} in view {first[0] + v} (position {first[1] + p}), class {c}: expected a number "
        f"of at most {limit:g}, found {logits[v, p, c]}; look at the teacher's weights, its --dtype and --mean/--std"
    )
