"""Label stores: soft labels of crops in chunked Zarr v3 arrays, beside the numbers that made each crop.

Needs numpy, numcodecs with pcodec, google-crc32c, xxhash and threadpoolctl, and tyro for its commands; what it writes
is read by zarr-python too (see docs/FORMAT.md).
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from labelstore.version import __version__

if TYPE_CHECKING:
    from labelstore.durable.keeping import PieceCache
    from labelstore.durable.storage import LocalStorage, Mapped, ReadStorage
    from labelstore.format.blocks import BlockIndex
    from labelstore.format.columns import CropRows
    from labelstore.operations.arrays import Mixing, from_arrays
    from labelstore.operations.check import CheckReport, Damage, check
    from labelstore.spec import BlockShape, Identity, State
    from labelstore.store import AuditRows, BlockData, LabelBatch, LabelStore, require_free_space, store_bytes
    from labelstore.writer import BlockWriter, StoreWriter

__all__ = [
    "AuditRows",
    "BlockData",
    "BlockIndex",
    "BlockShape",
    "BlockWriter",
    "CheckReport",
    "CropRows",
    "Damage",
    "Identity",
    "LabelBatch",
    "LabelStore",
    "LocalStorage",
    "Mapped",
    "Mixing",
    "PieceCache",
    "ReadStorage",
    "State",
    "StoreWriter",
    "__version__",
    "check",
    "from_arrays",
    "require_free_space",
    "store_bytes",
]

# Imported at first use: numpy and the codecs take a while, and the help of a command needs none of them.
_MODULES = {
    "AuditRows": "labelstore.store",
    "BlockData": "labelstore.store",
    "BlockIndex": "labelstore.format.blocks",
    "BlockShape": "labelstore.spec",
    "BlockWriter": "labelstore.writer",
    "CheckReport": "labelstore.operations.check",
    "CropRows": "labelstore.format.columns",
    "Damage": "labelstore.operations.check",
    "Identity": "labelstore.spec",
    "LabelBatch": "labelstore.store",
    "LabelStore": "labelstore.store",
    "LocalStorage": "labelstore.durable.storage",
    "Mapped": "labelstore.durable.storage",
    "Mixing": "labelstore.operations.arrays",
    "PieceCache": "labelstore.durable.keeping",
    "ReadStorage": "labelstore.durable.storage",
    "State": "labelstore.spec",
    "StoreWriter": "labelstore.writer",
    "check": "labelstore.operations.check",
    "from_arrays": "labelstore.operations.arrays",
    "require_free_space": "labelstore.store",
    "store_bytes": "labelstore.store",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
