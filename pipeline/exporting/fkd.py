"""SRe2L's own files: ``epoch_E/batch_B.tar``, lists of six, as its relabelling writes and its training reads them.

A file is what ``torch.save`` makes of ``[coordinates, flips, mix_index, mix_lam, mix_bbox, logits]``: float32 ``[B,
4]`` (top, left, height and width as fractions of the image's sides), bool ``[B]``, int64 ``[B]``, float, four integers
(first row and column of the box that shows the partner, and those after its last), float16 ``[B, C]``. Those of mixing
are None if they do not apply. No image is named: SRe2L draws the order of each epoch from a sampler with seed 42 and
finds a file by the first image of its batch. Unmixed crops are written in that order. Mixed ones keep the order of the
store, since partners belong together, and a file beside the folder holds it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch.utils.data import RandomSampler

from labelstore.access.records import LabelBatch
from labelstore.durable import removing
from labelstore.durable.newfile import new_file
from labelstore.durable.places import require_apart
from labelstore.errors import InputError
from labelstore.export_table import Exported, ExportOptions
from labelstore.format.columns import CROP_COLUMNS, CUTMIX_COLUMNS, MIXUP_COLUMNS, CropRows
from labelstore.operations.export import as_float16, chosen_views, require_place
from labelstore.store import LabelStore
from labelstore.writing.space import require_free_space
from pipeline.importing.importing import make_aside, remove_aside
from pipeline.replay.source import open_images

SEED = 42  # of SRe2L's sampler
BATCH = 1024  # of its relabelling
FILE_BYTES = 4 << 10  # of a file, besides its labels and boxes
ROW_BYTES = 32  # of a crop, besides its label
Order = npt.NDArray[np.int64]


def export_fkd(store: LabelStore, out: Path, options: ExportOptions) -> Exported:
    """Write the labels of some views as SRe2L's files; the folder is renamed into place when it is complete.

    Raises:
        InputError: when the folder exists, SRe2L's format cannot hold the crops, or images or batch size are wrong.
        MismatchError: when the images are not the store's.
    """
    chosen, _ = chosen_views(store, options.views)
    require_place(store, out, "")
    if options.images is None:
        raise InputError("--images: --format fkd needs the images of the store, whose sizes its boxes refer to")
    require_apart({"OUT": out}, {"--images": options.images})
    require_expressible(store)
    batch = batch_size_of(store, options.batch_size)
    identity = store.identity
    mixed = identity.group > 1
    rows, files = len(chosen) * identity.images, len(chosen) * -(-identity.images // batch)
    require_free_space(out, rows * (2 * identity.columns + ROW_BYTES) + files * FILE_BYTES)
    beside = out.with_name(f"{out.name}.order.npy")
    sampled = sampled_orders(identity.images, len(chosen))
    orders = np.stack([store.rows(view, slice(None)).image for view in chosen]).astype(np.int64) if mixed else sampled
    if needed := not np.array_equal(orders, sampled):
        removing.require_absent(beside)
    manifest = open_images(store, options.images)
    sides = np.stack([manifest.heights, manifest.widths], axis=1)
    size = write_epochs(store, out, chosen, orders, batch, sides, options.progress)
    if needed:
        with new_file(beside) as file:
            np.save(file, orders)
    words = (
        f"{files:,} files of up to {batch:,} crops, in {'the order of the store' if needed else 'the order of SRe2L'}"
    )
    return Exported((len(chosen), identity.images, identity.columns), words, size, beside if needed else None)


def require_expressible(store: LabelStore) -> None:
    """Refuse crops and labels that SRe2L's record has no place for."""
    if store.identity.content == "topk":
        raise InputError(
            f"{store.path}: expected the logits of all columns, as SRe2L's record holds them, found those of the "
            f"largest only; --format parquet records that too"
        )
    known = {*CROP_COLUMNS, *CUTMIX_COLUMNS, *MIXUP_COLUMNS}
    others = [name for name in store.identity.crop_columns if name not in known]
    if others:
        raise InputError(f"{store.path}: SRe2L's record has boxes, flips and mixing; it has no place for {others[0]}")
    plan = store.identity.plan or {}
    if plan.get("crop") == "padded" or plan.get("mix_per") == "pair":
        found = "boxes of padded images" if plan.get("crop") == "padded" else "a mixing box for each pair"
        raise InputError(f"{store.path}: expected crops that SRe2L's record can hold, found {found}")


