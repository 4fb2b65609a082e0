"""Labels for other tools: float16 logits or probabilities in one .npy file; checks that all formats share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import numpy.typing as npt

from labelstore.access.records import LabelBatch, require_temperature
from labelstore.durable import disk, removing
from labelstore.durable.newfile import new_file
from labelstore.durable.places import require_apart
from labelstore.errors import DamagedError, InputError, NotStoredError
from labelstore.export_table import Exported, ExportOptions
from labelstore.spec import require_integer
from labelstore.store import LabelStore
from labelstore.writing.space import require_free_space

MAX_FLOAT16 = float(np.finfo(np.float16).max)
HEADER_BYTES = 4 << 10
BYTES_AT_ONCE = 64 << 20  # of float32 logits


def export(
    store: LabelStore,
    out: Path,
    *,
    views: int | range | None = None,
    order: Literal["image", "stored"] = "image",
    temperature: float | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[int, ...]:
    """Write the labels of some views as float16; the file gets its name when it is whole, and never another's.

    Args:
        store: the store.
        out: the file; must not exist.
        views: one sealed view, a range of them, or all that are when None.
        order: order of the rows of a view: by image, in manifest order, or by position, in stored order.
        temperature: write ``softmax(logits / temperature)`` instead of the logits.
        progress: called with views done and views in all.

    Returns:
        The shape of what was written: ``[N, C]`` of one view, else ``[V, N, C]``.

    Raises:
        InputError: when the file exists, the space for it does not, or a logit is too large for float16.
    """
    chosen, single = chosen_views(store, views)
    if temperature is not None:
        require_temperature(temperature)
    view_shape = (store.identity.images, store.identity.columns)
    shape = view_shape if single else (len(chosen), *view_shape)
    require_place(store, out, ".npy")
    require_free_space(out, math.prod(shape) * 2 + HEADER_BYTES)
    with new_file(out) as file:
        array = open_array(file, shape)
        each = array.reshape(len(chosen), *view_shape)
        for done, view in enumerate(chosen):
            write_view(store, view, each[done], order, temperature)
            if progress:
                progress(done + 1, len(chosen))
        array.flush()
    return shape


def export_npy(store: LabelStore, out: Path, options: ExportOptions) -> Exported:
    """As :func:`export`, called as the table of formats calls it."""
    shape = export(
        store,
        out,
        views=options.views,
        order=options.order,
        temperature=options.temperature,
        progress=options.progress,
    )
    return Exported(shape, f"rows in {options.order} order", out.stat().st_size)


def chosen_views(store: LabelStore, views: int | range | None) -> tuple[range, bool]:
    """The views to export, all of them sealed, and whether a single view was given.

    Raises:
        NotStoredError: when no view is sealed.
        InputError: names the first view that is not.
    """
    sealed = store.state.views_sealed
    if not sealed:
        raise NotStoredError(f"{store.path}: no view is sealed yet; finish its build first")
    single = views is not None and not isinstance(views, range)
    chosen = range(sealed) if views is None else views if isinstance(views, range) else one_view(views)
    if not chosen or not all(0 <= end < sealed for end in (chosen[0], chosen[-1])):
        raise InputError(f"views: expected 0 to {sealed - 1}, found {out_of(chosen, sealed)}")
    return chosen, single


def one_view(view: int) -> range:
    """A view as a range of views."""
    first = require_integer("view", view)
    return range(first, first + 1)


def out_of(chosen: range, sealed: int) -> int | str:
    """The first view of a range that is not below ``sealed``, of an ascending range or of one view."""
    if not chosen:
        return "none"
    steps = 0 if chosen[0] < 0 or chosen.step < 0 else max(-(-(sealed - chosen[0]) // chosen.step), 0)
    return chosen[steps]


def open_array(file: BinaryIO, shape: tuple[int, ...]) -> np.memmap[Any, np.dtype[np.float16]]:
    """An empty file as a .npy file, mapped. Its blocks are taken at once: a full disk must not end in a bus error."""
    header = {"descr": np.lib.format.dtype_to_descr(np.dtype(np.float16)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(file, header)
    file.flush()
    disk.allocate(file.fileno(), file.tell() + math.prod(shape) * 2)
    return np.memmap(file, np.float16, "r+", file.tell(), shape)


def write_view(
    store: LabelStore, view: int, out: npt.NDArray[Any], order: Literal["image", "stored"], temperature: float | None
) -> None:
    """Write the labels of a view to ``out`` ``[N, C]``, a run of positions at a time."""
    step = max(BYTES_AT_ONCE // (4 * store.identity.columns), 1)
    seen = np.zeros(len(out), bool)
    for start in range(0, len(out), step):
        labels = store.read(view, slice(start, start + step))
        out[labels.rows.image if order == "image" else slice(start, start + step)] = as_float16(
            store, labels, temperature
        )
        seen[labels.rows.image] = True
    if order == "image" and not seen.all():
        raise DamagedError.of(store.path, f"view {view} has no crop of image {np.argmin(seen)}")


def as_float16(store: LabelStore, labels: LabelBatch, temperature: float | None) -> npt.NDArray[np.float16]:
    """Logits, or with a temperature probabilities, float16 ``[n, C]``.

    Raises:
        InputError: names a logit that is too large for float16.
    """
    values = labels.logits if temperature is None else labels.probabilities(temperature)
    if len(values) and np.abs(values).max() > MAX_FLOAT16:
        row, column = (int(place) for place in np.argwhere(np.abs(values) > MAX_FLOAT16)[0])
        raise InputError(
            f"{store.path}: view {labels.view}, image {labels.rows.image[row]}, column {column}: expected a logit of "
            f"at most {MAX_FLOAT16:g}, found {values[row, column]:g}; export --probabilities"
        )
    return values.astype(np.float16)


def require_place(store: LabelStore, out: Path, suffix: str) -> None:
    """Refuse a name that is taken or of another format, a folder that is not there, and the store's own folder."""
    require_apart({"OUT": out}, {"STORE": store.path})
    if out.suffix != suffix:
        raise InputError(f"{out}: expected a name that ends in {suffix or 'no suffix'}; --format names other formats")
    removing.require_absent(out)
    if not out.parent.is_dir():
        raise InputError(f"{out}: expected a folder {out.parent}, found none; make it first")
