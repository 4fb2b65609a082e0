"""The table of formats that `export` writes; read without importing numpy.

A new format is one file, and one line here or ``EXPORTS[name] = "module:attribute"`` in a package above this one. Its
function is called with the store, the place to write, and an :class:`ExportOptions`, and returns what it wrote.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

from labelstore.tables import Table


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        views: one sealed view, a range of them, or all that are when None.
        order: order of the rows of a view: by image, in manifest order, or by position, in stored order.
        temperature: write ``softmax(logits / temperature)`` instead of the logits.
        images: the images of the store, for formats that need them.
        batch_size: crops a file, for formats of such files.
        progress: called with views done and views in all.
    """

    views: int | range | None = None
    order: Literal["image", "stored"] = "image"
    temperature: float | None = None
    images: Path | None = None
    batch_size: int | None = None
    progress: Callable[[int, int], None] | None = None


class Exported(NamedTuple):
    """The result of an export.

    Attributes:
        shape: of its labels.
        words: about it, for a line of the summary.
        size: in bytes.
        beside: another file that was written, if any.
    """

    shape: tuple[int, ...]
    words: str
    size: int
    beside: Path | None = None


EXPORTS: Table[Any] = Table(
    {
        "npy": "labelstore.operations.export:export_npy",
        "parquet": "labelstore.operations.export_parquet:export_parquet",
    }
)