def batch_size_of(store: LabelStore, wanted: int | None) -> int:
    """The number of crops in a file; for mixed crops the size of a group, since they mix within a file."""
    group = store.identity.group
    if wanted is not None and wanted < 1:
        raise InputError(f"--batch-size: expected at least 1, found {wanted}")
    if group > 1 and wanted not in (None, group):
        raise InputError(
            f"--batch-size: expected {group}, the crops that mix with each other in {store.path}, found {wanted}; "
            f"leave it out"
        )
    return group if group > 1 else wanted or BATCH


def sampled_orders(images: int, epochs: int) -> Order:
    """The order of SRe2L's sampler in each epoch, int64 ``[E, N]``."""
    sampler = RandomSampler(range(images), generator=torch.Generator().manual_seed(SEED))
    return np.array([list(sampler) for _ in range(epochs)], np.int64)  # each draws after its last image too


def write_epochs(
    store: LabelStore,
    out: Path,
    chosen: range,
    orders: Order,
    batch: int,
    sides: npt.NDArray[np.int32],
    progress: Callable[[int, int], None] | None,
) -> int:
    """Write an epoch for each view; returns the number of bytes written."""
    aside, paths = make_aside(out), list[Path]()
    try:
        for epoch, view in enumerate(chosen):
            (aside / f"epoch_{epoch}").mkdir()
            for number, labels in enumerate(batches(store, view, orders[epoch], batch)):
                path = aside / f"epoch_{epoch}" / f"batch_{number}.tar"
                with path.open("xb") as file:
                    paths.append(path)
                    torch.save(record_of(store, labels, sides), file)
            if progress:
                progress(epoch + 1, len(chosen))
        size = sum(path.stat().st_size for path in paths)
        removing.require_absent(out)
        removing.move_folder(aside, out)
    except OSError as error:
        raise InputError(f"{out}: cannot be written ({error.strerror})") from error
    finally:
        remove_aside(aside, paths)
    return size


def batches(store: LabelStore, view: int, order: Order, batch: int) -> Iterator[LabelBatch]:
    """The labels of a view, a file's at a time."""
    for start in range(0, len(order), batch):
        yield store.read_images(view, order[start : start + batch])


def record_of(store: LabelStore, labels: LabelBatch, sides: npt.NDArray[np.int32]) -> list[Any]:
    """The six values of a file."""
    rows = labels.rows
    each = sides[rows.image]
    coordinates = (rows.boxes() / np.concatenate([each, each], axis=1)).astype(np.float32)
    index, weight, box = mixing_of(rows, store.identity.size)
    logits = as_float16(store, labels, None)
    return [torch.from_numpy(coordinates), torch.from_numpy(rows.flip), index, weight, box, torch.from_numpy(logits)]


def mixing_of(rows: CropRows, size: int) -> tuple[torch.Tensor | None, float | None, list[int] | None]:
    """Partners, weight of the crop's own image, and CutMix box, one a file.

    Raises:
        InputError: when crops of a group have different weights or boxes.
    """
    if not rows.mixed:
        return None, None, None
    index, weight = torch.from_numpy(rows.column("partner").astype(np.int64)), float(rows.weights(size)[0])
    names = [name for name in rows.names if name.startswith("mix_") or name == "share"]
    if any(len(np.unique(rows.column(name))) > 1 for name in names):
        raise InputError("--format fkd: SRe2L's record has one mixing weight and box a file, found several in a group")
    if "share" in rows:
        return index, weight, None
    top, left, height, width = (int(value) for value in rows.mix_boxes()[0])
    return index, weight, [top, left, top + height, left + width]
