"""What goes into a store and what comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.durable.publish import Described
from labelstore.encodings import Codes
from labelstore.format.columns import CropRows
from labelstore.spec import Json


class AuditRows(NamedTuple):
    """The first crops of view 0, whole.

    Attributes:
        crops: uint8 ``[a, S, S, 3]``, after mixing, before normalising.
        logits: float16 ``[a, C]``.
    """

    crops: npt.NDArray[np.uint8]
    logits: npt.NDArray[np.float16]


@dataclass(frozen=True, kw_only=True, eq=False, slots=True)
class BlockData:
    """What a build makes for one block of v views and p positions.

    Attributes:
        logits: the teacher's, float32 ``[v, p, C]``; may be empty where ``largest`` is given.
        rows: columns of the crops, uint16 ``[v, K, p]``.
        pixels_digest: BLAKE2b-64 of the pixels of the first positions of its first view, hex.
        audit: with the first block, and only with it.
        codes: of the logits, where they are known already; encoded here when None.
        largest: with codes, the largest magnitude of the logits, NaN if one of them is, where it is known already and
            the logits are not needed for anything else; looked for here when None. Not of the first block.
        version: which of the store's versions made it; the last one when None.
    """

    logits: npt.NDArray[np.float32]
    rows: npt.NDArray[np.uint16]
    pixels_digest: str
    audit: AuditRows | None = None
    codes: Codes | None = None
    largest: float | None = None
    version: int | None = None


class EncodedBlock(NamedTuple):
    """What one block publishes.

    Attributes:
        files: its shards, by array.
        pixels: as ``BlockData.pixels_digest``.
        images: digest of the images of its positions.
        version: which of the store's versions made it.
        fidelity: of the encoding, with the first block.
    """

    files: dict[str, Described]
    pixels: str
    images: str
    version: int
    fidelity: Json


@dataclass(frozen=True, eq=False, slots=True)
class LabelBatch:
    """Labels of n positions of a view.

    Attributes:
        view: the view.
        positions: int64 ``[n]``.
        rows: what made each crop.
        logits: the teacher's, decoded, float32 ``[n, C]``.
        targets: hard label of each crop's own image, as a column of ``logits``, int64 ``[n]``.
    """

    view: int
    positions: npt.NDArray[np.int64]
    rows: CropRows
    logits: npt.NDArray[np.float32]
    targets: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.positions)
