"""The records that are written to and read from a store."""

from __future__ import annotations

from dataclasses import dataclass
from numbers import Real
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from labelstore.durable.publish import Described
from labelstore.encodings import Codes
from labelstore.errors import InputError
from labelstore.format.columns import CropRows
from labelstore.spec import Json, require_integer


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
    """The data of one block of v views and p positions, as a build makes it.

    Attributes:
        logits: the teacher's, float32 ``[v, p, C]``; may be empty if ``largest`` is given.
        rows: columns of the crops, uint16 ``[v, K, p]``.
        pixels_digest: BLAKE2b-64 of the pixels of the first positions of its first view, hex.
        audit: with the first block, and only with it.
        codes: codes of the logits, if already computed; encoded here when None.
        largest: with codes, the largest magnitude of the logits, NaN if one of them is, if it is already known and
            the logits are not needed for anything else; computed here when None. Not used for the first block.
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
    """The published arrays of one block.

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


class Labels:
    """Methods for objects with ``logits`` ``[n, C]``."""

    __slots__ = ()
    logits: npt.NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.logits)

    def top(self, k: int) -> Top:
        """The k largest logits of each label, the largest first.

        Raises:
            InputError: when there are fewer columns.
        """
        columns = self.logits.shape[1]
        if not 1 <= (k := require_integer("k", k)) <= columns:
            raise InputError(f"k: expected 1 to {columns}, the columns of a label, found {k}")
        best = np.argsort(-self.logits, axis=1, kind="stable")[:, :k]
        return Top(best, np.take_along_axis(self.logits, best, axis=1))

    def probabilities(self, temperature: float = 1.0) -> npt.NDArray[np.float32]:
        """``softmax(logits / temperature)``, float32 ``[n, C]``.

        Raises:
            InputError: when the temperature is not above 0.
        """
        return softmax(self.logits, temperature)


class Top(NamedTuple):
    """The largest logits of n labels.

    Attributes:
        columns: int64 ``[n, k]``.
        logits: float32 ``[n, k]``.
    """

    columns: npt.NDArray[np.int64]
    logits: npt.NDArray[np.float32]


TEMPERATURES = (1e-30, 1e30)  # what float32 divides by without a zero or an infinity


def require_temperature(temperature: float) -> None:
    """Refuse a temperature that is not above 0."""
    low, high = TEMPERATURES
    if not (isinstance(temperature, Real) and low <= temperature <= high):
        raise InputError(f"temperature: expected a number above 0, from {low:g} to {high:g}, found {temperature!r}")


def softmax(logits: npt.NDArray[np.float32], temperature: float) -> npt.NDArray[np.float32]:
    """``softmax(logits / temperature)``, float32 ``[n, C]``.

    Raises:
        InputError: when the temperature is not above 0.
    """
    require_temperature(temperature)
    powers = np.exp((logits - logits.max(axis=1, keepdims=True)) / np.float32(temperature))
    shares: npt.NDArray[np.float32] = powers / powers.sum(axis=1, keepdims=True)
    return shares


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class LabelBatch(Labels):
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

    def __repr__(self) -> str:
        return f"LabelBatch(view {self.view}, {len(self)} positions x {self.logits.shape[1]} columns)"


@dataclass(frozen=True, eq=False, slots=True, repr=False)
class LabelsOfImage(Labels):
    """Labels of one image in n views.

    Attributes:
        image: its index.
        target: its hard label, as a column of ``logits``.
        views: int64 ``[n]``.
        positions: of its crop in each view, int64 ``[n]``.
        rows: what made each crop.
        logits: the teacher's, decoded, float32 ``[n, C]``.
    """

    image: int
    target: int
    views: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    rows: CropRows
    logits: npt.NDArray[np.float32]

    def __repr__(self) -> str:
        return f"LabelsOfImage(image {self.image}, {len(self)} views x {self.logits.shape[1]} columns)"
