"""Label stores: soft labels of crops in chunked Zarr v3 arrays, beside the numbers that made each crop.

Needs numpy, numcodecs with pcodec, google-crc32c, xxhash and threadpoolctl, and tyro for its commands; what it writes
is read by zarr-python too (see docs/FORMAT.md).
"""

from labelstore.blocks import BlockIndex
from labelstore.check import CheckReport, Damage, check
from labelstore.columns import CropRows
from labelstore.spec import BlockShape, Identity, State
from labelstore.store import AuditRows, BlockData, LabelBatch, LabelStore, require_free_space, store_bytes

__version__ = "0.2.0"

__all__ = [
    "AuditRows",
    "BlockData",
    "BlockIndex",
    "BlockShape",
    "CheckReport",
    "CropRows",
    "Damage",
    "Identity",
    "LabelBatch",
    "LabelStore",
    "State",
    "check",
    "require_free_space",
    "store_bytes",
]
