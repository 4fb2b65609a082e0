"""Label stores: soft labels of crops in chunked Zarr v3 arrays, beside the numbers that made each crop.

Needs numpy, numcodecs with pcodec, google-crc32c, xxhash and threadpoolctl, and tyro for its commands; what it writes
is read by zarr-python too (see docs/FORMAT.md).
"""

from labelstore.durable.storage import LocalStorage, Mapped, ReadStorage
from labelstore.format.blocks import BlockIndex
from labelstore.format.columns import CropRows
from labelstore.operations.check import CheckReport, Damage, check
from labelstore.spec import BlockShape, Identity, State
from labelstore.store import AuditRows, BlockData, LabelBatch, LabelStore, require_free_space, store_bytes
from labelstore.version import __version__
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
    "ReadStorage",
    "State",
    "StoreWriter",
    "__version__",
    "check",
    "require_free_space",
    "store_bytes",
]
