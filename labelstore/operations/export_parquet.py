"""Labels for other tools: a Parquet file with a row for each crop."""

from __future__ import annotations

import json
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from labelstore.access.records import LabelBatch
from labelstore.durable.newfile import new_file
from labelstore.errors import InputError, reason
from labelstore.export_table import Exported, ExportOptions
from labelstore.format.columns import IMAGE_COLUMNS
from labelstore.operations.export import BYTES_AT_ONCE, HEADER_BYTES, as_float16, chosen_views, require_place
from labelstore.store import LabelStore
from labelstore.writing.space import require_free_space

OTHER_BYTES = 64  # of a row besides its label, at most


def export_parquet(store: LabelStore, out: Path, options: ExportOptions) -> Exported:
    """Write the labels of some views, a row for each crop.

    A row has ``view``, ``position``, ``image``, ``target``, the numbers of the crop, and ``logits`` or
    ``probabilities`` as a fixed-size list of float16. Rows are written by groups of some 64 MiB of float32 labels, so
    that memory does not grow with the store. The file gets its name when it is whole, and never another's.

    Raises:
        InputError: when the file exists, the space for it does not, pyarrow is missing, or a logit is too large.
    """
    pyarrow, parquet = import_pyarrow("pyarrow"), import_pyarrow("pyarrow.parquet")
    chosen, _ = chosen_views(store, options.views)
    require_place(store, out, ".parquet")
    identity = store.identity
    rows = len(chosen) * identity.images
    require_free_space(out, rows * (2 * identity.columns + OTHER_BYTES) + HEADER_BYTES)
    schema = schema_of(pyarrow, store, options)
    group = max(BYTES_AT_ONCE // (4 * identity.columns), 1)
    with new_file(out) as file:
        with parquet.ParquetWriter(file, schema, compression="zstd", use_dictionary=False) as writer:
            waiting: list[Any] = []
            for batch in batches(store, chosen, options, group):
                waiting.append(record_batch(pyarrow, schema, store, batch, options))
                if sum(each.num_rows for each in waiting) >= group:
                    writer.write_table(pyarrow.Table.from_batches(waiting), row_group_size=group)
                    waiting.clear()
            if waiting:
                writer.write_table(pyarrow.Table.from_batches(waiting), row_group_size=group)
        size = file.seek(0, 2)
    return Exported((rows, identity.columns), f"{rows:,} rows, one a crop", size)


def import_pyarrow(module: str) -> Any:
    """pyarrow, which is imported when it is needed.

    Raises:
        InputError: when it is not installed.
    """
    try:
        return import_module(module)
    except ImportError as error:
        raise InputError(
            f"--format parquet is written by pyarrow, which is not installed ({reason(error)}): "
            f"pip install 'giftwrap[parquet]'"
        ) from error


def schema_of(pyarrow: Any, store: LabelStore, options: ExportOptions) -> Any:
    """The columns of a row; what is not in a row is metadata under ``giftwrap``, as JSON."""
    identity = store.identity
    kinds = {"view": pyarrow.uint32(), "position": pyarrow.uint32(), "image": pyarrow.uint32()}
    kinds |= {"target": pyarrow.uint32()} | dict.fromkeys(crop_columns(store), pyarrow.uint16())
    kinds |= {"flip": pyarrow.bool_(), label_name(options): pyarrow.list_(pyarrow.float16(), identity.columns)}
    about = {
        "classes": list(identity.classes),
        "class_columns": list(identity.label_columns),
        "content": identity.content,
        "temperature": options.temperature,
        "size": identity.size,
        "group": identity.group,
        "manifest": identity.manifest,
    }
    return pyarrow.schema(kinds.items(), metadata={"giftwrap": json.dumps(about)})


def label_name(options: ExportOptions) -> str:
    """Name of the column of labels."""
    return "logits" if options.temperature is None else "probabilities"


def crop_columns(store: LabelStore) -> list[str]:
    """The crop columns that are written unchanged: without the image and the flip, which have other columns."""
    return [name for name in store.identity.crop_columns if name not in (*IMAGE_COLUMNS, "bits")]


def batches(store: LabelStore, chosen: range, options: ExportOptions, step: int) -> Iterator[LabelBatch]:
    """The labels of some views in order, at most ``step`` rows at a time."""
    read = store.read_images if options.order == "image" else store.read
    for done, view in enumerate(chosen):
        for start in range(0, store.identity.images, step):
            yield read(view, slice(start, start + step))
        if options.progress:
            options.progress(done + 1, len(chosen))


def record_batch(pyarrow: Any, schema: Any, store: LabelStore, batch: LabelBatch, options: ExportOptions) -> Any:
    """Some rows as Arrow has them."""
    rows, labels = batch.rows, as_float16(store, batch, options.temperature)
    columns: dict[str, npt.NDArray[Any]] = {
        "view": np.full(len(batch), batch.view, np.uint32),
        "position": batch.positions.astype(np.uint32),
        "image": rows.image,
        "target": store.targets[rows.image].astype(np.uint32),
        "flip": rows.flip,
    }
    columns |= {name: rows.column(name) for name in crop_columns(store)}
    arrays = {name: pyarrow.array(values) for name, values in columns.items()}
    arrays[label_name(options)] = pyarrow.FixedSizeListArray.from_arrays(
        pyarrow.array(labels.reshape(-1)), labels.shape[1]
    )
    return pyarrow.record_batch([arrays[name] for name in schema.names], schema=schema)
