"""Stores of labels that were made elsewhere: their identity, and writing them block by block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from hashlib import blake2b
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.access.records import AuditRows, BlockData
from labelstore.encodings import make_encoding
from labelstore.errors import InputError, MismatchError
from labelstore.format.arrays import AUDIT_BLOCK, StoreLayout
from labelstore.format.blocks import BlockIndex
from labelstore.format.columns import CROP_COLUMNS, CUTMIX_COLUMNS, MIXUP_COLUMNS, CropRows
from labelstore.format.images import manifest_digest
from labelstore.spec import BlockShape, Identity, Json, require_integer, require_same
from labelstore.store import LabelStore
from labelstore.writing.encoding import encode_block
from labelstore.writing.space import require_free_space, store_bytes

DIGEST_POSITIONS = 4  # crops of a block of which the marker holds a digest
MAX_SIZE = 65_535  # of crops: columns are uint16
INTERPOLATIONS = ("bilinear", "bicubic")
MIXES: dict[str, tuple[str, ...]] = {"none": (), "mixup": MIXUP_COLUMNS, "cutmix": CUTMIX_COLUMNS}


class AdoptedCrops(NamedTuple):
    """n consecutive positions of a view.

    Attributes:
        rows: what made each crop, in the columns of the identity; the image of each is among them.
        logits: the label of each crop, ``[n, C]``, float16 or float32.
    """

    rows: CropRows
    logits: npt.NDArray[np.floating[Any]]


Read = Callable[[int, int, int], AdoptedCrops]
"""Crops and labels of positions ``start`` to ``stop`` of a view: called with view, start, stop, whole groups."""
Pixels = Callable[[int, int, int], npt.NDArray[np.uint8]]
"""The crops at positions ``start`` to ``stop`` of a view, after mixing, uint8 ``[n, S, S, 3]``; called likewise."""


def adopted_identity(
    *,
    image_digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.integer[Any]],
    classes: Sequence[str],
    columns: int,
    size: int,
    views: int,
    teacher: Mapping[str, Json] | None,
    mix: Literal["none", "cutmix", "mixup"] = "none",
    group: int = 1,
    interpolation: Literal["bilinear", "bicubic"] = "bilinear",
    encoding: Mapping[str, Json] | None = None,
    renderer: Mapping[str, Json] | None = None,
    class_columns: Sequence[int] = (),
    content: Literal["logits", "topk"] = "logits",
    skipped: Sequence[str] = (),
) -> Identity:
    """The identity of a store of labels that were made elsewhere.

    Its plan has what rendering the crops needs, and claims nothing of how they were drawn: no seed, no ranges.

    Args:
        image_digests: SHA-256 of each image's file, uint8 ``[N, 32]``.
        targets: class of each image ``[N]``.
        classes: their names, by target.
        columns: C of a label.
        size: side S of the crops in pixels.
        views: V; blocks are chosen so that they hold whole ones.
        teacher: the labeller, as far as it is known: ``name``; ``mean`` and ``std`` of its normalisation.
        mix: how crops were mixed with their partners.
        group: consecutive positions that mix with each other.
        interpolation: antialiased filter that resized the crops.
        encoding: of the labels, as `make_encoding` takes it; ``int8`` when None.
        renderer: id of the renderer of the pixels that are stored with the labels; None if there are none.
        class_columns: column of each class, where labels have others too.
        content: ``topk`` where columns that hold the encoding's masked value are not known.
        skipped: images that were left out.

    Raises:
        InputError: names the number that makes no store.
    """
    if mix not in MIXES:
        raise InputError(f"mix: expected one of {', '.join(MIXES)}, found {mix!r}")
    if interpolation not in INTERPOLATIONS:
        raise InputError(f"interpolation: expected {' or '.join(INTERPOLATIONS)}, found {interpolation!r}")
    require_names(classes)
    if encoding is not None and not isinstance(encoding, Mapping):
        raise InputError(f'encoding: expected {{"name": "int8"}} or None, found {encoding!r}')
    group, size = require_integer("group", group), require_integer("size", size)
    if not 1 <= size <= MAX_SIZE:
        raise InputError(f"size: expected 1 to {MAX_SIZE} pixels, found {size}")
    class_columns = [require_integer("class_columns", column) for column in class_columns]
    if (group > 1) != (mix != "none"):
        raise InputError(f"group: expected 1 without mixing, and more with it, found {group} with mix {mix!r}")
    images, views = len(image_digests), require_integer("views", views)
    if images < 1 or views < 1:
        raise InputError(f"expected at least one image and one view, found {images} images and {views} views")
    made = make_encoding(encoding or {"name": "int8"}, columns)
    if made.needs_calibration:
        raise InputError(
            f"encoding {made.name}: labels made elsewhere are written as int8 or float16; then make another store with "
            f"`giftwrap convert STORE NEW --encoding {made.name}`"
        )
    shape = BlockShape.choose(images, columns, group, views)
    whole = max(count for count in range(1, shape.views + 1) if views % count == 0)
    plan: dict[str, Json] = {"size": size, "crop": "resized", "mix": mix, "interpolation": interpolation}
    if mix != "none":
        plan |= {"group": group}
    return Identity(
        images=images,
        classes=tuple(classes),
        columns=columns,
        size=size,
        seed=None,  # no plan drew the crops
        group=group,
        manifest=manifest_digest(classes, targets, image_digests),
        skipped=tuple(skipped),
        teacher=teacher,
        engine=None,
        plan=plan,
        crop_columns=(*CROP_COLUMNS, *MIXES[mix]),
        encoding=made.to_json(),
        renderer=renderer,
        block=BlockShape(views=whole, positions=shape.positions),
        class_columns=tuple(class_columns),
        origin="adopted",
        content=content,
    )


def write_adopted(
    path: Path | str,
    identity: Identity,
    *,
    image_digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.integer[Any]],
    sides: npt.NDArray[np.integer[Any]],
    views: int,
    read: Read,
    pixels: Pixels | None = None,
    notes: Mapping[str, Json] | None = None,
    take_over: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> LabelStore:
    """Write labels that were made elsewhere into a store, block by block, and seal it.

    Killing it loses the current block. The same call again continues to the same bytes, after it has compared the first
    and the last block that are there; more views extend a store.

    Args:
        path: folder of the store to make, to continue or to extend.
        identity: as by `adopted_identity`.
        image_digests: SHA-256 of each image's file, uint8 ``[N, 32]``.
        targets: class of each image ``[N]``.
        sides: height and width of each image in pixels, after EXIF orientation, ``[N, 2]``: boxes must lie within.
        views: V, whole blocks.
        read: gives crops and labels; called view by view, block by block, and of a store that is continued only for
            what is missing, besides the blocks that are compared.
        pixels: renders crops, by the renderer of ``identity``: the first of view 0 are stored, and replay is compared
            with them. None if nothing can render them; the identity's renderer is None then.
        notes: provenance, kept beside the identity and never compared.
        take_over: take the lease of a process on another host that is known to be dead.
        progress: called with blocks done and blocks in all.

    Raises:
        InputError: what `read` gives is no label of such a store, or the folder holds something else.
        MismatchError: when the existing store was started with other images or labels.
    """
    path = Path(path)
    identity = _with_block_of(path, identity)
    if (pixels is None) != (identity.renderer is None):
        raise InputError("pixels: expected what renders crops just where the identity names a renderer")
    if require_integer("views", views) % identity.block.views or views < 1:
        raise InputError(f"views: expected a multiple of {identity.block.views}, the views of a block, found {views}")
    labels = _Labels(identity, np.asarray(sides), read, pixels)
    store = _open_for(path, identity, image_digests, targets, views, notes or {})
    try:
        _require_same_labels(store, labels)
        if store.complete and store.state.views_sealed >= views:
            return store
        with store.lease(take_over=take_over) as writer:
            writer.raise_target(views)
            missing = store.missing()
            with writer.queue() as write:
                for done, block in enumerate(missing):
                    write(block, labels.block(store, block))
                    if progress:
                        progress(done + 1, len(missing))
            writer.seal()
    except BaseException:  # what `read` and `pixels` raise too
        store.discard()  # when nothing was written
        raise
    return store


class _Labels:
    """The checked results of `read` and `pixels`, as blocks.

    Args:
        identity: of the store.
        sides: height and width of each image ``[N, 2]``.
        read: gives crops and labels.
        pixels: renders crops.
    """

    def __init__(self, identity: Identity, sides: npt.NDArray[Any], read: Read, pixels: Pixels | None) -> None:
        if sides.shape != (identity.images, 2) or sides.dtype.kind not in "iu":
            raise InputError(f"sides: expected integers [{identity.images}, 2], found {sides.dtype} {[*sides.shape]}")
        self._identity, self._sides, self._read, self._pixels = identity, sides.astype(np.int64), read, pixels
        self._limit = make_encoding(identity.encoding, identity.columns).limit

    def block(self, store: LabelStore, block: BlockIndex) -> BlockData:
        """A block as a writer takes it."""
        (first, last), (start, stop) = store.block_views(block), store.positions(block)
        parts = [self._part(view, start, stop) for view in range(first, last)]
        logits = np.stack([part.logits.astype(np.float32) for part in parts])
        return BlockData(
            logits=logits,
            rows=np.stack([part.rows.values for part in parts]),
            pixels_digest=self._digest(first, start, stop),
            audit=self._audit(logits[0]) if block == AUDIT_BLOCK else None,
        )

    def _part(self, view: int, start: int, stop: int) -> AdoptedCrops:
        part, identity = self._read(view, start, stop), self._identity
        where, count = f"view {view}, positions {start} to {stop - 1}", stop - start
        if part.rows.names != identity.crop_columns or len(part.rows) != count:
            raise InputError(
                f"{where}: expected {count} crops with columns {', '.join(identity.crop_columns)}, found "
                f"{len(part.rows)} with {', '.join(part.rows.names)}"
            )
        if part.logits.shape != (count, identity.columns) or part.logits.dtype.kind != "f":
            raise InputError(
                f"{where}: expected float logits [{count}, {identity.columns}], found {part.logits.dtype} "
                f"{[*part.logits.shape]}"
            )
        require_finite(part.logits, self._limit, lambda row: f"view {view}, image {part.rows.image[row]}")
        require_boxes(part.rows, self._sides, view)
        return part

    def _digest(self, view: int, start: int, stop: int) -> str:
        if self._pixels is None:
            return "0" * 16
        crops = self._pixels(view, start, min(start + DIGEST_POSITIONS, stop))
        return blake2b(np.ascontiguousarray(crops).tobytes(), digest_size=8).hexdigest()

    def _audit(self, logits: npt.NDArray[np.float32]) -> AuditRows:
        shape = StoreLayout.of(self._identity).audit[0].shape
        crops = np.zeros(shape, np.uint8) if self._pixels is None else self._pixels(0, 0, shape[0])
        if crops.shape != shape or crops.dtype != np.uint8:
            raise InputError(f"pixels: expected uint8 {[*shape]}, found {crops.dtype} {[*crops.shape]}")
        return AuditRows(crops, logits[: shape[0]].astype(np.float16))


def require_names(classes: object) -> None:
    """Refuse anything that is not a list of texts; a single text would be a list of its letters.

    Raises:
        InputError: names what was found.
    """
    try:
        names = [] if isinstance(classes, str | bytes) else list(classes)  # type: ignore[call-overload]
        wrong = not names or not all(isinstance(name, str) and name.encode() for name in names)
    except (TypeError, UnicodeEncodeError):
        wrong = True
    if wrong:
        raise InputError(f"classes: expected a list of names, found {classes!r:.100}")


def require_finite(
    logits: npt.NDArray[np.floating[Any]], limit: float, where: Callable[[int], str], name: str = "logit"
) -> None:
    """Refuse NaN, Inf and what the encoding cannot hold.

    Raises:
        InputError: names the first one; ``where`` gives the place of a row in words.
    """
    wrong = ~(np.abs(logits) <= min(limit, float(np.finfo(np.float16).max)))
    if wrong.any():
        row, column = (int(place) for place in np.argwhere(wrong)[0])
        raise InputError(
            f"{name} of {where(row)}, column {column}: expected a finite number of at most 65504, found "
            f"{logits[row, column]}"
        )


def require_boxes(rows: CropRows, sides: npt.NDArray[np.int64], view: int) -> None:
    """Refuse crops of images that are not there, and boxes that are empty or reach beyond their image.

    Raises:
        InputError: names the first one.
    """
    images, boxes = rows.image.astype(np.int64), rows.boxes()
    if len(images) and images.max() >= len(sides):
        raise InputError(f"view {view}: expected images 0 to {len(sides) - 1}, found image {images.max()}")
    ends = boxes[:, :2].astype(np.int64) + boxes[:, 2:]
    wrong = ((boxes[:, 2:] < 1) | (ends > sides[images])).any(axis=1)
    if wrong.any():
        row = int(np.argmax(wrong))
        height, width = sides[images[row]]
        raise InputError(
            f"box of image {images[row]} in view {view}: expected (top, left, height, width) within {height} x {width} "
            f"pixels, found {tuple(boxes[row].tolist())}"
        )


def _with_block_of(path: Path, identity: Identity) -> Identity:
    """The identity with the block shape of the existing store, which follows from its first number of views."""
    return replace(identity, block=LabelStore.open(path).identity.block) if LabelStore.exists(path) else identity


def _open_for(
    path: Path,
    identity: Identity,
    image_digests: npt.NDArray[np.uint8],
    targets: npt.NDArray[np.integer[Any]],
    views: int,
    notes: Mapping[str, Json],
) -> LabelStore:
    """A new store, or the one that is there when it has the identity that a new one would have."""
    if not LabelStore.exists(path):
        require_free_space(path, store_bytes(identity, views))
        return LabelStore.create(path, identity, image_digests=image_digests, targets=targets, views=views, notes=notes)
    store = LabelStore.open(path)
    require_same("store", store.identity.to_json(), identity.to_json(), "give another folder to write to")
    require_free_space(path, store_bytes(identity, max(views - store.state.views_sealed, 1)))
    return store


def _require_same_labels(store: LabelStore, labels: _Labels) -> None:
    """Refuse to continue a store of other labels: its first and its last block must be reproduced."""
    missing = set(store.missing())
    there = [block for block in store.grid.blocks(0, store.state.views_target) if block not in missing]
    for block in dict.fromkeys(there[:1] + there[-1:]):
        files = encode_block(store.identity, store.encoding, block, labels.block(store, block))
        marker = store.marker(block)
        if any(file.entry != marker.shards[name] for name, file in files.items()):
            first, stop = store.block_views(block)
            raise MismatchError(
                f"{store.path}: was started with other labels or crops (those of views {first} to {stop - 1} differ); "
                f"give another folder to write to"
            )
